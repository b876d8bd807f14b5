r"""Models of ``benchmarks.scale``, for Pyro and for NumPyro: each of any size, with data made on the spot.

- ``diagonal``, ``banded``: Gaussians; the second has a precision of three bands.
- ``regression``: a logistic regression of any number of rows.
- ``centered``, ``noncentered``, ``walk``: stochastic volatility of T days: :math:`y_t \sim N(0, e^{h_t})`, with
  :math:`h` autoregressive by itself, as a product of a T x T matrix with standard normal numbers, and as the textbook's
  random walk.
- ``cox``: counts in :math:`n \times n` cells whose log intensities are a Gaussian field.

The two languages differ in names only, so each model is written once, for what either calls by the same name.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, ...]
Model = Callable[..., None]


def models(language: str) -> dict[str, Model]:
    """The models, by name.

    :param language: ``pyro`` or ``numpyro``.
    """
    if language == "pyro":
        import pyro
        import pyro.distributions as dist
        import torch

        return _models(pyro.sample, pyro.factor, pyro.plate, dist, torch, torch.arange, _flat_pyro)
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as numpyro_dist

    return _models(numpyro.sample, numpyro.factor, numpyro.plate, numpyro_dist, jnp, jnp.arange, _flat_numpyro)


def _flat_pyro(size: int) -> Any:
    import torch
    from pyro.distributions import ImproperUniform, constraints

    return ImproperUniform(constraints.independent(constraints.real, 1), torch.Size(), torch.Size([size]))


def _flat_numpyro(size: int) -> Any:
    from numpyro.distributions import ImproperUniform, constraints

    return ImproperUniform(constraints.real_vector, (), (size,))


def _models(sample: Any, factor: Any, plate: Any, dist: Any, lib: Any, arange: Any, flat: Any) -> dict[str, Model]:
    def log_normal(name: str, x: Any, loc: Any, scale: Any) -> None:
        factor(name, dist.Normal(loc, scale).log_prob(x).sum(-1))

    def diagonal(scale: Any) -> None:
        sample("z", dist.Normal(0 * scale, scale).to_event(1))

    def banded(y: Any) -> None:
        z = sample("z", dist.Normal(0 * y, 1.0).to_event(1))
        log_normal("neighbours", z[..., 1:], z[..., :-1], 0.3)
        log_normal("data", y, z, 0.5)

    def regression(x: Any, y: Any) -> None:
        beta = sample("beta", dist.Normal(0 * x[0], 1.0).to_event(1))
        with plate("row", len(x)):
            sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    def globals_of() -> tuple[Any, Any, Any]:
        mu = sample("mu", dist.Normal(0.0, 3.0))
        phi = 2 * sample("half_phi", dist.Beta(20.0, 1.5)) - 1
        return mu, phi, sample("sigma", dist.HalfNormal(0.5))

    def observed(h: Any, y: Any) -> None:
        sample("y", dist.Normal(0.0, lib.exp(h / 2)).to_event(1), obs=y)

    def centered(y: Any) -> None:
        mu, phi, sigma = globals_of()
        h = sample("h", flat(len(y)))
        log_normal("first", h[..., :1], mu, sigma / lib.sqrt(1 - phi**2))
        log_normal("next", h[..., 1:], mu + phi * (h[..., :-1] - mu), sigma)
        observed(h, y)

    def noncentered(y: Any) -> None:
        mu, phi, sigma = globals_of()
        z = sample("z", dist.Normal(0 * y, 1.0).to_event(1))
        lags = arange(len(y))[:, None] - arange(len(y))
        first = lib.where(arange(len(y)) == 0, 1 / lib.sqrt(1 - phi**2), 1.0)
        response = lib.where(lags >= 0, phi ** lib.where(lags >= 0, lags, 0), 0.0)
        observed(mu + sigma * (response @ (first * z)), y)

    def walk(y: Any) -> None:
        sigma = sample("sigma", dist.Exponential(10.0))
        h = sample("h", flat(len(y)))
        log_normal("first", h[..., :1], 0.0, 1.0)
        log_normal("next", h[..., 1:], h[..., :-1], sigma)
        observed(h, y)

    def cox(counts: Any, tril: Any) -> None:
        mean = math.log(0.5)
        field = sample("field", dist.MultivariateNormal(mean + 0 * counts, scale_tril=tril))
        sample("counts", dist.Poisson(lib.exp(field)).to_event(1), obs=counts)

    found = (diagonal, banded, regression, centered, noncentered, walk, cox)
    return {model.__name__: model for model in found}


def data(name: str, size: int, columns: int = 20) -> Arrays:
    """What a model of that size is given, single precision."""
    rng = np.random.default_rng(size)
    if name == "diagonal":
        made: Arrays = (np.exp(rng.uniform(-1, 1, size)),)
    elif name == "banded":
        made = (rng.normal(size=size),)
    elif name == "regression":
        x, beta = rng.normal(size=(size, columns)), rng.normal(size=columns) / 2
        made = (x, (rng.uniform(size=size) < 1 / (1 + np.exp(-x @ beta))).astype(float))
    elif name == "cox":
        tril = _field(size)
        made = (rng.poisson(0.5 * np.exp(tril @ rng.normal(size=size**2))), tril)
    else:
        h, sigma, phi = np.zeros(size), 0.2, 0.97
        for t in range(1, size):
            h[t] = phi * h[t - 1] + sigma * rng.normal()
        made = (np.exp(h / 2) * rng.normal(size=size),)
    return tuple(part.astype(np.float32) for part in made)


def _field(size: int) -> np.ndarray:
    """The factor of a field's covariance: variance 1, correlations that fall with the distance over a quarter side."""
    at = np.stack(np.meshgrid(*[np.arange(size) / size] * 2), -1).reshape(-1, 2)
    distance = np.sqrt(((at[:, None] - at) ** 2).sum(-1))
    return np.linalg.cholesky(np.exp(-distance / 0.25) + 1e-5 * np.eye(size**2))


def exact(name: str, given: Arrays) -> tuple[np.ndarray, np.ndarray] | None:
    """A Gaussian's means and standard deviations; None for other models."""
    if name == "diagonal":
        return np.zeros_like(given[0]), given[0]
    if name != "banded":
        return None
    from scipy.linalg import solveh_banded

    size = len(given[0])
    ends = np.full(size, 2.0)
    ends[[0, -1]] = 1.0
    bands = np.stack([1 + 4 + ends / 0.09, np.full(size, -1 / 0.09)])
    mean = solveh_banded(bands, 4 * given[0].astype(float), lower=True)
    some = np.linspace(0, size - 1, min(size, 200)).astype(int)
    variance = np.full(size, np.nan)  # of some, since each takes a solve
    for i in some:
        variance[i] = solveh_banded(bands, np.eye(1, size, i)[0], lower=True)[i]
    return mean, np.sqrt(variance)
