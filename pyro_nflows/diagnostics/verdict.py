r"""One sentence that says whether to trust a fit; the members of :class:`Outcome` are the sentences."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from . import weights as diagnostics
from .findings import Faults, MissedMass, Subsampled, Training, apart
from .moves import Redrawn, Settled
from .outliers import is_cut, outliers, outliers_in_words
from .remedies import remedy_of
from .worth import FINE, HALF, effective, is_heavy, k_limit, tail_index

O = TypeVar("O", bound=enum.Enum)


@dataclass(frozen=True)
class Verdict(Generic[O]):
    """What to make of draws: an outcome for programs, and one sentence for people.

    Its ``outcome`` is an :class:`Outcome` where it is of a fit, and a member of an enumeration of their own where it is
    of ranks (:class:`~pyro_nflows.diagnostics.calibration.Calibration`) or of Markov chains
    (:class:`~pyro_nflows.inference.refined.Mixing`).

    :param outcome: what was found; its value is the sentence with places for numbers.
    :param sentence: what was found, what it means, and what to try.

    Example::

        >>> print(judge(Evidence(torch.zeros(1000), [], [], torch.ones(1))))
        Trust these draws: ESS is 100% of the draws and k-hat -inf (below 0.67).
    """

    outcome: O
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class Sentences(enum.Enum):
    """Outcomes whose values are sentences, their numbers to be filled in: shown by their names.

    Example::

        >>> Outcome.TRUST
        Outcome.TRUST
    """

    def __repr__(self) -> str:
        return str(self)


class Outcome(Sentences):
    """What was found, what it means, and what to try. The value is the sentence, its numbers to be filled in."""

    TRUST = "Trust these draws: ESS is {ess:.0%} of the draws and k-hat {pareto_k} ({tail})."
    RESAMPLED = (
        "Trust the draws of get_samples(), which are importance-resampled, but not the guide by itself: ESS is only "
        "{ess:.0%} of the draws (k-hat {pareto_k}){remedy}"
    )
    MOVED = (
        "Trust the draws of get_samples(), which {settled} have moved from where the guide has them to where they "
        "settle, but not the guide by itself: its ESS is {ess:.1%} of the draws (k-hat {pareto_k}){remedy}"
    )
    REDRAWN = (
        "Trust the draws of get_samples(), {redrawn}, but not the guide by itself: ESS is {ess:.0%} of the draws and "
        "k-hat {pareto_k} ({tail}), of the guide's own {own}."
    )
    OUTLIERS = (
        "Trust the draws of get_samples(), which are importance-resampled, but not the guide by itself: {outliers}, "
        "with an importance weight of zero, which spoils its own means, standard deviations and ELBO; all others are "
        "good (ESS is {ess:.0%} of the draws, k-hat {pareto_k}; {tail})."
    )
    TAILS = (
        "Trust means and central intervals, but not far tails: ESS is {ess:.0%} of the draws, yet k-hat "
        "{pareto_k} is above {threshold}{remedy}"
    )
    DISTRUST = (
        "Do not trust these draws: k-hat {pareto_k} is above {threshold} (ESS {ess:.1%}), so the guide misses "
        "part of the posterior{remedy}"
    )
    DRIFTS = (
        "Do not trust these draws: moved by Hamiltonian Monte Carlo they do not stay where they are ({moves}), so the "
        "posterior is not what they and their weights show (ESS {ess:.0%}, k-hat {pareto_k}){remedy}"
    )
    TOO_FEW = (
        "Do not trust these draws: they are worth only {worth:.0f} independent ones{where} (ESS {ess:.2%}){remedy}"
    )
    ROWS = "Do not trust the rows of the plate: the weights of their own draws are bad."
    SHARED = (
        "Trust predictions, but not rows by themselves: what {rows} share, such as a constant that may be in either of "
        "two plates or a rotation of factors, {how}. Make it a latent of its own, or fix it."
    )
    MINIBATCH = (
        "Do not judge these draws by their weights (ESS {ess:.1%}, k-hat {pareto_k}): log p of each is that of a "
        "minibatch, {rows}, scaled up, whose noise says nothing of the guide. It could not be had over all rows: "
        "{obstacle}."
    )
    UNSETTLED = (
        "Do not trust these draws yet: the model's own parameters (pyro.param) were still moving, and changed the log "
        "joint by {drift:.2g} in the last round{remedy}"
    )
    STARTS_DISAGREE = (
        "Do not trust these draws: fits from different starts disagree (log evidence {lowest:.2f} to {highest:.2f}), "
        "so the posterior probably has several modes and each fit found some{remedy}"
    )
    MODE_MISSED = (
        "Do not trust these draws: the guide misses a region that holds {missed}; the posterior has another "
        "mode{remedy}"
    )
    UNSTABLE = (
        "Do not trust this guide: rounding errors grow so much on the way through the flow that its inverse is off by "
        "{round_trip:.2g} base standard deviations; run it in float64, or use fewer layers or AutoCIF."
    )
    IMPROPER = (
        "Do not trust these draws: the posterior is improper, as far as can be seen: its log density does not fall "
        "along {improper}, however far one goes; give a prior that does, or data that inform it."
    )
    UNEXAMINED = (
        "Do not trust these draws yet: their weights are uneven (ESS {ess:.0%} of the draws, k-hat {pareto_k}), and "
        "there was no time left to see whether the posterior is proper; give max_seconds more."
    )
    EDGE = (
        "Do not trust these draws: {edge} lie so close to the edge of its support that numbers of this precision end "
        "there; try float64, or a prior with less mass at the edge."
    )
    CUT = (
        "Do not trust these draws: the posterior ends at an edge that no site's support tells of, and {outliers}; "
        "where the ESS is below {uncut:.0%} there ({ess:.0%}), weights do not tell what the guide leaves out. Sample "
        "the distance from the edge in place of a latent that has one, such as end = y.max() + distance."
    )
    NOT_FINITE = (
        "Do not trust these draws: training met values that are not finite ({skipped} of {num_steps} steps), first "
        "at site '{site}'; look at its distribution's parameters for overflow, or rescale the model."
    )

    @property
    def is_trusted(self) -> bool:
        """Whether means and central intervals of the draws can be used."""
        return self in (
            Outcome.TRUST,
            Outcome.RESAMPLED,
            Outcome.MOVED,
            Outcome.REDRAWN,
            Outcome.OUTLIERS,
            Outcome.TAILS,
        )


class Evidence(NamedTuple):
    """What a verdict rests on.

    :param log_weight: of the draws.
    :param log_evidences: estimates of it, one a start.
    :param means: of the draws of each start.
    :param sd: of the draws.
    :param drift: how much the model's own parameters changed the log joint in the last round of training.
    :param missed: mass that the guide misses.
    :param faults: what keeps the fit from being good.
    :param subsampled: the model's subsampled plates.
    :param settled: chains whose draws are taken in the place of the guide's.
    :param redrawn: what was drawn anew, if it was; the weights are those of such draws.
    """

    log_weight: Tensor
    log_evidences: Sequence[diagnostics.Estimate]
    means: Sequence[Tensor]
    sd: Tensor
    drift: float = 0.0
    missed: MissedMass = MissedMass()
    faults: Faults = Faults()
    subsampled: Subsampled = Subsampled()
    settled: Settled | None = None
    redrawn: Redrawn | None = None


#: How little (in nats) the model's own parameters change the log joint in a round once they have settled.
SETTLED = 0.05
#: A share of the posterior's mass that is too much to miss.
MISSED = 0.02
#: An error of the inverse, in base standard deviations, that is too large.
UNSTABLE = 0.05
#: An ESS at which a heavy tail says all there is to say.
WORTHLESS = 0.1
#: An ESS that draws need where the density is zero at more than a few of them: a guide of several latents with edges
#: leaves out where most of its draws would be lost, such as a wide spread of them, and no weight shows that.
UNCUT = 0.8
#: Independent draws that means and intervals need, and that the worst mean or standard deviation of a latent does.
ENOUGH, WORST = 400, 150


def judge(evidence: Evidence, training: Training = Training()) -> Verdict[Outcome]:
    """The verdict on draws with these weights.

    :param evidence: see :class:`Evidence`.
    :param training: how the guide was trained, which the sentence tells of.

    Example::

        >>> flat = Evidence(torch.zeros(1000), [], [], torch.ones(1))
        >>> judge(flat).outcome.name
        'TRUST'
    """
    ess = effective(evidence.log_weight)
    pareto_k, threshold = tail_index(evidence.log_weight), k_limit(len(evidence.log_weight), ess)
    values = [float(e.value) for e in evidence.log_evidences] or [math.nan]
    outcome, words, shown = _decide(evidence, ess), evidence.faults.words(), apart(pareto_k, threshold)
    if evidence.faults.unexamined and outcome.is_trusted:
        outcome = Outcome.UNEXAMINED
    few = evidence.faults.vague if ess * len(evidence.log_weight) >= ENOUGH else None
    sentence = outcome.value.format(
        ess=ess,
        worth=ess * len(evidence.log_weight) if few is None else few[1],
        where="" if few is None else f" at site '{few[0]}'",
        pareto_k=shown[0],
        threshold=shown[1],
        lowest=min(values),
        highest=max(values),
        skipped=training.skipped,
        num_steps=training.num_steps,
        site=evidence.faults.not_finite,
        drift=evidence.drift,
        missed=evidence.missed,
        moves=evidence.faults.drift,
        settled=evidence.settled,
        redrawn=evidence.redrawn,
        own="" if evidence.redrawn is None else evidence.redrawn.own(),
        outliers=outliers_in_words(evidence.log_weight),
        round_trip=evidence.faults.round_trip,
        improper=words["improper"],
        edge=words["edge"],
        uncut=UNCUT,
        rows=evidence.subsampled,
        obstacle=evidence.subsampled.obstacle,
        remedy=remedy_of(outcome.name, training.quick),
        tail=f"below {shown[1]}" if pareto_k < threshold else "a tail of nearly equal weights",
    )
    if outcome is Outcome.TAILS and bool(outliers(evidence.log_weight).any()):
        far = outliers_in_words(evidence.log_weight)
        sentence += f" The guide by itself is worse: {far}, and get_samples() has none of those."
    sentence += _rests_on(evidence.subsampled, outcome)
    if evidence.redrawn is not None and outcome not in (Outcome.REDRAWN, Outcome.MOVED):
        sentence += (
            f" These are draws {evidence.redrawn}; of the guide's own, ESS and k-hat are {evidence.redrawn.own()}."
        )
    if evidence.faults.unobserved:
        sentence += " Nothing was observed at these arguments, so the posterior is the prior."
    refused = sentence.startswith("Do not trust")
    if refused and words["scale"]:
        sentence += f" And {words['scale']}: other units will help."
    return Verdict(outcome, sentence + training.words(refused, outcome is Outcome.TRUST))


def _rests_on(subsampled: Subsampled, outcome: Outcome) -> str:
    """What of the data the weights have seen, where plates are subsampled."""
    if not subsampled.plates or outcome is Outcome.MINIBATCH:
        return ""
    said = f" Log p of these draws is over {subsampled}{', scaled up' if subsampled.obstacle else ''}."
    return said + (" Other modes were not searched for: that would take too long." if subsampled.unsearched else "")


def _decide(evidence: Evidence, ess: float) -> Outcome:
    faults = evidence.faults
    if faults.not_finite is not None:
        return Outcome.NOT_FINITE
    if faults.improper:
        return Outcome.IMPROPER
    if faults.edge is not None:
        return Outcome.EDGE
    if not evidence.drift < SETTLED:
        return Outcome.UNSETTLED
    if starts_disagree(evidence):
        return Outcome.STARTS_DISAGREE
    if not faults.round_trip < UNSTABLE:
        return Outcome.UNSTABLE
    heavy = is_heavy(evidence.log_weight, ess)
    if ess < HALF:
        heavy = not tail_index(evidence.log_weight) < k_limit(len(evidence.log_weight), ess)
    if evidence.subsampled.is_noisy and (heavy or ess < HALF):
        return Outcome.MINIBATCH
    if evidence.settled is not None:
        return Outcome.MOVED
    if evidence.missed.share > MISSED and not (heavy and ess < WORTHLESS):
        return Outcome.MODE_MISSED
    if heavy and ess < FINE:
        return Outcome.DISTRUST
    if heavy and ess * len(evidence.log_weight) >= ENOUGH:
        return Outcome.TAILS
    if ess * len(evidence.log_weight) < ENOUGH or (faults.vague is not None and faults.vague[1] < WORST):
        return Outcome.TOO_FEW
    if ess < UNCUT and is_cut(evidence.log_weight):
        return Outcome.CUT
    if ess < HALF:
        return Outcome.RESAMPLED if faults.drift is None else Outcome.DRIFTS
    if evidence.redrawn is not None:
        return Outcome.REDRAWN
    return Outcome.OUTLIERS if bool(outliers(evidence.log_weight).any()) else Outcome.TRUST


def starts_disagree(evidence: Evidence) -> bool:
    """Whether two starts differ in log evidence, or in a mean, by more than noise explains."""
    for i, a in enumerate(evidence.log_evidences):
        for j, b in enumerate(evidence.log_evidences[:i]):
            gap, noise = abs(float(a.value - b.value)), float(a.se.square() + b.se.square()) ** 0.5
            shift = float(((evidence.means[i] - evidence.means[j]).abs() / evidence.sd).max())
            if not gap <= 0.1 + 5 * noise or not shift <= 0.3:
                return True
    return False
