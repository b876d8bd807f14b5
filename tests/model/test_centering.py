"""Coordinates informed by the prior: a bijection, the identity when centered, and standard when not."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch.distributions.transforms import ComposeTransform

from pyro_nflows.model import supports
from pyro_nflows.model.centering import Centering, prior_of

T = torch.tensor
PRIORS: dict[str, Any] = {
    "Normal": dist.Normal(T([1.0, -2.0, 0.3]), T([0.1, 2.0, 5.0])),
    "Normal, one scale": dist.Normal(T([1.0, -2.0, 0.3]), 0.5),
    "StudentT": dist.StudentT(3.0, T([1.0, -2.0, 0.3]), T([0.1, 2.0, 5.0])),
    "Cauchy": dist.Cauchy(T([1.0, -2.0, 0.3]), T([0.1, 2.0, 5.0])).to_event(1),
    "Laplace": dist.Laplace(T([1.0, -2.0, 0.3]), 0.2),
    "LogNormal": dist.LogNormal(T([1.0, -2.0, 0.3]), T([0.1, 2.0, 0.5])),
    "HalfNormal": dist.HalfNormal(T([0.1, 2.0, 5.0])),
    "HalfCauchy": dist.HalfCauchy(T([0.1, 2.0, 5.0])).mask(True),
    "Exponential": dist.Exponential(T([0.1, 2.0, 5.0])),
    "Gamma": dist.Gamma(2.0, T([0.1, 2.0, 5.0])),
    "InverseGamma": dist.InverseGamma(2.0, T([0.1, 2.0, 5.0])),
    "Weibull": dist.Weibull(T([0.1, 2.0, 5.0]), T([0.5, 1.0, 4.0])),
    "MultivariateNormal": dist.MultivariateNormal(
        T([1.0, -2.0, 0.3]), scale_tril=T([[0.1, 0, 0], [1.0, 2.0, 0], [0.5, -1.0, 5.0]])
    ),
}
each_prior = pytest.mark.parametrize("name", PRIORS)
CENTERINGS = [0.0, 0.3, 1.0, T([0.0, 0.5, 1.0])]


def located(name: str) -> Any:
    found = prior_of(PRIORS[name])
    assert found is not None
    return found._replace(loc=found.loc.double(), scale=found.scale.double())


@each_prior
@pytest.mark.parametrize("centering", CENTERINGS, ids=str)
def test_it_is_a_bijection_with_the_jacobian_of_autograd(name: str, centering: Any) -> None:
    transform, v = Centering(located(name), torch.as_tensor(centering).double()), torch.randn(3).double()
    z = transform(v)
    torch.testing.assert_close(transform.inv(z), v)
    jacobian = torch.autograd.functional.jacobian(transform, v)
    torch.testing.assert_close(transform.log_abs_det_jacobian(v, z).sum(), torch.linalg.slogdet(jacobian)[1])


@each_prior
def test_centered_it_is_the_latent_itself(name: str) -> None:
    v = torch.randn(5, 3).double()
    torch.testing.assert_close(Centering(located(name), T(1.0).double())(v), v)


@each_prior
def test_non_centered_the_prior_does_not_depend_on_location_and_scale(name: str) -> None:
    """The density of the coordinate is that of a prior of location zero and scale one, wherever the prior is."""
    v, own, prior = torch.randn(3).double(), PRIORS[name], located(name)
    to_value = ComposeTransform([Centering(prior, T(0.0).double()), supports.bijection(own)])
    value = to_value(v)
    got = own.log_prob(value).sum() + to_value.log_abs_det_jacobian(v, value).sum()
    standard = {
        "StudentT": dist.StudentT(T(3.0)),
        "Cauchy": dist.Cauchy(T(0.0), 1.0),
        "Laplace": dist.Laplace(T(0.0), 1.0),
        "HalfNormal": dist.HalfNormal(T(1.0)),
        "HalfCauchy": dist.HalfCauchy(T(1.0)),
        "Exponential": dist.Exponential(T(1.0)),
        "Gamma": dist.Gamma(T(2.0), 1.0),
        "InverseGamma": dist.InverseGamma(T(2.0), 1.0),
        "Weibull": dist.Weibull(T(1.0), 1.0),
    }.get(name, dist.Normal(T(0.0), 1.0))
    bijection = supports.bijection(standard)
    x = bijection(v)
    expected = standard.log_prob(x).sum() + bijection.log_abs_det_jacobian(v, x).sum()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_distribution_without_location_and_scale_has_none() -> None:
    assert prior_of(dist.Beta(T(2.0), 2.0)) is None
    assert prior_of(dist.Dirichlet(torch.ones(3))) is None
    assert prior_of(dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))) is None
