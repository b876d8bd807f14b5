"""Models that several files test: their data, and what is known of their posteriors."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

#: The pairs' log evidence is -6.567, and their posterior N(data / 2, 1 / 2).
PAIRS = torch.tensor([1.0, -1.0, 2.0, 0.14], dtype=torch.float64)
PAIRS_EVIDENCE = -PAIRS.square().sum().item() / 4 - 2 * math.log(4 * math.pi)


def pairs(x: Tensor = PAIRS) -> None:
    with pyro.plate("unit", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def pairs_without_plate(x: Tensor = PAIRS) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def schools(y: Tensor) -> None:
    """Schools as in the eight schools, centered, each with a standard error of ten."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=y)


def one_of_each(y: Tensor | None = None) -> None:
    """Latents of many shapes and supports."""
    pyro.sample("real", dist.Normal(0.0, 1.0))
    pyro.sample("vector", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    tau = pyro.sample("positive", dist.HalfCauchy(1.0))
    pyro.sample("interval", dist.Uniform(-1.0, 3.0))
    weights = pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    pyro.sample("cholesky", dist.LKJCholesky(3, 2.0))
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        z = pyro.sample("nested", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(z + weights[0], 1.0), obs=torch.ones(2, 3) if y is None else y)
