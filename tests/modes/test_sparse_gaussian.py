"""Gaussians to start from that are sparse, of low rank, or diagonal, against those of a full matrix."""

import pytest
import torch

from pyro_nflows.engine.density_gradient import DensityGradient
from pyro_nflows.layers import LocScale, LowRankAffine, SparseAffine
from pyro_nflows.model.elimination import Elimination
from pyro_nflows.model.pattern import pattern_of
from pyro_nflows.modes.layer_gaussian import DiagonalGaussian
from pyro_nflows.modes.low_rank_gaussian import LowRankGaussian
from pyro_nflows.modes.sparse_gaussian import SparseGaussian

DIM = 40


def band(seed=0, dim=DIM):
    """A precision with three numbers beside the diagonal, and one latent that is tied to all."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(dim, dim, generator=generator, dtype=torch.float64).tril(-1).triu(-3)
    rows[-1, :-1] = 0.3 * torch.randn(dim - 1, generator=generator, dtype=torch.float64)
    precision = rows + rows.T
    return precision + torch.diag(precision.abs().sum(1) + 0.5)


def covariance_of(gaussian, dim=DIM):
    factor = gaussian.points(torch.eye(dim, dtype=torch.float64)) - gaussian.loc
    return factor.T @ factor


def density_of(precision):
    return DensityGradient(lambda z: -0.5 * ((z - 1) @ precision * (z - 1)).sum(-1))


def sparse(precision):
    elimination = Elimination.of(pattern_of(density_of(precision), torch.zeros(DIM, dtype=torch.float64)))
    return SparseGaussian(SparseAffine(elimination).double())


def test_a_sparse_gaussian_is_that_of_its_precision():
    precision = band()
    found = sparse(precision).laplace(density_of(precision), torch.ones(DIM, dtype=torch.float64))
    torch.testing.assert_close(covariance_of(found), torch.linalg.inv(precision))
    torch.testing.assert_close(2 * found.log_det, -torch.logdet(precision))
    z = torch.randn(5, DIM, dtype=torch.float64)
    torch.testing.assert_close(found.points(found.whitened(z)), z)


def test_a_sparse_gaussian_through_draws_has_their_conditional_distributions():
    precision = band(1)
    exact = sparse(precision).laplace(density_of(precision), torch.zeros(DIM, dtype=torch.float64))
    draws = exact.points(torch.randn(20_000, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    found = covariance_of(exact.through(draws))
    assert float((found @ precision - torch.eye(DIM)).abs().max()) < 5 * 3 / 20_000**0.5


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_gaussian_of_low_rank_is_exact_where_few_directions_are_known(scale):
    generator = torch.Generator().manual_seed(0)
    design = scale * torch.randn(6, DIM, generator=generator, dtype=torch.float64)
    precision = torch.eye(DIM, dtype=torch.float64) + design.T @ design
    start = LowRankGaussian(LowRankAffine(DIM, 8).double())
    found = start.laplace(density_of(precision), torch.ones(DIM, dtype=torch.float64))
    torch.testing.assert_close(covariance_of(found), torch.linalg.inv(precision), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(2 * found.log_det, -torch.logdet(precision))


def test_a_gaussian_of_low_rank_through_draws_has_their_widest_directions():
    generator = torch.Generator().manual_seed(0)
    factor = torch.nn.functional.normalize(torch.randn(DIM, 2, generator=generator, dtype=torch.float64))
    noise = torch.randn(10_000, DIM + 2, generator=generator, dtype=torch.float64)
    draws = 0.5 * noise[:, :DIM] + noise[:, DIM:] @ factor.T
    found = covariance_of(LowRankGaussian(LowRankAffine(DIM, 4).double()).through(draws))
    wanted = 0.25 * torch.eye(DIM) + factor @ factor.T
    assert float(torch.linalg.eigvals(torch.linalg.solve(wanted, found)).real.log().abs().max()) < 0.15


def test_a_diagonal_gaussian_has_the_curvature_of_each_coordinate():
    precision = torch.diag(torch.linspace(1, 5, DIM, dtype=torch.float64))
    found = DiagonalGaussian(LocScale(DIM).double()).laplace(density_of(precision), torch.ones(DIM).double())
    torch.testing.assert_close(covariance_of(found), torch.linalg.inv(precision))
