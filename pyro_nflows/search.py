r"""After a fit: is anything missing, how much, where, and can a second fit have it?

1. Look from elsewhere (:mod:`~pyro_nflows.elsewhere`). Where nothing is found, all is well.
2. Otherwise let particles cool from a Gaussian wide enough for all that was found (:mod:`~pyro_nflows.tempering`), and
   count those that lie where the guide's density is far too small: the share of the posterior that is missing.
3. If that is more than a trifle, or the fit is poor, fit again from the modes of those particles
   (:mod:`~pyro_nflows.modes`), look again, and keep what is better.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .elsewhere import TOO_THIN, Missed, excess, look_elsewhere, scattered
from .engine import ROWS, Trainer
from .fit import Fit
from .guides import AutoFlow
from .invertibility import round_trip_errors
from .layers import TriangularAffine
from .modes import Modes, find_modes, hull
from .tempering import Tempered, temper
from .verdict import MISSED, WORTHLESS, effective, is_heavy
from .weights import base_noise

#: Fits after the first.
MAX_REFITS = 3
#: Points from which missed modes are looked for, and how many more once one is found: there may be others.
NUM_LOOKS, NUM_MORE = 18, 36
#: A region's mass, as a share of what was found, from which on it is looked into: one among many may be small.
NOTABLE = 1e-4
#: An ESS below which a fit is tried again.
POOR = 0.9
#: Particles, and the seconds that they may take; with less time there are fewer.
NUM_PARTICLES, BUDGET = (512, 2048), 30.0
#: Draws that are taken back to the base.
NUM_TRIPS = 200
#: Nats by which the tempered draws' evidence may be below the fit's.
CREDIBLE = 0.25
#: Evaluations a particle takes, about.
NUM_EVALUATIONS = 800


@dataclass
class Found:
    """The fit that is kept, with the modes that it started from (if it is a second one), and what it misses."""

    fit: Fit
    modes: Modes | None = None
    missed: float = 0.0
    where: str = ""
    tempered: Tempered | None = None


def search(trainer: Trainer, guide: AutoFlow, best: Fit, disagree: bool, refit: Callable[[Modes], Fit] | None) -> Found:
    """What the best fit misses; or a further fit, if that misses less.

    :param trainer: its slope is the model's.
    :param guide: for the names of its sites.
    :param best: the fit.
    :param disagree: whether fits from several starts did, which is a reason to look further.
    :param refit: fits again from modes; None if that is not wanted.
    """
    ess = effective(best.draws.log_weight)
    if refit is None and ess < WORTHLESS and is_heavy(best.draws.log_weight, ess):
        return Found(best)  # the weights say no already, and nothing would come of it
    found = _look(trainer, guide, Found(best), disagree)
    for _ in range(MAX_REFITS):
        if refit is None or trainer.stopped or not (found.missed > MISSED or _is_poor(found.fit)):
            break
        other = _again(trainer, guide, found, refit)
        if other is None or not _is_better(other, found):
            break
        found = other
    return found


def _is_poor(fit: Fit) -> bool:
    ess = effective(fit.draws.log_weight)
    return ess < POOR or is_heavy(fit.draws.log_weight, ess)


def _is_better(other: Found, found: Found) -> bool:
    """Misses less; or, where neither misses much, is closer."""
    if max(other.missed, found.missed) > MISSED:
        return other.missed < found.missed
    return float(other.fit.elbo.value - found.fit.elbo.value) > 2 * float(other.fit.elbo.se)


def _again(trainer: Trainer, guide: AutoFlow, found: Found, refit: Callable[[Modes], Fit]) -> Found | None:
    """A fit from the modes of tempered draws."""
    tempered = found.tempered or _temper(trainer, _weighty(found.fit), [])
    if tempered is None:
        return None
    modes = find_modes(tempered.draws, isinstance(found.fit.layer[1], TriangularAffine))
    fit = refit(modes)
    if not bool(torch.isfinite(fit.elbo.value)):
        return None
    return _look(trainer, guide, Found(fit, modes), False)


def _weighty(fit: Fit) -> Tensor:
    return fit.draws.z[fit.draws.log_weight > -torch.inf]


def _look(trainer: Trainer, guide: AutoFlow, found: Found, disagree: bool) -> Found:
    """Fill in what a fit misses."""
    fit = found.fit
    draws, log_evidence = _weighty(fit), float(fit.log_evidence.value)
    look = functools.partial(look_elsewhere, trainer.slope, fit.layer, log_evidence)
    regions = look(scattered(draws, NUM_LOOKS))
    if not (disagree or any(region.mass > NOTABLE for region in regions)) or not fit.layer.has_inverse:
        return found
    regions = sorted(regions + look(scattered(draws, NUM_MORE)), key=lambda missed: -missed.mass)
    tempered = _temper(trainer, draws, regions)
    return Found(fit, found.modes, _missing(trainer, tempered, regions, fit), _where(guide, draws, regions), tempered)


def round_trip(fit: Fit) -> float:
    """The error of the fit's inverse that one draw in a hundred exceeds; 0 where it has none, or a random one."""
    if fit.layer.noise_dim or not fit.layer.has_inverse:
        return 0.0
    errors = round_trip_errors(fit.layer, base_noise(fit.layer, NUM_TRIPS))
    return float(errors.nan_to_num(nan=torch.inf).quantile(0.99))


