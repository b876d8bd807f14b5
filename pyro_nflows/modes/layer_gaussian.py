"""Gaussians that are the affine end of a guide as it is, without a matrix of all latents."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..engine.density_gradient import DensityGradient
from ..flows.whitened import Whitened
from ..layers import LocScale
from ..numerics import LogDensity


class Placed(Protocol):
    """What the ELBO of a Gaussian takes."""

    @property
    def log_det(self) -> Tensor:
        """Of the factor."""

    def points(self, x: Tensor) -> Tensor:
        """Standard normal rows ``(N, D)`` as draws."""


def elbo_of(gaussian: Placed, log_joint: LogDensity, noise: Tensor) -> Tensor:
    """The ELBO without the entropy's constant; ``-inf`` where a draw has no density."""
    value = log_joint(gaussian.points(noise)).mean() + gaussian.log_det
    return torch.where(torch.isfinite(value), value, -torch.inf)


@dataclass(frozen=True)
class LayerGaussian:
    """A Gaussian as a layer with a ``loc`` and a ``log_scale``, whose log-determinant is the sum of that.

    :param end: the layer.
    """

    end: Any

    @property
    def loc(self) -> Tensor:
        """The mean."""
        loc: Tensor = self.end.loc.detach()
        return loc

    @property
    def log_det(self) -> Tensor:
        """Of the factor."""
        total: Tensor = self.end.log_scale.detach().sum()
        return total

    @property
    def widths(self) -> Tensor:
        """The factor's diagonal."""
        widths: Tensor = self.end.log_scale.detach().exp()
        return widths

    @torch.no_grad()
    def points(self, x: Tensor) -> Tensor:
        """Standard normal rows ``(N, D)`` as draws."""
        points: Tensor = self.end(x)[0]
        return points

    @torch.no_grad()
    def whitened(self, z: Tensor) -> Tensor:
        """The inverse of :meth:`points`."""
        white: Tensor = self.end.inverse(z)[0]
        return white

    def pulled(self, grad: Tensor) -> Tensor:
        """Gradients in draws, as gradients in the standard normal rows."""
        with torch.enable_grad():
            x = torch.zeros_like(grad).requires_grad_()
            return torch.autograd.grad(self.end(x)[0], x, grad)[0]

    def elbo(self, log_joint: LogDensity, noise: Tensor) -> Tensor:
        """Its ELBO without the entropy's constant; ``-inf`` where a draw has no density."""
        return elbo_of(self, log_joint, noise)

    @torch.no_grad()
    def place(self, layer: Whitened) -> None:
        """Put a guide's end there."""
        layer.end.load_state_dict(self.end.state_dict())


@dataclass(frozen=True)
class DiagonalGaussian(LayerGaussian):
    """A Gaussian with independent coordinates.

    Example::

        >>> DiagonalGaussian(LocScale(3)).around(torch.ones(3), 0.5).widths
        tensor([0.5000, 0.5000, 0.5000])
    """

    def around(self, point: Tensor, width: float) -> "DiagonalGaussian":
        """One of the same form, of equal widths."""
        return DiagonalGaussian(LocScale(len(point), point, width).to(point))

    @torch.no_grad()
    def laplace(self, density: DensityGradient, point: Tensor) -> "DiagonalGaussian":
        """That of the curvature at a point; unit width along coordinates that are not convex; or else this one."""
        curvature = -density.hessian_diagonal(point)
        if not torch.isfinite(curvature).all():
            return self
        new = self.around(point, 1.0)
        new.end.log_scale.copy_(torch.where(curvature > 0, -0.5 * curvature.clamp(min=1e-30).log(), 0.0))
        return new

    @torch.no_grad()
    def through(self, z: Tensor) -> "DiagonalGaussian":
        """One of the moments of draws ``(N, D)``."""
        new = self.around(z.mean(0), 1.0)
        spread = z.var(0, correction=0)
        new.end.log_scale.copy_(0.5 * torch.where(spread > 0, spread, 1.0).log())
        return new
