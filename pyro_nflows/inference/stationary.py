r"""Draws that are moved by Hamiltonian Monte Carlo: do they stay where they are, or where do they come to rest?

Importance weights mend a guide where it goes, and of hundreds of latents few draws have nearly all the weight, however
close the guide is in each. Chains need no weights: those that begin at draws of the posterior stay so distributed, and
those that begin elsewhere move there. So where a verdict hangs on the weights, or refuses them, chains begin at draws
of the guide, side by side, and move in the coordinates of its flow, where the posterior is nearly a standard normal.

1. *What drifts.* Where all hangs on the weights, each latent's mean and standard deviation are compared with what they
   say, after a few moves and where the chains end. A part of the posterior in which the guide has next to no draws,
   such as the neck of a funnel, is in no weight, and whether :math:`\hat k` shows it is a matter of luck where few
   weights count.
2. *What has settled.* The chains go on with half the step size. They have settled if each has forgotten where it began
   (the R-hat of several hundred chains is high where any two stay apart, as in two modes), if means and standard
   deviations are those of the longer step size, which could not follow a narrow part of the posterior, if none has
   stayed at one point, and if they are worth enough draws. Their draws then stand for the posterior in the place of
   the guide's.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..diagnostics.moves import Drift, Settled
from ..diagnostics.verdict import Outcome
from ..diagnostics.weights import psis_resample
from ..diagnostics.worth import has_light_tail
from ..engine import Budget, DensityGradient, OutOfTime, Trainer
from ..guides import AutoFlow
from ..layers.base import Exactness, Layer
from ..modes.gaussians import Frame
from ..numerics import LogDensity
from ..objectives.draws import Draws
from ..system.randomness import forked
from .blame import columns
from .chains import Hamiltonian
from .fitted import Fit
from .settled import NUM_KEPT, SPACING, Kept, Spread, furthest, settled

#: Verdicts that hang on the weights, or on their being bad.
UNSURE = (Outcome.RESAMPLED, Outcome.DISTRUST, Outcome.TOO_FEW, Outcome.MODE_MISSED)
#: Chains side by side, and trajectories that find the step size: in the flow's coordinates, and by the chains' widths.
NUM_CHAINS, NUM_WARMUP = 256, (20, 15)
#: Seconds of processor time that they may take, about; where they would take longer, nothing is moved. A fit that is to
#: be quick has less.
SECONDS, BRIEF = 60.0, 5.0
#: How far draws may go from what the weights say: means, in standard deviations; and these, as a ratio.
FAR = 0.25, 1.25
#: Of draws whose weights say nothing, those of the least density in comparison with the guide's, where no chain begins.
WORST = 0.25
#: Regions where the guide has too few draws in which chains begin too, and how many in each.
MOST_REGIONS, NUM_THERE = 8, 8


class Moves(NamedTuple):
    """What became of draws.

    :param drift: what did not stay where the weights have it.
    :param settled: draws of chains that have settled, all of which count the same, and how they did.
    """

    drift: Drift | None = None
    settled: tuple[Draws, Settled] | None = None


def moves(trainer: Trainer, guide: AutoFlow, fit: Fit, regions: Sequence[Frame], brief: bool, settles: bool) -> Moves:
    """What becomes of a fit's draws when they are moved; nothing where they cannot be, or that would take too long.

    :param trainer: has the model, and the time that is left.
    :param guide: for the names of its sites.
    :param fit: whose draws are moved.
    :param regions: Gaussians where the fit has too few draws, in which some of the chains begin too.
    :param brief: whether the fit was to be quick.
    :param settles: whether draws of chains that have settled are wanted.
    """
    layer, draws = coordinates(fit.layer), fit.draws
    budget = trainer.budget
    until = time.process_time() + min(BRIEF if brief else SECONDS, budget.left)
    regions, drift = regions if settles else (), None

    def drifted(kept: Kept) -> Drift | None:
        if not has_light_tail(draws.log_weight):
            return None
        return _named(guide, furthest(Spread.of_draws(draws), Spread.of_chains(kept.z[_num_there(regions) :]), *FAR))

    try:
        with forked(), budget.within(budget.of_all(1.0)):
            chains = begun(trainer.judged, layer, draws, regions, until, budget)
            first = Kept.of(chains, layer, SPACING, until=until)
            drift = drifted(first)
            if drift is not None and not settles:
                return Moves(drift)
            last, how = settled(first, layer, until)
            return Moves(drift or drifted(last), (last.draws(), how) if settles and how is not None else None)
    except (OutOfTime, ValueError, RuntimeError):  # the model may refuse points that a trajectory meets
        return Moves(drift)


def coordinates(layer: Layer) -> Layer:
    """In which chains move: those before the flow or, where it is not one-to-one, before its affine end.

    :param layer: the trained one, a :class:`~pyro_nflows.flows.whitened.Whitened`.
    """
    one_to_one = layer.exactness >= Exactness.EXACT and not layer.noise_dim and layer.has_inverse
    return layer if one_to_one else layer.end  # type: ignore[return-value]


def in_flow(log_joint: LogDensity, layer: Layer, x: Tensor) -> Tensor:
    """The log density in the flow's coordinates. The base density is not part of it: x is a point, not a draw."""
    z, log_weight = layer(x)
    return log_joint(z) + log_weight


