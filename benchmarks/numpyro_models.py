"""The twelve posteriors in NumPyro, for its NUTS and its BNAF guide: the densities of ``posteriordb_models``."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints


def flat(support: Any = constraints.real, shape: tuple[int, ...] = ()) -> Any:
    """An improper uniform prior."""
    return dist.ImproperUniform(support, (), shape)


def eight_schools_centered(y: Any, sigma: Any) -> None:
    """Eight schools, centered."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(y: Any, sigma: Any) -> None:
    """Eight schools, non-centered."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        theta = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * theta, sigma), obs=y)


def ar_k(y: Any, order: int) -> None:
    """An autoregression."""
    lags = jnp.stack([y[order - 1 - lag : len(y) - 1 - lag] for lag in range(order)], -1)
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([order]))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[order:])


def garch11(y: Any, sigma1: float) -> None:
    """GARCH(1, 1) volatility."""
    mu = numpyro.sample("mu", flat())
    alpha0 = numpyro.sample("alpha0", flat(constraints.positive))
    alpha1 = numpyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    share = numpyro.sample("beta1_share", dist.Uniform(0.0, 1.0))
    numpyro.factor("beta1_jacobian", jnp.log1p(-alpha1))

    def step(variance: Any, previous: Any) -> Any:
        variance = alpha0 + alpha1 * (previous - mu) ** 2 + (1 - alpha1) * share * variance
        return variance, variance

    _, rest = lax.scan(step, jnp.asarray(sigma1**2), y[:-1])
    variance = jnp.concatenate([jnp.array([sigma1**2]), rest])
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(variance)), obs=y)


def gp_regr(x: Any, y: Any) -> None:
    """Gaussian-process regression."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    kernel = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), kernel + sigma * jnp.eye(len(x))), obs=y)


def low_dim_gauss_mix(y: Any) -> None:
    """A mixture of two normals whose means are kept in order."""
    mu = numpyro.sample("mu", flat(constraints.ordered_vector, (2,)))
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta], -1))
    with numpyro.plate("observation", len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def _regression(beta: Any, sigma: Any, x: Any, y: Any, intercept: Any = 0.0) -> None:
    numpyro.sample("y", dist.Normal(intercept + x @ beta, sigma), obs=y)


def blr(x: Any, y: Any) -> None:
    """Linear regression under weak normal priors."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([x.shape[1]]))
    _regression(beta, numpyro.sample("sigma", dist.HalfNormal(10.0)), x, y)


def diamonds(x: Any, y: Any) -> None:
    """Linear regression on centered predictors."""
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([x.shape[1]]))
    intercept = numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    _regression(b, sigma, x, y, intercept)


def kidscore(x: Any, y: Any) -> None:
    """Linear regression with flat coefficients and a half-Cauchy scale."""
    beta = numpyro.sample("beta", flat(constraints.real_vector, (x.shape[1],)))
    _regression(beta, numpyro.sample("sigma", dist.HalfCauchy(2.5)), x, y)


def flat_regression(x: Any, y: Any) -> None:
    """Linear regression with flat coefficients and a flat scale."""
    beta = numpyro.sample("beta", flat(constraints.real_vector, (x.shape[1],)))
    _regression(beta, numpyro.sample("sigma", flat(constraints.positive)), x, y)


MODELS: dict[str, Callable[..., None]] = {
    "eight_schools-eight_schools_centered": eight_schools_centered,
    "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
    "arK-arK": ar_k,
    "garch-garch11": garch11,
    "gp_pois_regr-gp_regr": gp_regr,
    "low_dim_gauss_mix-low_dim_gauss_mix": low_dim_gauss_mix,
    "sblrc-blr": blr,
    "diamonds-diamonds": diamonds,
    "kidiq-kidscore_interaction": kidscore,
    "earnings-logearn_interaction": flat_regression,
    "nes2000-nes": flat_regression,
    "mesquite-logmesquite": flat_regression,
}
