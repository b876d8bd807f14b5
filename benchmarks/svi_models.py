"""Twelve small models for plain ``SVI``: shapes and supports that people have, data made on the spot or written out."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

_GENERATOR = torch.Generator().manual_seed(0)
_SPEED = torch.tensor([4.0, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 24])
_DISTANCE = torch.tensor([2.0, 4, 16, 10, 18, 17, 20, 34, 26, 54, 32, 42, 46, 48, 70])
_EFFECT = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
_ERROR = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
_DESIGN = torch.randn(100, 5, generator=_GENERATOR)
_LOGITS = _DESIGN @ torch.tensor([1.0, -2, 0.5, 0, 1])
_CHOICE = (torch.rand(100, generator=_GENERATOR) < _LOGITS.sigmoid()).float()
_MIXING = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [-0.3, 0.5, 0.8]])
_RETURNS = torch.randn(50, 3, generator=_GENERATOR) @ _MIXING.T
_TIME = torch.linspace(0, 3, 100)
_TREND = 5 + 3 * _TIME + 0.3 * torch.randn(100, generator=_GENERATOR)


def cars() -> None:
    """README's regression."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 50.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(20.0))
    with pyro.plate("car", len(_SPEED)):
        pyro.sample("distance", dist.Normal(intercept + slope * _SPEED, sigma), obs=_DISTANCE)


def schools_centered() -> None:
    """Eight schools, centered."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, _ERROR), obs=_EFFECT)


def schools_noncentered() -> None:
    """Eight schools, non-centered."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, _ERROR), obs=_EFFECT)


def tree() -> None:
    """A conjugate tree of three normals."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 2):
        y = pyro.sample("y", dist.Normal(x, 1.0))
        pyro.sample("obs", dist.Normal(y, 1.0), obs=torch.tensor([0.66, 0.27]))


def logistic() -> None:
    """Logistic regression, five coefficients."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(5), 2.0).to_event(1))
    with pyro.plate("n", 100):
        pyro.sample("y", dist.Bernoulli(logits=(_DESIGN * beta).sum(-1)), obs=_CHOICE)


def poisson() -> None:
    """One rate."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("n", 4):
        pyro.sample("y", dist.Poisson(rate), obs=torch.tensor([3.0, 5, 2, 4]))


def simplex() -> None:
    """Shares of four kinds, one of which was not seen."""
    share = pyro.sample("share", dist.Dirichlet(torch.ones(4)))
    pyro.factor("counts", (torch.tensor([8.0, 3, 9, 0]) * share.log()).sum(-1))


def two_sites() -> None:
    """A prior only: a normal pair and a Beta."""
    pyro.sample("x", dist.Normal(torch.tensor([0.2, -1.0]), torch.tensor([1.0, 0.5])).to_event(1))
    pyro.sample("z", dist.Beta(2.0, 5.0))


def covariance() -> None:
    """A covariance matrix of three: an LKJ prior and scales."""
    chol = pyro.sample("chol", dist.LKJCholesky(3, 1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(3)).to_event(1))
    with pyro.plate("n", 50):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale[..., None] * chol), obs=_RETURNS)


def trend() -> None:
    """A regression far from its start, its coefficients narrow and correlated."""
    a, b = pyro.sample("a", dist.Normal(0.0, 10.0)), pyro.sample("b", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(5.0))
    with pyro.plate("n", 100):
        pyro.sample("y", dist.Normal(a + b * _TIME, sigma), obs=_TREND)


def funnel() -> None:
    """Neal's funnel in five dimensions."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("n", 4):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def horseshoe() -> None:
    """Sparse regression, non-centered, half-Cauchy scales."""
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("k", 5):
        local = pyro.sample("local", dist.HalfCauchy(1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    mean: Tensor = ((z * local * tau)[..., None, :] * _DESIGN).sum(-1)  # a product of matrices needs one dtype
    with pyro.plate("n", 100):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=_CHOICE)


MODELS: dict[str, Callable[[], None]] = {
    model.__name__: model
    for model in (
        cars,
        schools_centered,
        schools_noncentered,
        tree,
        logistic,
        poisson,
        simplex,
        two_sites,
        covariance,
        trend,
        funnel,
        horseshoe,
    )
}
