r"""Where to start: the best Gaussian along an optimisation path (Pathfinder's idea [1]).

A mode is a trap (centered hierarchies have none); the best *Gaussian* near the way to it is not. L-BFGS climbs the
log joint from the guide's own start, the curvature at points of its path gives one Gaussian each, and the one with
the highest ELBO wins, the guide's own start included. Where the gradient at its draws says that its mean should be
elsewhere, it is moved there by steps of Newton's. Where even that is far from the density, as where this has no
bound, the ELBO itself is climbed (:mod:`~pyro_nflows.modes.averaged`), from the best Gaussian so far and from the
guide's own start, and points of these paths are candidates too: the first may begin next to where the density has no
bound, the second may leap to where a hierarchy's scale is next to none and no slope leads back.

**References**

[1] L. Zhang, B. Carpenter, A. Gelman, A. Vehtari (2022). Pathfinder: Parallel Quasi-Newton Variational Inference.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.budget import OutOfTime
from ..engine.density_gradient import DensityGradient
from ..objectives.draws import LogDensity
from ..system.randomness import forked
from .averaged import averaged_path
from .gaussians import Frame, independent, odd_widths
from .lbfgs import FAR, climbed

#: Nats from a mode, or by which an ELBO would rise, that are as good as none.
NEAR = 1.0
#: Nats, and as many for each latent, by which a Gaussian's ELBO may be below what it would be if the density were one.
SHORT, SHORT_EACH = 5.0, 0.5
#: The share of the time for a start that the climb may take; the rest is for choosing a Gaussian on its way.
CLIMBING = 0.6
#: Draws by which that is seen, each with its mirror image, and steps of Newton's that are tried against it.
NUM_PAIRS, NUM_MOVES = 32, 4


def best_start(
    log_joint: LogDensity, init: Frame, num_iterations: int = 150, num_candidates: int = 8, until: float = math.inf
) -> Frame:
    """The best Gaussian along an L-BFGS path from ``init.loc``, moved by Newton's steps where its mean should be
    elsewhere, or, where that is far off, along climbs of the ELBO; or ``init`` itself.

    :param until: when to make do with what was found, by ``time.perf_counter``.
    """
    density = log_joint if isinstance(log_joint, DensityGradient) else DensityGradient(log_joint)
    best, path = best_on_way(density, init, num_iterations, num_candidates, until)
    try:
        if time.perf_counter() > until:
            return best
        best, is_far_off = _moved(density, init, best, path[-1], until)
        if not is_far_off:
            return best
    except OutOfTime:
        return best
    found = best
    for first in (best,) if best is init else (best, init):
        if time.perf_counter() < until:
            path, widths = averaged_path(density, first.loc, first.widths, until=until)
            last = independent(init, path[-1], widths)
            found = best_of(density, path, found, num_candidates, until, others=[last])
    return found


def best_on_way(
    density: DensityGradient,
    init: Frame,
    num_iterations: int = 150,
    num_candidates: int = 8,
    until: float = math.inf,
) -> tuple[Frame, list[Tensor]]:
    """The best Gaussian on the way to a mode, which is all that is looked at, and the points of that way.

    Where a climb ends below zero in unconstrained space, as one does that begins where the density overflows, it is
    done again from there.
    """
    now = time.perf_counter()
    path = lbfgs_path(density, init.loc, num_iterations, now + CLIMBING * (until - now))
    if bool(init.loc.any()) and _is_below_zero(density, path[-1]):
        init = independent(init, torch.zeros_like(init.loc), init.widths)
        path = lbfgs_path(density, init.loc, num_iterations, now + CLIMBING * (until - now))
    return best_of(density, path, init, num_candidates, until), path


@torch.no_grad()
def _is_below_zero(density: DensityGradient, point: Tensor) -> bool:
    """Whether a density is clearly higher at zero in unconstrained space than at a point."""
    try:
        there, at_zero = density(torch.stack([point, torch.zeros_like(point)]))
    except (ValueError, RuntimeError, OutOfTime):
        return False
    return bool(at_zero.isfinite() & (there < at_zero - NEAR))


def best_of(
    density: DensityGradient,
    path: Sequence[Tensor],
    init: Frame,
    num_candidates: int,
    until: float = math.inf,
    others: Sequence[Frame] = (),
) -> Frame:
    """The best Gaussian of the curvature at some points of a path, or ``init``; see :func:`best_start`.

    :param others: are compared too.
    """
    noise = torch.randn(64, len(init.loc), dtype=init.loc.dtype, device=init.loc.device)
    known = list[tuple[Tensor, Frame]]()
    with contextlib.suppress(OutOfTime):
        for each in (init, *others):
            known.append((_elbo(density, each, noise), each))
    best_elbo, best = max(known, key=lambda pair: float(pair[0]), default=(noise.new_tensor(-math.inf), init))
    points = _spread(path, num_candidates)
    for number, point in enumerate(points if until == math.inf else points[::-1]):
        if number and time.perf_counter() > until:
            break
        try:
            candidate = init.laplace(density, point)
            elbo = _elbo(density, candidate, noise)
        except (ValueError, RuntimeError):  # the model cannot be evaluated there, or not differentiated twice
            continue
        except OutOfTime:
            break
        if elbo > best_elbo:
            best, best_elbo = candidate, elbo
    return best


def _moved(density: DensityGradient, init: Frame, best: Frame, mode: Tensor, until: float) -> tuple[Frame, bool]:
    """A Gaussian, moved by a few steps of Newton's while its ELBO rises, and whether it is far off even then.

    An ascent by gradients ends early where the density is much wider in one direction than in another.

    :param init: its form.
    :param best: where it begins.
    :param mode: where the ascent ended, which is not to be much denser than its mean.
    """
    seen = _looked(density, best, mode)
    for _ in range(NUM_MOVES):
        if not seen.is_far_off or time.perf_counter() > until:
            break
        try:
            other = init.laplace(density, best.points(seen.step[None])[0])
            its = _looked(density, other, mode)
        except (ValueError, RuntimeError):  # the model cannot be evaluated there, or not differentiated twice
            break
        if not its.elbo > seen.elbo:
            break
        best, seen = other, its
    return best, seen.is_far_off


class _Seen(NamedTuple):
    """What draws of a Gaussian show of it.

    :param elbo: its ELBO.
    :param step: to where its mean should be, in its own units, if the curvature is what it should be.
    :param is_far_off: whether it is not the mode's, or the density at its draws nothing like that at its mean; or
        whether the ELBO would rise by that step.
    """

    elbo: float
    step: Tensor
    is_far_off: bool


@torch.no_grad()
def _looked(density: DensityGradient, gaussian: Frame, mode: Tensor) -> _Seen:
    """What fixed draws show of a Gaussian.

    The mean gradient in its own units is the step to where its mean should be, by half the square of which the ELBO
    would rise.
    """
    dim = len(gaussian.loc)
    with forked(seed=0):
        noise = torch.randn(NUM_PAIRS, dim, dtype=gaussian.loc.dtype, device=gaussian.loc.device)
    at_mean, at_mode = density(torch.stack([gaussian.loc, mode]))
    values, grads = density.values_and_grads(gaussian.points(torch.cat([noise, -noise])))
    slope = gaussian.pulled(grads).reshape(2, NUM_PAIRS, dim).mean(0)
    step = slope.mean(0)
    rise = 0.5 * (step.square() - slope.var(0) / NUM_PAIRS).sum()
    short = at_mean - dim / 2 - values.mean()
    is_near = bool(at_mode - at_mean < NEAR and short < SHORT + SHORT_EACH * dim and rise < NEAR)
    return _Seen(float((values.mean() + gaussian.log_det).nan_to_num(-math.inf)), step, not is_near)


def _elbo(log_joint: LogDensity, gaussian: Frame, noise: Tensor) -> Tensor:
    with torch.no_grad():
        return gaussian.elbo(log_joint, noise)


def lbfgs_path(density: DensityGradient, start: Tensor, num_iterations: int, until: float = math.inf) -> list[Tensor]:
    """Points of an L-BFGS ascent of the log joint, the start first."""
    units = _units(density, start)

    def point(x: Any) -> Tensor:
        return (torch.as_tensor(x) * units).to(start)

    def loss(x: Any) -> tuple[float, Any]:
        value, grad = density.value_and_grad(point(x))
        if not torch.isfinite(value) or not torch.isfinite(grad).all():
            return FAR, 0.0 * x
        return -float(value), -(grad.double().cpu() * units).numpy()

    first = (start.double().cpu() / units).numpy()
    return [start, *(point(x) for x in climbed(loss, first, num_iterations, until))]


def _units(density: DensityGradient, start: Tensor) -> Tensor:
    """Widths of the density by its curvature at a point, where some are out of all proportion; else ones."""
    try:
        return odd_widths(density.hessian_diagonal(start)).double().cpu()
    except (ValueError, RuntimeError, OutOfTime):  # the model cannot be evaluated there, or not differentiated twice
        return torch.ones(len(start), dtype=torch.float64)


def _spread(path: Sequence[Tensor], num: int) -> list[Tensor]:
    """At most ``num`` points, the last one among them, dense towards the end."""
    back = {len(path) - 1 - int(1.7**i - 1) for i in range(num)}
    return [path[i] for i in sorted(back) if i >= 0]
