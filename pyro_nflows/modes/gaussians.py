r"""Gaussians to start from, and to climb in the coordinates of: of any covariance, or in the form of a guide's end."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.density_gradient import MAX_HESSIAN, DensityGradient
from ..flows.whitened import Whitened
from ..layers import LocScale, LowRankAffine, PlateAffine, SparseAffine, TriangularAffine
from ..model.rows import Rows as ChosenRows
from ..numerics import LogDensity
from ..triangles import log_scale_and_lower
from .layer_gaussian import DiagonalGaussian, LayerGaussian, elbo_of
from .low_rank_gaussian import LowRankGaussian
from .plate_curvature import Rows, factors, precision, probes
from .plate_moments import moments
from .sparse_curvature import SparseCurvature
from .sparse_gaussian import SparseGaussian

#: A width, or one over it, from which on a coordinate climbs in units of its own.
ODD = 1e5
#: A curvature below this share of the largest is none.
FLAT = 1e-8


class Gaussian(NamedTuple):
    """A Gaussian by its mean and lower Cholesky factor."""

    loc: Tensor
    scale_tril: Tensor

    @property
    def log_det(self) -> Tensor:
        """Of the factor."""
        return self.scale_tril.diagonal().log().sum()

    @property
    def widths(self) -> Tensor:
        """The factor's diagonal."""
        return self.scale_tril.diagonal()

    def points(self, x: Tensor) -> Tensor:
        """Standard normal rows ``(N, D)`` as draws."""
        return self.loc + x @ self.scale_tril.T

    def whitened(self, z: Tensor) -> Tensor:
        """The inverse of :meth:`points`."""
        return torch.linalg.solve_triangular(self.scale_tril, (z - self.loc).T, upper=False).T

    def pulled(self, grad: Tensor) -> Tensor:
        """Gradients in draws, as gradients in the standard normal rows."""
        return grad @ self.scale_tril

    def around(self, point: Tensor, width: float) -> "Gaussian":
        """One of the same form, of equal widths."""
        return Gaussian(point, width * torch.eye(len(point)).to(point))

    def laplace(self, density: DensityGradient, point: Tensor) -> "Gaussian":
        """That of the curvature at a point; unit width along directions that are not convex; or else this one."""
        precision = -density.hessian(point)
        if not torch.isfinite(precision).all():
            return self
        units = odd_widths(precision.diagonal())
        values, vectors = torch.linalg.eigh(0.5 * units * (precision + precision.T) * units[:, None])
        floor = FLAT * values.abs().max()
        width = torch.where(values > floor, values.clamp(min=floor).rsqrt(), 1.0)
        root = vectors * width
        covariance = root @ root.T
        scale_tril, failed = torch.linalg.cholesky_ex(0.5 * (covariance + covariance.T))
        return self if failed else Gaussian(point, units[:, None] * scale_tril)

    def elbo(self, log_joint: LogDensity, noise: Tensor) -> Tensor:
        """Its ELBO without the entropy's constant; ``-inf`` where a draw has no density."""
        return elbo_of(self, log_joint, noise)

    @torch.no_grad()
    def place(self, layer: Whitened) -> None:
        """Put a guide's affine end there; a diagonal end takes its conditional widths."""
        end = layer.end
        end.loc.copy_(self.loc)
        log_scale, lower = log_scale_and_lower(self.scale_tril)
        if isinstance(end, TriangularAffine):
            end.lower.copy_(lower)
        else:
            log_scale = -0.5 * torch.cholesky_inverse(self.scale_tril).diagonal().log()
        end.log_scale.copy_(log_scale)


def odd_widths(curvature: Tensor) -> Tensor:
    """Widths by the curvature in each coordinate, where they are out of all proportion; else ones."""
    widths = curvature.abs().rsqrt()
    odd = (widths < 1 / ODD) & (widths > 0) | (widths > ODD) & (widths < torch.inf)
    return torch.where(odd, widths, 1.0)


