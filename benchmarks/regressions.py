r"""Regressions on simulated data, and eight schools with its exact posterior moments.

Given ``mu`` and ``tau``, and then ``mu`` given ``tau``, everything in eight schools is normal, so
its evidence and moments are integrals over ``tau`` alone; the constants here are those integrals.

**References**

[1] D. Rubin (1981). Estimation in Parallel Randomized Experiments.
[2] C. Carvalho, N. Polson, J. Scott (2009). Handling Sparsity via the Horseshoe.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.posteriordb_models import eight_schools_centered, eight_schools_noncentered
from benchmarks.targets import Target

_SCHOOLS_MEAN = {
    "mu": 4.396820713832368,
    "tau": 3.597705484107809,
    "theta": [
        6.2118842,
        4.9401784,
        3.9270044,
        4.7570983,
        3.6154770,
        4.0426126,
        6.2967241,
        4.8542533,
    ],
}
_SCHOOLS_SD = {
    "mu": 3.317704463139986,
    "tau": 3.219958414661638,
    "theta": [
        5.5931262,
        4.6742685,
        5.2626151,
        4.7802973,
        4.6574526,
        4.8268656,
        5.0778488,
        5.2908011,
    ],
}


def eight_schools(*, centered: bool) -> Target:
    """Eight schools [1], ``centered`` (site ``theta``) or not (site ``theta_trans``).

    The moments are of ``mu``, ``tau`` and ``theta``, which in the latter form is
    ``mu + tau * theta_trans``.
    """
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    model = eight_schools_centered if centered else eight_schools_noncentered
    mean = {name: torch.tensor(value) for name, value in _SCHOOLS_MEAN.items()}
    sd = {name: torch.tensor(value) for name, value in _SCHOOLS_SD.items()}
    return Target(model, (y, sigma), -31.311347352295847, mean, sd)


def simulate_logistic(num_rows: int, weights: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw standard normal predictors and the outcomes of a logistic regression on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, len(weights), generator=generator, dtype=torch.float64)
    uniform = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    y = uniform < torch.sigmoid(x @ weights.double())
    return x.to(weights), y.to(weights)


def _logistic_model(x: Tensor, y: Tensor) -> None:
    with pyro.plate("predictor", x.shape[-1]):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=weight @ x.T), obs=y)


def logistic_regression(num_rows: int = 1000, num_columns: int = 25, seed: int = 0) -> Target:
    """Logistic regression under standard normal priors, its data drawn from the model."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(num_columns, generator=generator, dtype=torch.float64)
    weights = weights.to(torch.get_default_dtype())
    return Target(_logistic_model, simulate_logistic(num_rows, weights, seed + 1))


def _horseshoe_model(x: Tensor, y: Tensor) -> None:
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("predictor", x.shape[-1]):
        scale = pyro.sample("lambda", dist.HalfCauchy(1.0))
        weight_trans = pyro.sample("weight_trans", dist.Normal(0.0, 1.0))
        weight = pyro.deterministic("weight", tau * scale * weight_trans)
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=weight @ x.T), obs=y)


def horseshoe(num_rows: int = 200, num_columns: int = 20, num_nonzero: int = 3, seed: int = 0) -> Target:
    """Logistic regression under a horseshoe prior [2]; the first true weights are 2, others 0."""
    weights = torch.where(torch.arange(num_columns) < num_nonzero, 2.0, 0.0)
    return Target(_horseshoe_model, simulate_logistic(num_rows, weights, seed))