def _temper(trainer: Trainer, draws: Tensor, regions: list[Missed]) -> Tempered | None:
    try:
        num = _affordable(trainer, draws)
        return temper(trainer.slope, hull(draws, [r.gaussian for r in regions]), num, 2 * BUDGET)
    except (ValueError, RuntimeError):  # far out, a model may refuse to be evaluated
        return None


def _affordable(trainer: Trainer, draws: Tensor) -> int:
    """Particles."""
    trainer.slope.values_and_grads(draws[:ROWS])
    began = time.perf_counter()
    trainer.slope.values_and_grads(draws[:ROWS])
    pace = (time.perf_counter() - began) / ROWS
    return max(NUM_PARTICLES[0], int(min(NUM_PARTICLES[1], BUDGET / (pace * NUM_EVALUATIONS))))


def _missing(trainer: Trainer, tempered: Tempered | None, regions: list[Missed], fit: Fit) -> float:
    """The share of tempered draws that lie where the fit's density is far too small, and at least the regions'.

    Tempered draws whose evidence is well below the fit's are themselves the ones that miss something.
    """
    mass = min(regions[0].mass, 1e6) if regions else 0.0
    log_evidence = float(fit.log_evidence.value)
    if tempered is None or tempered.log_evidence < log_evidence - CREDIBLE:
        return mass / (1 + mass)
    with torch.no_grad():
        log_p, _ = trainer.slope.values_and_grads(tempered.draws)
        nats = excess(fit.layer, tempered.draws, log_p, log_evidence)
    return max(mass / (1 + mass), float((nats > TOO_THIN).double().mean()))


def _where(guide: AutoFlow, draws: Tensor, regions: list[Missed]) -> str:
    """The coordinate by which the heaviest region is farthest from the draws, with its value there."""
    if not regions:
        return ""
    loc = regions[0].gaussian.loc
    index = int(((loc - draws.mean(0)).abs() / draws.std(0)).argmax())
    with torch.no_grad():
        there, here = guide.constrain(loc[None]), guide.constrain(draws)
    for name in guide.latent_names:
        size = math.prod(guide._unconstrained_shapes[name])
        if index < size:
            apart = ((there[name][0] - here[name].mean(0)).abs() / here[name].std(0)).reshape(-1)
            at = int(apart.nan_to_num().argmax())
            label = name if apart.numel() == 1 else f"{name}[{', '.join(map(str, _unravel(at, there[name][0])))}]"
            return f", such as near {label} = {float(there[name][0].reshape(-1)[at]):.3g}"
        index -= size
    return ""


def _unravel(index: int, like: Tensor) -> list[int]:
    return [int(i) for i in torch.unravel_index(torch.tensor(index), like.shape)]