@dataclass(frozen=True)
class PlateGaussian(LayerGaussian):
    """A Gaussian in which rows of plates are independent given what they are within, as a layer."""

    end: PlateAffine

    def around(self, point: Tensor, width: float) -> "PlateGaussian":
        """One of the same form, of equal widths."""
        return PlateGaussian(PlateAffine(self.end.hierarchy, point, width, within=self.end.is_within).to(point))

    def laplace(self, density: DensityGradient, point: Tensor) -> "PlateGaussian":
        """That of the curvature at a point; unit width along directions that are not convex; or else this one."""
        hierarchy = self.end.hierarchy
        products = density.products(point, probes(hierarchy).to(point)).double()
        if not torch.isfinite(products).all():
            return self
        new = self.around(point, 1.0)
        _put(new.end, *factors(hierarchy, *precision(hierarchy, -products)))
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in new.end.parameters())
        return new if finite else self

    def through(self, z: Tensor) -> "PlateGaussian":
        """One of the moments of draws ``(N, D)``: rows are regressed on what they are within."""
        loc, scale_tril, rows = moments(self.end.hierarchy, z)
        new = self.around(loc.to(z), 1.0)
        _put(new.end, scale_tril, rows)
        return new


#: A Gaussian of any form.
Frame = Gaussian | PlateGaussian | SparseGaussian | LowRankGaussian | DiagonalGaussian


@torch.no_grad()
def gaussian_of(layer: Whitened) -> Frame:
    """The Gaussian that a guide's affine end is."""
    end = layer.end
    if isinstance(end, PlateAffine):
        return PlateGaussian(copy.deepcopy(end))
    if isinstance(end, SparseAffine):
        return SparseGaussian(copy.deepcopy(end), SparseCurvature(end.elimination))
    if isinstance(end, LowRankAffine):
        return LowRankGaussian(copy.deepcopy(end))
    if isinstance(end, LocScale) and end.input_dim > MAX_HESSIAN:
        return DiagonalGaussian(copy.deepcopy(end))
    matrix = end.scale_tril() if isinstance(end, TriangularAffine) else end.log_scale.exp().diag()
    return Gaussian(end.loc.detach().clone(), matrix)


@torch.no_grad()
def gaussian_at(layer: Whitened, loc: Tensor, width: float) -> Frame:
    """One of equal widths, in the form that a guide's affine end has."""
    return gaussian_of(layer).around(loc, width)


@torch.no_grad()
def independent(frame: Frame, loc: Tensor, widths: Tensor) -> Frame:
    """One of independent coordinates, in the same form."""
    if isinstance(frame, Gaussian):
        return Gaussian(loc, widths.diag())
    new = frame.around(loc, 1.0)
    new.end.log_scale.copy_(widths.log())
    return new


@torch.no_grad()
def gaussian_through(layer: Whitened, z: Tensor) -> Frame:
    """One of the moments of draws ``(N, D)``, in the form that a guide's affine end has."""
    frame = gaussian_of(layer)
    return frame_of(z) if isinstance(frame, Gaussian) else frame.through(z)


def frame_of(draws: Tensor) -> Gaussian:
    """The Gaussian of the draws' moments; of unit width where they do not differ."""
    covariance = torch.cov(draws.T, correction=0).reshape(draws.shape[1], -1)
    spread = covariance.diagonal()
    covariance = covariance + torch.diag(torch.where(spread > 0, 1e-6 * spread, 1.0))
    scale_tril, failed = torch.linalg.cholesky_ex(covariance)
    if failed:  # fewer draws than dimensions, up to rounding
        scale_tril = torch.diag(covariance.diagonal().sqrt())
    return Gaussian(draws.mean(0), scale_tril)


@torch.no_grad()
def _put(end: PlateAffine, scale_tril: Tensor, rows: Rows) -> None:
    """Set a layer's scales and matrices."""
    put_top(end, scale_tril)
    put_rows(end, ChosenRows.of(end.hierarchy, {}), rows)


@torch.no_grad()
def put_top(end: PlateAffine, scale_tril: Tensor) -> None:
    """Set the scales and the matrix of what is outside of plates."""
    log_scale, lower = log_scale_and_lower(scale_tril)
    end.log_scale[end.hierarchy.top] = log_scale.to(end.log_scale)
    if end.top is not None:
        end.top.copy_(lower)


@torch.no_grad()
def put_rows(end: PlateAffine, chosen: ChosenRows, rows: Rows) -> None:
    """Set the scales and matrices of chosen rows.

    :param chosen: which they are.
    :param rows: lower factors of each block's rows, with what they take from above.
    """
    for number, (block, (root, taken)) in enumerate(zip(chosen.hierarchy.blocks, rows)):
        log_scale, lower = log_scale_and_lower(root)
        columns, numbers = chosen.columns[block.columns], chosen.numbers[number]
        end.log_scale[columns] = log_scale.to(end.log_scale)
        if str(number) in end.within:
            end.within[str(number)][numbers] = lower.to(end.log_scale)
        if str(number) in end.above:
            end.above[str(number)][numbers] = (taken / log_scale.exp()[..., None]).to(end.log_scale)
