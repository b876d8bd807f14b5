r"""After a fit: is anything missing, how much, where, and can a second fit have it?

1. Search for missed mass by ascents (:mod:`~pyro_nflows.modes.missed`). Where nothing is found, the fit stays as it is.
2. Otherwise run sequential Monte Carlo from a Gaussian wide enough for all that was found
   (:mod:`~pyro_nflows.modes.tempering`), and count the particles that lie where the guide's density is far too small:
   the share of the posterior that is missing.
3. If that share is above a threshold, or the fit is poor and a mixture of Gaussians describes its draws about as well,
   fit again from the modes of those particles (:mod:`~pyro_nflows.modes.mixtures`), search again, and keep the fit that
   misses less. A poor fit of many latents that misses nothing is not: what it lacks is how widths depend on other
   latents, of which a few Gaussians know nothing.
4. Where the guide follows plates, look along lines for modes of single rows (:mod:`~pyro_nflows.modes.row_lines`).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..diagnostics.findings import MissedMass
from ..diagnostics.invertibility import round_trip_errors
from ..diagnostics.outliers import outliers
from ..diagnostics.verdict import MISSED, WORTHLESS
from ..diagnostics.weights import psis_resample
from ..diagnostics.worth import effective, is_heavy
from ..engine import ROWS, OutOfTime, Trainer
from ..guides import AutoFlow
from ..layers import LocScale, PlateAffine, TriangularAffine
from ..modes.gaussians import Frame, Gaussian, frame_of, gaussian_of
from ..modes.missed import TOO_THIN, Missed, excess, missed_regions, scattered
from ..modes.mixtures import Modes, find_modes, hull
from ..modes.tempering import Tempered, temper
from ..objectives.draws import base_noise
from ..system.shapes import unravel_index
from .fitted import Fit
from .row_modes import described, missed_of_rows
from .schedule import MANY, MANY_ESS
from .swallowed import not_swallowed

#: Fits after the first.
MAX_REFITS = 3
#: Ascents by which missed modes are searched for, and how many more once one is found: there may be others.
NUM_ASCENTS, NUM_FURTHER = 32, 64
#: A region's mass, as a share of what was found, from which on its share is measured: one among many may be small.
NOTABLE = 1e-4
#: An ESS below which a fit is tried again, unless it is of many latents, or of a dear model.
POOR = 0.9
#: By how many nats a mixture may describe the draws of a poor fit worse than the fit does, and a fit that begins there
#: is still tried. Such a fit costs as much as all rounds before it.
HOPELESS = 3.0
#: Above this many dimensions there are no particles, and ascents climb in the coordinates of the guide's end.
MAX_MATRIX = 512
#: Draws of which that is found out.
NUM_COMPARED = 2000
#: Particles, and the seconds of processor time that they may take; of a dearer model there are fewer.
NUM_PARTICLES, BUDGET = (512, 2048), 30.0
#: Draws that are taken back to the base.
NUM_TRIPS = 200
#: Where time is limited, the share of what is left that the search may take: chains come after it.
SEARCHING = 0.6
#: Nats by which the particles' evidence may be below the fit's.
CREDIBLE = 0.25
#: Evaluations a particle takes, about.
NUM_EVALUATIONS = 800


@dataclass(frozen=True)
class Found:
    """The fit that is kept, with the modes that it started from (if it is a second one), and what it misses.

    ``regions`` are Gaussians where the guide's density is far too small, of any mass that counts.
    """

    fit: Fit
    modes: Modes | None = None
    missed: MissedMass = field(default_factory=MissedMass)
    tempered: Tempered | None = None
    regions: Sequence[Frame] = ()


def search(
    trainer: Trainer,
    guide: AutoFlow,
    best: Fit,
    disagree: bool,
    refit: Callable[[Modes], Fit] | None,
    prior: Callable[[int], list[Tensor]] = lambda num: [],
    precise: Callable[[Tensor], Tensor | None] = lambda z: None,
    brief: bool = False,
    enough: float = POOR,
    hopes: bool = False,
) -> Found:
    """What the best fit misses; or a further fit, if that misses less.

    :param trainer: has the model, with its gradient.
    :param guide: for the names of its sites.
    :param best: the fit.
    :param disagree: whether fits from several starts did, which is a reason to search further.
    :param refit: fits again from modes; None if that is not wanted.
    :param prior: gives so many points drawn from the prior, where ascents begin.
    :param precise: the log density in double precision, where it can be had.
    :param brief: whether what is missed is measured by the regions that are found alone, without particles.
    :param enough: an ESS at which a fit is not tried again where it misses nothing.
    :param hopes: whether draws whose weights are bad may still be mended (:mod:`~pyro_nflows.inference.stationary`).
    """
    ess = effective(best.draws.log_weight)
    if refit is None and not hopes and ess < WORTHLESS and is_heavy(best.draws.log_weight, ess):
        return Found(best)  # the weights already show a bad fit, and nothing can be done
    ascents, found, budget = _Ascents(trainer, guide, prior, precise, brief), Found(best), trainer.budget
    try:
        found = ascents.search(found, disagree)
        for _ in range(MAX_REFITS):
            if refit is None or found.fit.failed or trainer.history.interrupted or trainer.budget.is_over:
                break
            if not (found.missed.share > MISSED or _may_improve(guide, found, enough)):
                break
            other = _again(ascents, found, refit)
            if other is None or not _is_better(other, found):
                break
            found = other
        trainer.history.unsearched |= ascents.cut_short or budget.left <= 0
        row = None
        try:
            with budget.within(budget.of_all(SEARCHING)):
                row = None if trainer.history.unsearched else missed_of_rows(trainer, found.fit.layer)
        except OutOfTime:
            trainer.history.unsearched = True
        if row is not None and row.share > found.missed.share:
            found = replace(found, missed=described(guide, row))
    except KeyboardInterrupt:  # what was found before is no less true
        trainer.interrupt()
    return found


def _is_poor(fit: Fit, enough: float) -> bool:
    ess = effective(fit.draws.log_weight)
    return ess < (enough if fit.layer.input_dim <= MANY else MANY_ESS) or is_heavy(fit.draws.log_weight, ess)


def _may_improve(guide: AutoFlow, found: Found, enough: float) -> bool:
    """Whether a fit that misses nothing is poor, and not yet one that began at modes, which may be better."""
    return found.modes is None and _is_poor(found.fit, enough) and may_help(guide, found.fit)


@torch.no_grad()
def may_help(guide: AutoFlow, fit: Fit) -> bool:
    """Whether a mixture of several Gaussians comes near to a fit, so that one that begins there may be better.

    :param guide: makes the flow whose base a mixture is.
    :param fit: one that misses nothing, but is poor; if one Gaussian is all that its draws show, also one whose weights
        have a heavy tail, which may have come off its way.
    """
    if effective(fit.draws.log_weight) < WORTHLESS or not fit.layer.has_inverse:
        return True  # its draws say little about the posterior
    if fit.layer.input_dim > MANY:
        return False
    chosen = psis_resample(fit.draws.log_weight, NUM_COMPARED)
    z, log_p = fit.draws.z[chosen], fit.draws.log_p[chosen]
    try:
        modes = find_modes(z, fit.layer.is_full_rank)
        if modes.num_components == 1 and not is_heavy(fit.draws.log_weight, effective(fit.draws.log_weight)):
            return False  # a fit has begun at one Gaussian already
        layer = guide.make_layer(modes.frame.loc, modes.sizes).to(z)
        modes.place(layer)
        lost = excess(layer, z, log_p, 0.0) - excess(fit.layer, z, log_p, 0.0)
    except (ValueError, RuntimeError):  # the draws may have collapsed
        return True
    return not float(lost.mean()) > HOPELESS


def _is_better(other: Found, found: Found) -> bool:
    """Misses less; or, where neither misses much, is closer."""
    if max(other.missed.share, found.missed.share) > MISSED:
        return other.missed.share < found.missed.share
    return float(other.fit.elbo.value - found.fit.elbo.value) > 2 * float(other.fit.elbo.se)


def _again(ascents: "_Ascents", found: Found, refit: Callable[[Modes], Fit]) -> Found | None:
    """A fit from the modes of particles of sequential Monte Carlo."""
    tempered = found.tempered or _temper(ascents.trainer, _weighty(found.fit), [])
    if tempered is None:
        return None
    try:
        modes = find_modes(tempered.draws, found.fit.layer.is_full_rank)
        fit = refit(modes)
    except (ValueError, RuntimeError):  # particles may collapse, or the model refuse: the fit that there is stays
        return None
    if not bool(torch.isfinite(fit.elbo.value)):
        return None
    return ascents.search(Found(fit, modes), False)


def _weighty(fit: Fit) -> Tensor:
    """The draws around which to look: those of some weight, and not far out."""
    log_weight = fit.draws.log_weight
    return fit.draws.z[(log_weight > -torch.inf) & ~outliers(log_weight)]


@dataclass
class _Ascents:
    """Ascents from many points of a model, which find mass that a fit misses."""

    trainer: Trainer
    guide: AutoFlow
    prior: Callable[[int], list[Tensor]]
    precise: Callable[[Tensor], Tensor | None] = lambda z: None
    brief: bool = False
    cut_short: bool = False

    def search(self, found: Found, disagree: bool) -> Found:
        """The fit with what it misses.

        :param disagree: whether to search further even where the first ascents find nothing.
        """
        fit, draws = found.fit, _weighty(found.fit)
        regions = self._regions(fit, draws, NUM_ASCENTS)
        found = replace(found, regions=_notable(regions))
        if not (disagree or found.regions) or not fit.layer.has_inverse:
            return found
        regions = sorted(regions + self._regions(fit, draws, NUM_FURTHER), key=lambda missed: -missed.mass)
        end = fit.layer.end
        too_many = self.brief or isinstance(end, PlateAffine) or end.input_dim > MAX_MATRIX
        tempered = None if too_many else _temper(self.trainer, draws, regions)
        missed = MissedMass(_missing(tempered, regions, fit), *_where(self.guide, draws, regions))
        return Found(fit, found.modes, missed, tempered, _notable(regions))

    def _regions(self, fit: Fit, draws: Tensor, num: int) -> list[Missed]:
        """Missed regions found by ascents from so many points, a quarter of them from the prior."""
        num_prior = num // 4
        budget = self.trainer.budget
        until = budget.of_all(SEARCHING)
        points = [*scattered(draws, num - num_prior), *(point.to(draws) for point in self.prior(num_prior))]
        log_evidence = float(fit.log_evidence.value)
        end = fit.layer.end
        has_matrix = isinstance(end, LocScale | TriangularAffine) and end.input_dim <= MAX_MATRIX
        frame = frame_of(draws) if has_matrix else gaussian_of(fit.layer)
        before, density = budget.num_refused, self.trainer.density
        with budget.within(until):
            found = missed_regions(density, fit.layer, log_evidence, points, frame, self.precise, until)
        self.cut_short |= budget.num_refused > before or time.perf_counter() > until
        return not_swallowed(self.guide, draws, found)


def _notable(regions: Sequence[Missed]) -> list[Frame]:
    return [region.gaussian for region in regions if region.mass > NOTABLE]


def round_trip(fit: Fit) -> float:
    """The error of the fit's inverse that one draw in a hundred exceeds; 0 where it has none, or a random one."""
    if fit.layer.noise_dim or not fit.layer.has_inverse:
        return 0.0
    errors = round_trip_errors(fit.layer, base_noise(fit.layer, NUM_TRIPS))
    return float(errors.nan_to_num(nan=torch.inf).quantile(0.99))


