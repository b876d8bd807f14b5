"""What to try where draws are not as good as they could be: how a verdict's sentence ends."""

#: Of a fit that asked for no flow, whatever else could help.
QUICK = ". Only a Gaussian was fitted, by effort='quick'; effort='default' trains a flow."
_CLOSER = "; for a closer guide try more steps or AutoCIF."
_RICHER = "; try vi.refine(), more steps, AutoCIF, or a non-centered or rescaled model."
#: By the names of outcomes that a better fit would mend; the other sentences have their remedies in them.
REMEDIES = {
    "RESAMPLED": _CLOSER,
    "MOVED": _CLOSER,
    "TAILS": "; vi.refine() or a non-centered model may help.",
    "DISTRUST": _RICHER,
    "TOO_FEW": _RICHER,
    "DRIFTS": _RICHER,
    "UNSETTLED": "; call run() again, or give more num_steps.",
    "STARTS_DISAGREE": "; try AutoCIF with annealing, or more starts.",
    "MODE_MISSED": (
        ". Where num_steps was given, leave it to the schedule, which then fits again from there; else try AutoCIF "
        "with annealing (and init_scale about the prior's), more starts, or structure='joint' where a guide follows "
        "plates."
    ),
}


def remedy_of(outcome: str, quick: bool) -> str:
    """The end of an outcome's sentence; empty where the sentence has its own.

    :param outcome: its name.
    :param quick: whether the fit asked for no flow, which is then the first thing to try.

    Example::

        >>> remedy_of("TAILS", quick=False)
        '; vi.refine() or a non-centered model may help.'
        >>> remedy_of("TAILS", quick=True)
        ". Only a Gaussian was fitted, by effort='quick'; effort='default' trains a flow."
        >>> remedy_of("TRUST", quick=True)
        ''
    """
    return "" if outcome not in REMEDIES else QUICK if quick else REMEDIES[outcome]
