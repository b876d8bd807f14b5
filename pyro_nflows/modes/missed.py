r"""Is there mass that the guide never visits? Draws of the guide cannot say; ascents from other points can.

From points scattered around the posterior that was found, around the origin, and over the prior, L-BFGS ascents end
in some mode, and the best Gaussian :math:`g` on its way bounds that mode's mass from below: its ELBO is at most
:math:`\log \int_\mathrm{mode} p`. If the guide's own density is far too small at :math:`g`'s draws,

.. math:: \mathrm{median}\ \log p(x, z) - \log \hat Z - \log q(z) > t, \qquad z \sim g,

then that mass is missing. What no ascent reaches is not found: not detecting a problem does not prove there is none.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..engine import DensityGradient, OutOfTime
from ..layers.base import Layer
from ..numerics import LogDensity, standard_normal_log_prob
from .ascent import ascend
from .gaussians import Frame, Gaussian
from .pathfinder import best_of

#: How many nats too small the guide's density has to be before a region counts as missed.
TOO_THIN = 4.0
#: How far from the posterior that was found to start, in its standard deviations; basins are wide out there.
FAR_OUT = (10.0, 20.0, 40.0)
#: A distance for each coordinate, in standard deviations, up to which two ascents ended in the same place.
SAME = 0.1
#: Number of draws from each candidate Gaussian.
NUM_DRAWS = 200
#: How far each is moved, in standard deviations of that Gaussian, to see whether the density is smooth there.
MOVED = 1e-3
#: What an error of rounding in single precision becomes in double, and the nats from which a density is nothing but
#: that: where scales are next to nothing, differences of huge numbers are left.
FINER, ROUNDING = 2.0**-29, 1.0


class Missed(NamedTuple):
    """A region that the guide misses: a Gaussian there, and a lower bound of its mass as a share of what was found."""

    gaussian: Frame
    mass: float


def scattered(draws: Tensor, num: int) -> list[Tensor]:
    """Points where ascents begin: two in three far around the draws, and the rest around the origin as Stan does."""
    mean, sd = draws.mean(0), draws.std(0, correction=0)
    num_far = num - num // 3
    far = [mean + FAR_OUT[i % len(FAR_OUT)] * sd * torch.randn_like(mean) for i in range(num_far)]
    return [*far, *(4 * torch.rand_like(mean) - 2 for _ in range(num // 3))]


def missed_regions(
    log_joint: LogDensity | DensityGradient,
    layer: Layer,
    log_evidence: float,
    points: Sequence[Tensor],
    frame: Frame | None = None,
    precise: Callable[[Tensor], Tensor | None] = lambda z: None,
    until: float = math.inf,
) -> list[Missed]:
    """The missed regions that are found from these points, the heaviest first.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param layer: the trained flow; one without an inverse has no density to compare, and nothing is found.
    :param log_evidence: of the mass that the guide found.
    :param points: where to start.
    :param frame: a Gaussian of about the posterior's shape, in whose coordinates to climb.
    :param precise: the log density in double precision, or None where it cannot be had: far out, in single precision, a
        density may be nothing but rounding.
    :param until: when to stop looking, by ``time.perf_counter``.
    """
    if not layer.has_inverse or not math.isfinite(log_evidence) or not points:
        return []
    found, density = [], log_joint if isinstance(log_joint, DensityGradient) else DensityGradient(log_joint)
    frame = frame or Gaussian(torch.zeros_like(points[0]), torch.eye(len(points[0])).to(points[0]))
    with contextlib.suppress(OutOfTime):
        for path in _distinct(ascend(density, torch.stack(list(points)), frame, until=until), frame):
            if time.perf_counter() > until:
                break
            with contextlib.suppress(ValueError, RuntimeError):  # far out, a model may refuse to be evaluated
                found.append(_region_of(density, layer, log_evidence, path, precise, frame))
    return sorted((missed for missed in found if missed), key=lambda missed: -missed.mass)


@torch.no_grad()
def excess(layer: Layer, z: Tensor, log_p: Tensor, log_evidence: float) -> Tensor:
    r"""How many nats too small the guide's density is: :math:`\log p(x, z) - \log \hat Z - \log q(z)`, a row each."""
    x, log_weight = layer.inverse(z)
    nats = log_p - log_evidence - standard_normal_log_prob(x) + log_weight
    return torch.where(torch.isfinite(log_p), nats.nan_to_num(nan=torch.inf), -torch.inf)


def _distinct(paths: Sequence[Tensor], frame: Frame) -> list[Tensor]:
    """One path of those that end in the same place."""
    ends = torch.stack([path[-1] for path in paths])
    x = frame.whitened(ends)
    apart = torch.cdist(x, x) > SAME * math.sqrt(x.shape[1])
    return [path for i, path in enumerate(paths) if bool(apart[i, :i].all())]


def _region_of(
    log_joint: DensityGradient,
    layer: Layer,
    log_evidence: float,
    path: Tensor,
    precise: Callable[[Tensor], Tensor | None],
    frame: Frame,
) -> Missed | None:
    point = path[0]
    mode = best_of(log_joint, list(path), frame.around(point, 0.1), num_candidates=4)
    noise = torch.randn(NUM_DRAWS, len(point)).to(point)
    with torch.no_grad():
        z, moved = mode.points(noise), mode.points(noise + MOVED * torch.randn_like(noise))
        log_g = standard_normal_log_prob(noise) - mode.log_det
        log_p = log_joint(z)
        if not float(excess(layer, z, log_p, log_evidence).median()) > TOO_THIN:
            return None
        better = precise(z) if z.dtype != torch.float64 else None
        if better is not None and _median((better - log_p.double()) * FINER) > ROUNDING:
            return None
        near = log_joint(moved) if better is None else cast(Tensor, precise(moved))
        log_p = log_p if better is None else better
        if _median(near - log_p) > ROUNDING + 1e-6 * _median(log_p):
            return None
        log_p = log_p.to(z)
    if bool((log_p == torch.inf).any()) or float(log_p.isnan().double().mean()) > 0.1:
        return None  # a density that overflows there is not to be believed around there either
    mass = float((log_p - log_g).mean()) - log_evidence
    if not float(excess(layer, z, log_p, log_evidence).median()) > TOO_THIN or not math.isfinite(mass):
        return None
    return Missed(mode, math.exp(min(mass, 50.0)))


def _median(nats: Tensor) -> float:
    """Of how far they are from zero, where they are numbers at all."""
    return float(nats[torch.isfinite(nats)].abs().median().nan_to_num(0.0))
