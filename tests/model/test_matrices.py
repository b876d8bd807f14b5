"""Bijections to triangular and positive definite matrices; Wishart priors against their conjugate posteriors."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_nflows import VI, AutoFlow
from pyro_nflows.model.matrices import CholeskyFactor, PositiveDefinite
from pyro_nflows.model.supports import bijection, of_support

KINDS = [CholeskyFactor(), PositiveDefinite()]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("transform", KINDS)
def test_the_inverse_undoes_it_and_the_value_is_on_the_support(transform: CholeskyFactor, size: int) -> None:
    x = torch.randn(5, 2, size * (size + 1) // 2)
    y = transform(x)
    assert y.shape == transform.forward_shape(x.shape) == (5, 2, size, size)
    assert transform.inverse_shape(y.shape) == x.shape
    assert transform.codomain.check(y).all()
    torch.testing.assert_close(transform.inv(y), x)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("transform", KINDS)
def test_the_log_determinant_is_that_of_the_entries_on_and_below_the_diagonal(
    transform: CholeskyFactor, size: int
) -> None:
    x = torch.randn(size * (size + 1) // 2)
    row, column = torch.tril_indices(size, size)

    def entries(x: Tensor) -> Tensor:
        return transform(x)[row, column]

    expected = torch.linalg.slogdet(torch.autograd.functional.jacobian(entries, x)).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, transform(x)), expected)
    rows = torch.func.vmap(lambda x: transform.log_abs_det_jacobian(x, transform(x)))(x.expand(3, -1))
    torch.testing.assert_close(rows, expected.expand(3))


@pytest.mark.parametrize("transform", KINDS)
def test_vectors_of_no_triangle_and_matrices_that_are_not_square_are_told(transform: CholeskyFactor) -> None:
    with pytest.raises(ValueError, match="no triangular matrix has 4 entries"):
        transform(torch.zeros(4))
    with pytest.raises(ValueError, match=r"square matrices .* got shape \(2, 3\)"):
        transform.inverse_shape((2, 3))


@pytest.mark.parametrize(
    "support",
    [
        constraints.positive_definite,
        constraints.positive_semidefinite,
        constraints.lower_cholesky,
        dist.constraints.softplus_lower_cholesky,
    ],
)
def test_supports_of_matrices_have_a_bijection_also_where_they_are_wrapped(support: Any) -> None:
    fn = dist.ImproperUniform(support, (2,), (3, 3)).expand([4, 2]).to_event(1)
    value = bijection(fn)(torch.randn(4, 2, 6))
    assert value.shape == (4, 2, 3, 3)
    assert support.check(value).all()
    assert of_support(constraints.independent(support, 1)).log_abs_det_jacobian(torch.zeros(2, 6), value[0]).shape == ()


Y = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.tensor(
    [[1.0, 0.5], [0.0, 0.7]], dtype=torch.float64
)
PRIOR, DF = torch.eye(2, dtype=torch.float64) / 4, 4.0


def log_constant(df: float, scale: Tensor) -> float:
    """Of a Wishart density: the logarithm of what it is divided by."""
    half = torch.tensor(df / 2)
    return float(df * math.log(2) + half * torch.logdet(scale) + torch.mvlgamma(half, 2))


def precise(y: Tensor) -> None:
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(DF), covariance_matrix=PRIOR))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision), obs=y)


@pytest.mark.filterwarnings("ignore:Singular sample detected")  # torch says so of every draw that is not
def test_a_wishart_prior_gives_its_conjugate_posterior_and_evidence() -> None:
    vi = VI(AutoFlow(precise), seed=0, progress_bar=False).run(Y)
    df, scale = DF + len(Y), torch.linalg.inv(torch.linalg.inv(PRIOR) + Y.T @ Y)
    exact = log_constant(df, scale) - log_constant(DF, PRIOR) - len(Y) * math.log(2 * math.pi)
    found = vi.diagnostics()
    assert found["outcome"].name == "TRUST"
    assert float(found["iwae"]) == pytest.approx(exact, abs=0.02)
    draws = vi.get_samples(4000)["precision"]
    mean, error = df * scale, (df * (scale**2 + scale.diag()[:, None] * scale.diag())).sqrt() / math.sqrt(4000)
    assert ((draws.mean(0) - mean).abs() < 5 * error + 1e-3 * mean.abs()).all()
    torch.testing.assert_close(draws, draws.mT)
