"""Coordinates informed by the prior: a bijection, the identity when centered, and standard when not."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

from pyro_nflows.model.centering import KINDS, Centering, about_location, bijection, prior_of
from pyro_nflows.testing import check_coordinates

T = torch.tensor
LOC, SCALE = T([1.0, -2.0, 0.3]).double(), T([0.1, 2.0, 5.0]).double()
TRIL = T([[0.1, 0, 0], [1.0, 2.0, 0], [0.5, -1.0, 5.0]]).double()
#: A prior of each kind, made of a location, a scale and a scale matrix.
MAKE: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "Normal": lambda f, g, m: dist.Normal(f, g),
    "Normal, one scale": lambda f, g, m: dist.Normal(f, g[..., :1]).to_event(1),
    "StudentT": lambda f, g, m: dist.StudentT(3.0, f, g),
    "Cauchy": lambda f, g, m: dist.Cauchy(f, g).to_event(1),
    "Laplace": lambda f, g, m: dist.Laplace(f, g),
    "SoftLaplace": lambda f, g, m: dist.SoftLaplace(f, g),
    "AsymmetricLaplace": lambda f, g, m: dist.AsymmetricLaplace(f, g, 1.5),
    "SoftAsymmetricLaplace": lambda f, g, m: dist.SoftAsymmetricLaplace(f, g, 1.5, 0.5),
    "Logistic": lambda f, g, m: dist.Logistic(f, g),
    "SkewLogistic": lambda f, g, m: dist.SkewLogistic(f, g, 1.5),
    "Stable": lambda f, g, m: dist.StableWithLogProb(1.5, 0.3, g, f),
    "Gumbel": lambda f, g, m: dist.Gumbel(f, g),
    "LogNormal": lambda f, g, m: dist.LogNormal(f, g),
    "LogisticNormal": lambda f, g, m: dist.LogisticNormal(f, g),
    "HalfNormal": lambda f, g, m: dist.HalfNormal(g),
    "HalfCauchy": lambda f, g, m: dist.HalfCauchy(g).mask(True),
    "FoldedDistribution": lambda f, g, m: dist.FoldedDistribution(dist.StudentT(3.0, 0.0, g)),
    "Exponential": lambda f, g, m: dist.Exponential(g),
    "Gamma": lambda f, g, m: dist.Gamma(2.0, g),
    "InverseGamma": lambda f, g, m: dist.InverseGamma(2.0, g),
    "Beta": lambda f, g, m: dist.Beta(g, g + 0.5),
    "Pareto": lambda f, g, m: dist.Pareto(g, 2.0),
    "Weibull": lambda f, g, m: dist.Weibull(g, 0.3 + g),
    "MultivariateNormal": lambda f, g, m: dist.MultivariateNormal(f, scale_tril=m),
    "LowRankMultivariateNormal": lambda f, g, m: dist.LowRankMultivariateNormal(f, m[..., :1], g),
    "MultivariateStudentT": lambda f, g, m: dist.MultivariateStudentT(T(3.0), f, m),
    "TransformedDistribution": lambda f, g, m: shifted(f, -g),
    "TransformedDistribution, positive": lambda f, g, m: shifted(f, g, ExpTransform()).to_event(1),
    "TransformedDistribution, in (0, 1)": lambda f, g, m: shifted(f, g, SigmoidTransform()),
}


def shifted(loc: Tensor, scale: Tensor, *more: Any) -> Any:
    return dist.TransformedDistribution(dist.Normal(0.1, 2.0), [AffineTransform(loc, scale), *more])


PRIORS = {name: make(LOC, SCALE, TRIL) for name, make in MAKE.items()}
each_prior = pytest.mark.parametrize("name", PRIORS)
#: Kinds that have a shape beside their location and scale.
SHAPED = {"Beta"}
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


@pytest.mark.filterwarnings("ignore:Singular matrix:RuntimeWarning")
@each_prior
def test_a_model_is_the_same_in_coordinates_of_every_kind_of_prior(name: str) -> None:
    def model(offset: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        prior = MAKE[name](offset + a, (0.5 * a).exp(), TRIL.tril(-1) * a + (SCALE * a.exp()).diag())
        z = pyro.sample("z", prior.to_event(len(prior.batch_shape)))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=T(0.3))

    check_coordinates(model, LOC)


@pytest.mark.parametrize("name", sorted(set(PRIORS) - SHAPED))
def test_non_centered_the_prior_does_not_depend_on_location_and_scale(name: str) -> None:
    """The density of the coordinate is the same, wherever the prior is."""

    def density(prior: Any) -> Tensor:
        to_value = bijection(prior, T(0.0))
        value = to_value(v)
        log_det = to_value.log_abs_det_jacobian(v, value)
        return prior.log_prob(value).sum() + log_det.sum()

    v, make = torch.randn(3), MAKE[name]
    expected = density(make(torch.zeros(3), torch.ones(3), torch.eye(3)))
    torch.testing.assert_close(density(make(LOC, SCALE, TRIL)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda k: dist.Gamma(k, 3.0), lambda k: dist.InverseGamma(k, 3.0 * k)], ids=["Gamma", "InverseGamma"]
)
@pytest.mark.parametrize("size", [1e5, 1e7])
def test_concentrated_priors_of_positive_variables_are_standard_normal(make: Any, size: float) -> None:
    assert_standard(make(T(size).double()))


@pytest.mark.parametrize("size", [1e5, 1e7])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_concentrated_priors_of_shares_are_standard_normal(share: float, size: float) -> None:
    assert_standard(dist.Beta(T(share * size).double(), T((1 - share) * size).double()))


def assert_standard(prior: Any) -> None:
    v, to_value = torch.linspace(-2, 2, 5).double(), bijection(prior, T(0.0).double())
    value = to_value(v)
    density = prior.log_prob(value) + to_value.log_abs_det_jacobian(v, value)
    torch.testing.assert_close(density, dist.Normal(0.0, 1.0).log_prob(v), rtol=0, atol=0.05)


@each_prior
def test_its_density_is_the_priors(name: str) -> None:
    v, own = torch.randn(5, 3).double(), PRIORS[name]
    value = bijection(own, T(0.3))(v)
    torch.testing.assert_close(about_location(own, T(0.3), v).log_prob(value), own.log_prob(value))


@pytest.mark.parametrize(
    "make",
    [
        lambda f, g: dist.Normal(f, g),
        lambda f, g: dist.StudentT(4.0, f, g).expand([3]).to_event(1),
        lambda f, g: dist.Laplace(f, g).expand([2, 3]).mask(T([True, False, True])),
        lambda f, g: dist.MultivariateNormal(f.expand(3), scale_tril=g * torch.eye(3, dtype=f.dtype)).expand([2]),
    ],
)
def test_a_scale_far_below_the_location_leaves_the_density_as_it_is(make: Any) -> None:
    """In single precision the value is the location; the density, as a function of the coordinate, is right."""
    got = []
    for dtype in (torch.float32, torch.float64):
        v, fn = T([[0.5, -1.0, 2.0], [0.1, 0.2, -3.0]]).to(dtype), make(T(7.0).to(dtype), T(1e-9).to(dtype))
        got.append(about_location(fn, T(0.0).to(dtype), v).log_prob(bijection(fn, T(0.0).to(dtype))(v)).double())
    torch.testing.assert_close(got[0], got[1], rtol=1e-6, atol=1e-5)


def test_every_kind_of_prior_is_tested() -> None:
    found = set()
    for fn in PRIORS.values():
        while isinstance(fn, dist.Independent | dist.MaskedDistribution):
            fn = fn.base_dist
        found.add(next(kind for kind in KINDS if isinstance(fn, kind)))
    assert found == set(KINDS)


def test_a_distribution_without_location_and_scale_has_none() -> None:
    assert prior_of(dist.Dirichlet(torch.ones(3))) is None
    assert (
        prior_of(dist.TransformedDistribution(dist.Normal(0.0, 1.0), [ExpTransform(), AffineTransform(1, 2)])) is None
    )
    assert prior_of(dist.TransformedDistribution(dist.HalfNormal(1.0), [AffineTransform(0.0, 2.0)])) is None
    assert prior_of(dist.Kumaraswamy(T(2.0), 2.0)) is None
    assert prior_of(dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))) is None
