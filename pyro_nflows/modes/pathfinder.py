r"""Where to start: the best Gaussian along an optimisation path (Pathfinder's idea [1]).

A mode is a trap (centered hierarchies have none); the best *Gaussian* near the way to it is not. L-BFGS climbs the
log joint from the guide's own start, the curvature at points of its path gives one Gaussian each, and the one with
the highest ELBO wins, the guide's own start included.

**References**

[1] L. Zhang, B. Carpenter, A. Gelman, A. Vehtari (2022). Pathfinder: Parallel Quasi-Newton Variational Inference.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.density_gradient import DensityGradient
from ..objectives.draws import LogDensity

#: Stands for a loss that is not finite: the line search then turns back.
FAR = 1e30
#: A width, or one over it, from which on a coordinate climbs in units of its own.
ODD = 1e5


class Gaussian(NamedTuple):
    """A Gaussian by its mean and lower Cholesky factor."""

    loc: Tensor
    scale_tril: Tensor

    def points(self, x: Tensor) -> Tensor:
        """Standard normal rows ``(N, D)`` as draws."""
        return self.loc + x @ self.scale_tril.T

    def whitened(self, z: Tensor) -> Tensor:
        """The inverse of :meth:`points`."""
        return torch.linalg.solve_triangular(self.scale_tril, (z - self.loc).T, upper=False).T

    def elbo(self, log_joint: LogDensity, noise: Tensor) -> Tensor:
        """Its ELBO without the entropy's constant; ``-inf`` where a draw has no density."""
        value = log_joint(self.points(noise)).mean()
        value = value + self.scale_tril.diagonal().log().sum()
        return torch.where(torch.isfinite(value), value, -torch.inf)


def best_start(log_joint: LogDensity, init: Gaussian, num_iterations: int = 150, num_candidates: int = 8) -> Gaussian:
    """The best Gaussian along an L-BFGS path from ``init.loc``, or ``init`` itself."""
    density = log_joint if isinstance(log_joint, DensityGradient) else DensityGradient(log_joint)
    return best_of(density, lbfgs_path(density, init.loc, num_iterations), init, num_candidates)


def best_of(density: DensityGradient, path: Sequence[Tensor], init: Gaussian, num_candidates: int) -> Gaussian:
    """The best Gaussian of the curvature at some points of a path, or ``init``."""
    noise = torch.randn(64, len(init.loc), dtype=init.loc.dtype, device=init.loc.device)
    best, best_elbo = init, _elbo(density, init, noise)
    for point in _spread(path, num_candidates):
        try:
            candidate = _laplace(density, point, init)
            elbo = _elbo(density, candidate, noise)
        except (ValueError, RuntimeError):  # the model cannot be evaluated there, or not differentiated twice
            continue
        if elbo > best_elbo:
            best, best_elbo = candidate, elbo
    return best


def _elbo(log_joint: LogDensity, gaussian: Gaussian, noise: Tensor) -> Tensor:
    with torch.no_grad():
        return gaussian.elbo(log_joint, noise)


def lbfgs_path(density: DensityGradient, start: Tensor, num_iterations: int) -> list[Tensor]:
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

    options = {"maxiter": num_iterations, "maxcor": 10, "ftol": 1e-9}
    minimize(loss, (start.double().cpu() / units).numpy(), jac=True, method="L-BFGS-B", callback=note, options=options)
    return path


def _units(density: DensityGradient, start: Tensor) -> Tensor:
    """Widths of the density by its curvature at a point, where some are out of all proportion; else ones."""
    try:
        return _odd_widths(density.hessian(start)).double().cpu()
    except (ValueError, RuntimeError):  # the model cannot be evaluated there, or not differentiated twice
        return torch.ones(len(start), dtype=torch.float64)


def _odd_widths(hessian: Tensor) -> Tensor:
    widths = hessian.diagonal().abs().rsqrt()
    odd = (widths < 1 / ODD) & (widths > 0) | (widths > ODD) & (widths < torch.inf)
    return torch.where(odd, widths, 1.0)


def _spread(path: Sequence[Tensor], num: int) -> list[Tensor]:
    """At most ``num`` points, the last one among them, dense towards the end."""
    back = {len(path) - 1 - int(1.7**i - 1) for i in range(num)}
    return [path[i] for i in sorted(back) if i >= 0]


def _laplace(density: DensityGradient, point: Tensor, init: Gaussian) -> Gaussian:
    """The Gaussian of the curvature at a point; unit width along directions that are not convex."""
    precision = -density.hessian(point)
    if not torch.isfinite(precision).all():
        return init
    units = _odd_widths(precision)
    values, vectors = torch.linalg.eigh(0.5 * units * (precision + precision.T) * units[:, None])
    floor = 1e-8 * values.abs().max()
    width = torch.where(values > floor, values.clamp(min=floor).rsqrt(), 1.0)
    root = vectors * width
    covariance = root @ root.T
    scale_tril, failed = torch.linalg.cholesky_ex(0.5 * (covariance + covariance.T))
    return init if failed else Gaussian(point, units[:, None] * scale_tril)