def _temper(trainer: Trainer, draws: Tensor, regions: list[Missed]) -> Tempered | None:
    """Particles of sequential Monte Carlo, as many as there is time for; none where the model refuses."""

    modes = [region.gaussian for region in regions if isinstance(region.gaussian, Gaussian)]

    def run() -> tuple[Any, ...]:
        try:
            until = trainer.budget.of_all(SEARCHING)
            with trainer.budget.within(until):
                num = _affordable(trainer, draws)
                return tuple(temper(trainer.density, hull(draws, modes), num, 2 * BUDGET, until) or ())
        except (ValueError, RuntimeError, OutOfTime):  # far out, a model may refuse to be evaluated
            return ()

    found = trainer.journal.step("tempered", run)
    return Tempered(*found) if found else None


def _affordable(trainer: Trainer, draws: Tensor) -> int:
    """As many particles as the time allows, by how long the model's gradient takes."""
    trainer.density.values_and_grads(draws[:ROWS])
    began = time.thread_time()
    trainer.density.values_and_grads(draws[:ROWS])
    pace = max(time.thread_time() - began, 1e-9) / ROWS  # a clock may be too coarse to tell
    seconds = min(BUDGET, 0.5 * trainer.budget.left)
    return max(NUM_PARTICLES[0], int(min(NUM_PARTICLES[1], seconds / (pace * NUM_EVALUATIONS))))


