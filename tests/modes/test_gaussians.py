"""Gaussians to start from: that of a curvature which plates make sparse is the one that all of it gives."""

import copy

import pytest
import torch

from pyro_nflows.engine import DensityGradient
from pyro_nflows.flows.whitened import Whitened
from pyro_nflows.layers import LocScale, PlateAffine, TriangularAffine
from pyro_nflows.model.hierarchy import Hierarchy, Outline
from pyro_nflows.modes.gaussians import Gaussian, PlateGaussian, gaussian_of, gaussian_through

GROUPS = {"mu": Outline((2,), {}), "z": Outline((5, 3), {"groups": 0})}
NESTED = {
    "inner": Outline((2, 3, 2), {"inner": 0, "outer": 1}),
    "outer": Outline((3, 2), {"outer": 0}),
    "mu": Outline((2,), {}),
}
DEEP = {
    "mu": Outline((), {}),
    "a": Outline((2,), {"a": 0}),
    "b": Outline((2, 2), {"b": 0, "a": 1}),
    "c": Outline((2, 2, 2), {"c": 0, "b": 1, "a": 2}),
}
ROWS = {"z": Outline((4, 2), {"groups": 0})}


def precision_of(hierarchy: Hierarchy) -> torch.Tensor:
    """A matrix that couples each row with itself and with what it is within, and nothing else."""
    generator, dim = torch.Generator().manual_seed(0), hierarchy.dim
    matrix = torch.zeros(dim, dim, dtype=torch.float64)

    def add(columns: list[int]) -> None:
        part = torch.randn(len(columns), len(columns), generator=generator, dtype=torch.float64)
        matrix[torch.tensor(columns)[:, None], torch.tensor(columns)] += part @ part.T + torch.eye(len(columns))

    for block in hierarchy.blocks:
        for i, row in enumerate(block.columns.tolist()):
            outer = [hierarchy.blocks[above.block].columns[above.row[i]].tolist() for above in block.above]
            add([*hierarchy.top.tolist(), *(column for columns in outer for column in columns), *row])
    return matrix


@pytest.mark.parametrize("outlines", [GROUPS, NESTED, DEEP, ROWS], ids=["groups", "nested", "deep", "rows"])
def test_the_curvature_of_rows_gives_the_gaussian_that_all_of_it_gives(outlines):
    hierarchy = Hierarchy.of_outlines(outlines)
    precision, loc = precision_of(hierarchy), torch.linspace(-1, 1, hierarchy.dim, dtype=torch.float64)
    density = DensityGradient(lambda z: -0.5 * ((z - loc) @ precision * (z - loc)).sum(-1))
    start = PlateGaussian(PlateAffine(hierarchy).double())
    found, dense = start.laplace(density, loc), Gaussian(loc, torch.eye(len(loc)).double()).laplace(density, loc)
    factor = found.points(torch.eye(len(loc)).double()) - loc  # rows are images of unit vectors
    assert torch.allclose(factor.T @ factor, torch.linalg.inv(precision), atol=1e-10)
    assert torch.allclose(found.log_det, dense.log_det)
    x = torch.randn(5, len(loc), dtype=torch.float64)
    assert torch.allclose(found.whitened(found.points(x)), x)
    grad = torch.randn(5, len(loc), dtype=torch.float64)
    assert torch.allclose(found.pulled(grad), grad @ factor.T)


def test_directions_that_are_not_convex_get_a_width():
    hierarchy = Hierarchy.of_outlines(GROUPS)
    density = DensityGradient(lambda z: -0.5 * z[..., :2].square().sum(-1) + z[..., 2:].square().sum(-1))
    found = PlateGaussian(PlateAffine(hierarchy).double()).laplace(density, torch.zeros(17, dtype=torch.float64))
    assert torch.allclose(found.widths, torch.ones(17, dtype=torch.float64))


def test_a_curvature_that_is_not_finite_changes_nothing():
    hierarchy = Hierarchy.of_outlines(GROUPS)
    start = PlateGaussian(PlateAffine(hierarchy, init_scale=0.3).double())
    density = DensityGradient(lambda z: (z - 1).sqrt().sum(-1))
    assert start.laplace(density, torch.zeros(17, dtype=torch.float64)) is start


@pytest.mark.parametrize("outlines", [GROUPS, NESTED, DEEP, ROWS], ids=["groups", "nested", "deep", "rows"])
def test_the_gaussian_through_draws_has_their_moments(outlines):
    """Draws of one whose rows are independent given the rest: with many of them, it is found again."""
    hierarchy = Hierarchy.of_outlines(outlines)
    precision, loc = precision_of(hierarchy), torch.linspace(-1, 1, hierarchy.dim, dtype=torch.float64)
    covariance, num = torch.linalg.inv(precision), 20_000
    noise = torch.randn(num, len(loc), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = loc + noise @ torch.linalg.cholesky(covariance).T
    found = gaussian_through(Whitened(LocScale(len(loc)), PlateAffine(hierarchy)).double(), z)
    factor = found.points(torch.eye(len(loc)).double()) - found.loc
    widths = covariance.diagonal().sqrt()
    error = (factor.T @ factor - covariance) / (widths * widths[:, None])
    assert error.abs().max() < 5 * (2 / num) ** 0.5
    assert ((found.loc - loc) / widths).abs().max() < 5 / num**0.5


@pytest.mark.parametrize("end", [LocScale, TriangularAffine])
def test_an_affine_end_is_a_gaussian(end):
    layer = Whitened(LocScale(3), end(3, torch.arange(3.0), 0.5)).double()
    with torch.no_grad():
        for parameter in layer.end.parameters():
            parameter.add_(torch.randn_like(parameter))
    found, other = gaussian_of(layer), copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.end.parameters():
            parameter.zero_()
    found.place(other)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(other.end(x)[0], layer.end(x)[0])
    assert torch.allclose(found.points(x), layer.end(x)[0])
