r"""A Gaussian with scales and a few directions, found by Lanczos' method from products with the Hessian.

In units in which the precision :math:`\Lambda` has ones on its diagonal, and in those of the model, directions are
found whose precision :math:`\lambda` is furthest from one, by the nats :math:`(\lambda - 1 - \log \lambda) / 2` that it
would cost to leave them out.

**References**

[1] Y. Saad (2011). Numerical Methods for Large Eigenvalue Problems, chapter 6.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.density_gradient import DensityGradient
from ..layers import LowRankAffine
from .layer_gaussian import LayerGaussian

#: Products for each direction, and besides.
FOR_EACH, BESIDES = 2, 20
#: A precision below this is none.
FLAT = 1e-6


@dataclass(frozen=True)
class LowRankGaussian(LayerGaussian):
    """A Gaussian with a scale for each coordinate, and other widths in a few directions.

    Example::

        >>> LowRankGaussian(LowRankAffine(5, 2)).around(torch.ones(5), 0.5).widths
        tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000])
    """

    end: LowRankAffine

    @property
    def log_det(self) -> Tensor:
        """Of the factor."""
        return self.end.log_scale.detach().sum() + self.end.log_widths.detach().sum()

    def around(self, point: Tensor, width: float) -> "LowRankGaussian":
        """One of the same form, of equal widths."""
        rank = len(self.end.log_widths)
        return LowRankGaussian(LowRankAffine(len(point), rank, point, width).to(point))

    @torch.no_grad()
    def laplace(self, density: DensityGradient, point: Tensor) -> "LowRankGaussian":
        """That of the curvature at a point; unit width along directions that are not convex; or else this one."""
        diagonal = -density.hessian_diagonal(point)
        if not torch.isfinite(diagonal).all():
            return self
        units = torch.where(diagonal > 0, diagonal.clamp(min=1e-30).rsqrt(), 1.0)
        found = [self._by_lanczos(density, point, each) for each in (units, torch.ones_like(units))]
        noise = torch.randn(64, len(point), generator=torch.Generator().manual_seed(0), device="cpu").to(point)
        return max(found, key=lambda gaussian: float(gaussian.elbo(density, noise)))

    def _by_lanczos(self, density: DensityGradient, point: Tensor, units: Tensor) -> "LowRankGaussian":
        new = self.around(point, 1.0)
        rank = len(new.end.log_widths)
        start = torch.randn(len(point), generator=torch.Generator().manual_seed(0), device="cpu").to(point)
        basis, matrix = lanczos(lambda v: -units * density.products(point, (units * v)[None])[0], start, _steps(rank))
        values, vectors = torch.linalg.eigh(matrix)
        usable = torch.where(values > FLAT, values, 1.0)
        chosen = (usable - 1 - usable.log()).topk(min(rank, len(values))).indices
        directions = vectors[:, chosen].T @ basis
        new.end.directions.copy_(_completed(directions.to(point), new.end.directions))
        new.end.log_widths[: len(chosen)] = -0.5 * usable[chosen].log().to(point)
        new.end.log_scale.copy_(units.log())
        return new

    @torch.no_grad()
    def through(self, z: Tensor) -> "LowRankGaussian":
        """One of the moments of draws ``(N, D)``: of those directions that their principal components are."""
        new = self.around(z.mean(0), 1.0)
        spread = z.std(0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        x = ((z - z.mean(0)) / spread).double()
        _, values, directions = torch.linalg.svd(x / len(x) ** 0.5, full_matrices=False)
        rank = min(len(new.end.log_widths), len(values))
        new.end.directions.copy_(_completed(directions[:rank].to(z), new.end.directions))
        rest = (x.shape[1] - values[:rank].square().sum()).clamp(min=1e-3 * x.shape[1]) / max(1, x.shape[1] - rank)
        new.end.log_scale.copy_(spread.log() + 0.5 * rest.log())
        new.end.log_widths[:rank] = (values[:rank].clamp(min=1e-6).log() - 0.5 * rest.log()).to(z)
        return new


def lanczos(matrix: Callable[[Tensor], Tensor], start: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Orthonormal rows ``(K, D)``, and the symmetric matrix in their coordinates, ``(K, K)``; in double precision.

    :param matrix: a vector times a symmetric matrix.
    :param start: a vector.
    :param num_steps: :math:`K` at most; fewer where a subspace is found that the matrix maps into itself.

    Example::

        >>> basis, matrix = lanczos(lambda v: torch.tensor([1.0, 2.0]) * v, torch.ones(2), 5)
        >>> torch.linalg.eigvalsh(matrix)
        tensor([1.0000, 2.0000], dtype=torch.float64)
    """
    rows = [start.double() / start.double().norm()]
    images = list[Tensor]()
    for _ in range(min(num_steps, len(start))):
        images.append(matrix(rows[-1].to(start)).double())
        basis = torch.stack(rows)
        left = images[-1]
        for _ in range(2):  # once more against rounding
            left = left - basis.T @ (basis @ left)
        if len(rows) == min(num_steps, len(start)) or not float(left.norm()) > 1e-5 * float(images[-1].norm()):
            break
        rows.append(left / left.norm())
    basis = torch.stack(rows[: len(images)])
    square = basis @ torch.stack(images).T
    return basis, 0.5 * (square + square.T)


def _steps(rank: int) -> int:
    return FOR_EACH * rank + BESIDES


def _completed(directions: Tensor, others: Tensor) -> Tensor:
    """Orthonormal rows, the first of them given ones."""
    rows = torch.cat([directions, others])[: len(others)].double()
    found = torch.linalg.qr(rows.T)[0].T.to(directions)
    return torch.cat([directions, found[len(directions) :]])
