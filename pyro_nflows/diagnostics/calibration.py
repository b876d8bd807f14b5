"""What the ranks of all parameters say together; the members of :class:`Calibration` are the sentences."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import counted
from .ranks import uniformity
from .verdict import Sentences, Verdict

__all__ = ["Calibration", "PValues", "judge_ranks"]

#: How often chance alone may raise an alarm, over all p-values of a check together.
LEVEL = 0.01
#: A share of bad fits that does not explain much.
FEW = 0.1
#: Simulations below which ranks look uniform whatever they are of.
FEWEST = 20


class Calibration(Sentences):
    """What the ranks say. The value is the sentence, its numbers to be filled in."""

    CALIBRATED = (
        "No sign of miscalibration: the least of {num_tests} p-values over {num} simulations is {p:.2g} ({name}), "
        "which chance explains."
    )
    TOO_FEW = (
        "Too few to say: {simulations} can show nothing but gross faults (the least of {num_tests} p-values is "
        "{p:.2g}); take num_simulations=200, which mostly show a bias of a third of a standard deviation, or a width "
        "wrong by a third."
    )
    TOO_NARROW = (
        "Not calibrated: the draws of {name} are too narrow (p-value {p:.1g}, the least of {num_tests}), so intervals "
        "miss the truth too often. {remedy}"
    )
    TOO_WIDE = "Not calibrated: the draws of {name} are too wide (p-value {p:.1g}, the least of {num_tests}). {remedy}"
    TOO_LOW = "Not calibrated: the draws of {name} are too low (p-value {p:.1g}, the least of {num_tests}). {remedy}"
    TOO_HIGH = "Not calibrated: the draws of {name} are too high (p-value {p:.1g}, the least of {num_tests}). {remedy}"
    MISSHAPEN = (
        "Not calibrated: the draws of {name} have the wrong shape (p-value {p:.1g}, the least of {num_tests}), though "
        "about the right center and width. {remedy}"
    )


#: What to try, where many fits are bad, and where few are.
REMEDIES = (
    "{bad:.0%} of the fits are bad: try a richer guide, or a schedule with more steps.",
    "The fits are good where they look: they miss a mode (try search=True, or AutoCIF), or the sample and log_prob of "
    "a distribution in the model differ.",
)


class PValues(NamedTuple):
    """Of one parameter: uniform ranks (SBC), and an unbiased center of the guide itself (VSBC)."""

    uniformity: float
    symmetry: float


def judge_ranks(
    p_values: Mapping[str, PValues], ranks: Mapping[str, Tensor], num_samples: int, bad: float = 0.0
) -> Verdict[Calibration]:
    """What all parameters together say.

    The smallest p-value decides, times their number (Bonferroni), against 0.01. Where there are fewer than 20
    simulations, or even ranks that are all 0 would pass, a pass says nothing.

    :param p_values: by parameter.
    :param ranks: by parameter, each of shape ``(num_simulations,)``.
    :param num_samples: among how many draws.
    :param bad: the share of fits whose verdict is no.

    Example::

        >>> import torch
        >>> ranks = {"mu": torch.arange(100) % 5}
        >>> judge_ranks({"mu": PValues(1e-8, 0.5)}, ranks, 9).outcome.name
        'TOO_HIGH'
    """
    name = min(p_values, key=lambda key: min(p_values[key]))
    p, num_tests = min(p_values[name]), 2 * len(p_values)
    num = len(ranks[name])
    if p * num_tests < LEVEL:
        outcome = _shape(ranks[name], num_samples)
    else:
        outcome = Calibration.CALIBRATED if _can_fail(num, num_samples, num_tests) else Calibration.TOO_FEW
    remedy = REMEDIES[bad <= FEW].format(bad=bad)
    numbers = {"name": name, "p": p, "num": num, "num_tests": num_tests, "remedy": remedy}
    numbers["simulations"] = counted(num, "simulation")
    return Verdict(outcome, outcome.value.format(**numbers))


def _can_fail(num: int, num_samples: int, num_tests: int) -> bool:
    """Whether so many ranks could be told from uniform ones: the worst are all the same."""
    worst = torch.zeros(num, dtype=torch.long, device="cpu")
    return num >= FEWEST and uniformity(worst, num_samples) * num_tests < LEVEL


def _shape(ranks: Tensor, num_samples: int) -> Calibration:
    """Center or width, whichever is further from what uniform ranks have, in standard errors."""
    u = (ranks.double() + 0.5) / (num_samples + 1) - 0.5
    center = float(u.mean()) * math.sqrt(12 * len(u))
    width = float(u.square().mean() - 1 / 12) * math.sqrt(180 * len(u))
    if max(abs(center), abs(width)) < 3:
        return Calibration.MISSHAPEN
    if abs(center) > abs(width):
        return Calibration.TOO_LOW if center > 0 else Calibration.TOO_HIGH
    return Calibration.TOO_NARROW if width > 0 else Calibration.TOO_WIDE
