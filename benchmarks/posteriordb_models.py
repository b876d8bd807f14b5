r"""The models of twelve ``posteriordb`` posteriors, in Pyro.

Each density is the Stan program's with every prior normalised on its support (but for the means of
``low_dim_gauss_mix``, whose prior ignores that they are ordered); a flat prior is an improper
uniform. Every model broadcasts from the left, so it runs under a particle plate as well as
under :func:`torch.func.vmap`, and none branches on a value.

**References**

[1] M. Magnusson et al. (2024). posteriordb: a set of posteriors for Bayesian inference and
    probabilistic programming. https://github.com/stan-dev/posteriordb
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import pad


def flat(support: constraints.Constraint = constraints.real) -> dist.ImproperUniform:
    """A scalar prior of log density zero on ``support``."""
    return dist.ImproperUniform(support, (), ())


def eight_schools_centered(y: Tensor, sigma: Tensor) -> None:
    """Eight schools; a school's effect is drawn around the mean effect."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(y: Tensor, sigma: Tensor) -> None:
    """Eight schools; a school's effect is a shifted and scaled standard normal."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def ar_k(y: Tensor, order: int) -> None:
    """An autoregression of the given order, conditional on the first ``order`` values."""
    lags = y.unfold(0, order, 1)[:-1].flip(-1)
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    with pyro.plate("lag", order):
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("time", len(lags)):
        pyro.sample("y", dist.Normal(alpha + beta @ lags.T, sigma), obs=y[order:])


def _garch_prior() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # A guide reads each site's support once, so a support that depends on another latent would
    # go stale: sample beta1's share of (0, 1 - alpha1), and put the Jacobian into a factor.
    mu = pyro.sample("mu", flat())
    alpha0 = pyro.sample("alpha0", flat(constraints.positive))
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    share = pyro.sample("beta1_share", dist.Uniform(0.0, 1.0))
    pyro.factor("beta1_jacobian", torch.log1p(-alpha1))
    return mu, alpha0, alpha1, pyro.deterministic("beta1", (1 - alpha1) * share)


def _garch_likelihood(y: Tensor, mu: Tensor, variance: Tensor) -> None:
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, variance.sqrt()), obs=y)


def linear_recursion(shock: Tensor, decay: Tensor) -> Tensor:
    r"""Solve :math:`s_t = c_t + \beta s_{t-1}` in :math:`O(\log T)` whole-series operations.

    With :math:`L` the lag operator, :math:`s = (I - \beta L)^{-1} c`, and because :math:`L^T = 0`

    .. math:: (I - \beta L)^{-1} = \prod_{k < \log_2 T} (I + \beta^{2^k} L^{2^k}).

    This is exact, and it never divides or subtracts, so positive shocks lose no digits at
    :math:`\beta` near 0 or 1.

    :param shock: :math:`c`, of shape ``(..., T)``; its first entry is :math:`s_1`.
    :param decay: :math:`\beta`, of shape ``(..., 1)`` or ``()``.
    """
    step, state = 1, shock
    while step < shock.shape[-1]:
        state = state + decay * pad(state[..., :-step], (step, 0))
        step, decay = 2 * step, decay * decay
    return state


def garch11(y: Tensor, sigma1: float) -> None:
    """GARCH(1, 1) volatility, its recursion solved without a loop over time."""
    mu, alpha0, alpha1, beta1 = _garch_prior()
    shock = pad(alpha0 + alpha1 * (y[:-1] - mu) ** 2, (1, 0), value=sigma1**2)
    _garch_likelihood(y, mu, linear_recursion(shock, beta1))


def garch11_loop(y: Tensor, sigma1: float) -> None:
    """The density of :func:`garch11` by a Python loop over time: a hard case for tracing."""
    mu, alpha0, alpha1, beta1 = _garch_prior()
    variance = [torch.full(mu.shape or (1,), sigma1**2)]
    for previous in y[:-1]:
        variance.append(alpha0 + alpha1 * (previous - mu) ** 2 + beta1 * variance[-1])
    _garch_likelihood(y, mu, torch.cat(variance, -1))


def garch11_dependent(y: Tensor, sigma1: float) -> None:
    """:func:`garch11` as Stan has it, with a support that moves: a hard case for guides."""
    mu = pyro.sample("mu", flat())
    alpha0 = pyro.sample("alpha0", flat(constraints.positive))
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    beta1 = pyro.sample("beta1", flat(constraints.interval(0.0, 1 - alpha1)))
    shock = pad(alpha0 + alpha1 * (y[:-1] - mu) ** 2, (1, 0), value=sigma1**2)
    _garch_likelihood(y, mu, linear_recursion(shock, beta1))


def gp_regr(x: Tensor, y: Tensor) -> None:
    """Gaussian-process regression; ``sigma`` is the variance of the noise."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    rho, alpha, sigma = (v[..., None, None] for v in (rho, alpha, sigma))
    kernel = alpha**2 * torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    covariance = kernel + sigma * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def low_dim_gauss_mix(y: Tensor) -> None:
    """A mixture of two normals whose means are kept in order."""
    ordered = dist.ImproperUniform(constraints.ordered_vector, (), (2,))
    mu = pyro.sample("mu", ordered)
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta], -1))
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def blr(x: Tensor, y: Tensor) -> None:
    """Linear regression under weak normal priors."""
    with pyro.plate("predictor", x.shape[-1]):
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Normal(beta @ x.T, sigma), obs=y)


def diamonds(x: Tensor, y: Tensor) -> None:
    """Linear regression on centered predictors, with an intercept of its own."""
    with pyro.plate("predictor", x.shape[-1]):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Normal(intercept + b @ x.T, sigma), obs=y)


def kidscore(x: Tensor, y: Tensor) -> None:
    """Linear regression with flat coefficients and a half-Cauchy scale."""
    with pyro.plate("predictor", x.shape[-1]):
        beta = pyro.sample("beta", flat())
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Normal(beta @ x.T, sigma), obs=y)


def flat_regression(x: Tensor, y: Tensor) -> None:
    """Linear regression with flat coefficients and a flat scale."""
    with pyro.plate("predictor", x.shape[-1]):
        beta = pyro.sample("beta", flat())
    sigma = pyro.sample("sigma", flat(constraints.positive))
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Normal(beta @ x.T, sigma), obs=y)