def _missing(tempered: Tempered | None, regions: list[Missed], fit: Fit) -> float:
    """The share of particles that lie where the fit's density is far too small, and at least the regions'.

    Particles whose evidence is well below the fit's are themselves the ones that miss something.
    """
    mass = min(regions[0].mass, 1e6) if regions else 0.0
    log_evidence = float(fit.log_evidence.value)
    if tempered is None or tempered.log_evidence < log_evidence - CREDIBLE:
        return mass / (1 + mass)
    nats = excess(fit.layer, tempered.draws, tempered.log_p, log_evidence)
    return max(mass / (1 + mass), float((nats > TOO_THIN).double().mean()))


def _where(guide: AutoFlow, draws: Tensor, regions: list[Missed]) -> tuple[str, float]:
    """The coordinate in which the heaviest region is farthest from the draws, with its value there."""
    if not regions:
        return "", math.nan
    loc = regions[0].gaussian.loc
    index = int(((loc - draws.mean(0)).abs() / draws.std(0)).argmax())
    with torch.no_grad():
        there, here = guide.constrain(loc[None]), guide.constrain(draws)
    for name, latent in guide.latents.sites.items():
        if index < latent.columns.stop:
            apart = ((there[name][0] - here[name].mean(0)).abs() / here[name].std(0)).reshape(-1)
            at = int(apart.nan_to_num().argmax())
            label = name if apart.numel() == 1 else f"{name}[{', '.join(map(str, _unravel(at, there[name][0])))}]"
            return label, float(there[name][0].reshape(-1)[at])
    return "", math.nan


def _unravel(index: int, like: Tensor) -> list[int]:
    return [int(i) for i in unravel_index(torch.tensor(index), like.shape)]
