r"""Where to start: the best Gaussian along an optimisation path (Pathfinder's idea [1]).

A mode is a trap (centered hierarchies have none); the best *Gaussian* near the way to it is not. L-BFGS climbs the
log joint from the guide's own start, the curvature at points of its path gives one Gaussian each, and the one with
the highest ELBO wins, the guide's own start included.

**References**

[1] L. Zhang, B. Carpenter, A. Gelman, A. Vehtari (2022). Pathfinder: Parallel Quasi-Newton Variational Inference.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.density_gradient import DensityGradient
from ..objectives.draws import LogDensity
from .gaussians import Frame, odd_widths

#: Stands for a loss that is not finite: the line search then turns back.
FAR = 1e30


class _Late(Exception):
    """The time for a climb is over."""


def best_start(
    log_joint: LogDensity, init: Frame, num_iterations: int = 150, num_candidates: int = 8, until: float = math.inf
) -> Frame:
    """The best Gaussian along an L-BFGS path from ``init.loc``, or ``init`` itself.

    :param until: when to make do with what was found, by ``time.perf_counter``.
    """
    density = log_joint if isinstance(log_joint, DensityGradient) else DensityGradient(log_joint)
    return best_of(density, lbfgs_path(density, init.loc, num_iterations, until), init, num_candidates, until)


def best_of(
    density: DensityGradient, path: Sequence[Tensor], init: Frame, num_candidates: int, until: float = math.inf
) -> Frame:
    """The best Gaussian of the curvature at some points of a path, or ``init``; see :func:`best_start`."""
    noise = torch.randn(64, len(init.loc), dtype=init.loc.dtype, device=init.loc.device)
    best, best_elbo = init, _elbo(density, init, noise)
    points = _spread(path, num_candidates)
    for number, point in enumerate(points if until == math.inf else points[::-1]):
        if number and time.perf_counter() > until:
            break
        try:
            candidate = init.laplace(density, point)
            elbo = _elbo(density, candidate, noise)
        except (ValueError, RuntimeError):  # the model cannot be evaluated there, or not differentiated twice
            continue
        if elbo > best_elbo:
            best, best_elbo = candidate, elbo
    return best


def _elbo(log_joint: LogDensity, gaussian: Frame, noise: Tensor) -> Tensor:
    with torch.no_grad():
        return gaussian.elbo(log_joint, noise)


def lbfgs_path(density: DensityGradient, start: Tensor, num_iterations: int, until: float = math.inf) -> list[Tensor]:
    """Points of an L-BFGS ascent of the log joint, the start first."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]  # its import adds a filter of warnings

    path, units = [start], _units(density, start)

    def point(x: Any) -> Tensor:
        return (torch.as_tensor(x) * units).to(start)

    def loss(x: Any) -> tuple[float, Any]:
        try:
            value, grad = density.value_and_grad(point(x))
        except (ValueError, RuntimeError):  # a distribution refused an overshooting point
            return FAR, 0.0 * x
        if not torch.isfinite(value) or not torch.isfinite(grad).all():
            return FAR, 0.0 * x
        return -float(value), -(grad.double().cpu() * units).numpy()

    def note(x: Any) -> None:
        path.append(point(x).clone())
        if time.perf_counter() > until:
            raise _Late

    options = {"maxiter": num_iterations, "maxcor": 10, "ftol": 1e-9}
    first = (start.double().cpu() / units).numpy()
    with contextlib.suppress(_Late):
        minimize(loss, first, jac=True, method="L-BFGS-B", callback=note, options=options)
    return path


def _units(density: DensityGradient, start: Tensor) -> Tensor:
    """Widths of the density by its curvature at a point, where some are out of all proportion; else ones."""
    try:
        return odd_widths(density.hessian_diagonal(start)).double().cpu()
    except (ValueError, RuntimeError):  # the model cannot be evaluated there, or not differentiated twice
        return torch.ones(len(start), dtype=torch.float64)


def _spread(path: Sequence[Tensor], num: int) -> list[Tensor]:
    """At most ``num`` points, the last one among them, dense towards the end."""
    back = {len(path) - 1 - int(1.7**i - 1) for i in range(num)}
    return [path[i] for i in sorted(back) if i >= 0]