def begun(
    log_joint: LogDensity,
    layer: Layer,
    draws: Draws,
    regions: Sequence[Frame] = (),
    until: float = math.inf,
    budget: Budget | None = None,
) -> Hamiltonian:
    """Chains that have found their step size.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param layer: in whose coordinates they move, a bijection.
    :param draws: of the guide, where they begin: resampled, if weights allow that.
    :param regions: Gaussians in which some of them begin.
    :param until: when they have to end, by ``time.process_time``.
    :param budget: the time of the run.
    :raises OutOfTime: if they would not have settled by then.
    """
    density = DensityGradient(lambda x: in_flow(log_joint, layer, x)).within(budget or Budget())
    with torch.no_grad():
        z = draws.z[_starts(draws.log_weight)]
        for number, region in enumerate(regions[: _num_there(regions) // NUM_THERE]):
            places = slice(number * NUM_THERE, (number + 1) * NUM_THERE)
            z[places] = region.points(torch.randn_like(z[places]))
        starts, _ = layer.inverse(z)
    density.ask(starts, 2)
    density.values_and_grads(starts, NUM_CHAINS)  # which is recorded
    began = time.process_time()
    density.values_and_grads(starts, NUM_CHAINS)
    leapfrogs = max(2.0, 0.5 * math.pi * starts.shape[1] ** 0.25)
    num_moves = sum(NUM_WARMUP) + 3 * NUM_KEPT * SPACING  # steps of half the size are twice as many
    now = time.process_time()
    if now + (now - began) * leapfrogs * num_moves > until:
        raise OutOfTime
    chains = Hamiltonian.warmed(density, starts, NUM_WARMUP[0], until)
    widths = chains.points.x.std(0).clamp(min=1e-6)
    return replace(chains, step_size=starts.shape[1] ** -0.25, widths=widths).adapted(NUM_WARMUP[1], until)


def _num_there(regions: Sequence[Frame]) -> int:
    """How many chains, the first ones, begin in these."""
    return min(len(regions), MOST_REGIONS) * NUM_THERE


def _starts(log_weight: Tensor) -> Tensor:
    """The draws at which chains begin."""
    if has_light_tail(log_weight):
        return psis_resample(log_weight, NUM_CHAINS)
    best = log_weight.argsort(descending=True)[: max(1, math.ceil((1 - WORST) * len(log_weight)))]
    best = best[log_weight[best] > -math.inf]
    return best[torch.randint(len(best), (NUM_CHAINS,), device="cpu").to(best.device)]


def _named(guide: AutoFlow, found: tuple[int, float, float] | None) -> Drift | None:
    """The same by the name of the site."""
    if found is None:
        return None
    column, shift, ratio = found
    return Drift(next(name for name, at in columns(guide) if at.start <= column < at.stop), shift, ratio)


@torch.no_grad()
def further(log_joint: LogDensity, layer: Layer, draws: Draws, found: Settled, num_samples: int) -> Draws:
    """Further draws of chains that have settled: they go on where the last draws are.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param layer: the trained one.
    :param draws: what they have left.
    :param found: how they settled.
    :param num_samples: how many more.
    """
    layer = coordinates(layer)
    density = DensityGradient(lambda x: in_flow(log_joint, layer, x))
    x, _ = layer.inverse(draws.z[-found.num_chains :])
    chains = Hamiltonian.at(density, x, found.step_size, found.widths)
    return Kept.of(chains, layer, found.spacing, math.ceil(num_samples / found.num_chains)).draws()
