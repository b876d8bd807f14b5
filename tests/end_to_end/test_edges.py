"""Posteriors that end at an edge which no site's support tells of: the density is zero beyond."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.verdict import Evidence, Outcome, judge

#: Draws that are asked for.
NUM = 4000


def uniform_end(y: Tensor) -> None:
    """Uniform up to an end that is not known: a Pareto posterior, which ends at the largest observation."""
    end = pyro.sample("z", dist.Uniform(0.0, 20.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Uniform(0.0, end), obs=y)


def shifted(y: Tensor) -> None:
    """Exponential after a shift that is not known, written as a factor."""
    z = pyro.sample("z", dist.Normal(0.0, 10.0))
    pyro.factor("y", torch.where(y > z, z - y, -math.inf).sum(-1))


def half() -> None:
    """A normal latent that has to be positive."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("positive", torch.where(z > 0, 0.0, -math.inf))


Y = torch.tensor([0.6, 2.9, 3.8, 1.3, 0.4, 2.2, 3.1, 1.9, 3.5, 2.6])


def pareto() -> Tensor:
    """Quantiles of the first model's posterior, which is Pareto from the largest observation on, up to 20."""
    k, low = len(Y) - 1, float(Y.max())
    share = (torch.arange(NUM) + 0.5) / NUM
    return (low**-k - share * (low**-k - 20.0**-k)) ** (-1 / k)


def from_the_edge() -> Tensor:
    """Of the second one's: as far before the smallest observation as an exponential says, tilted by the prior."""
    share, low, rate = (torch.arange(NUM) + 0.5) / NUM, float(Y.min()), len(Y)
    return low + share.log() / rate


@pytest.mark.parametrize(
    ("model", "data", "exact"),
    [
        (uniform_end, (Y,), pareto()),
        (shifted, (Y,), from_the_edge()),
        (half, (), torch.special.ndtri(0.5 + 0.5 * (torch.arange(NUM) + 0.5) / NUM)),
    ],
    ids=["uniform", "shifted", "half"],
)
def test_a_posterior_with_an_edge_is_fitted(model, data, exact) -> None:  # type: ignore[no-untyped-def]
    vi = VI(AutoFlow(model), seed=0, progress_bar=False).run(*data)
    draws = vi.get_samples(NUM)["z"]
    assert vi.diagnostics()["outcome"] in (Outcome.TRUST, Outcome.RESAMPLED, Outcome.OUTLIERS)
    noise = 5 * exact.std() * (2 / NUM) ** 0.5
    assert abs(draws.mean() - exact.mean()) < noise
    assert abs(draws.std() - exact.std()) < 2 * noise  # long tails: the kurtosis is nine or more
    assert vi.diagnostics()["ess"] > 0.8


def test_several_ends_from_one_distribution_are_fitted_or_refused() -> None:
    """The guide leaves out where the ends spread widely: most draws there are beyond one, and no weight shows that."""
    y = torch.tensor([[2.1, 3.3, 1.2], [0.3, 2.9, 3.5], [3.7, 0.8, 2.2], [1.5, 1.1, 0.4]])

    def ends(y: Tensor) -> None:
        level, spread = pyro.sample("level", dist.Normal(0.0, 2.0)), pyro.sample("spread", dist.HalfNormal(1.0))
        with pyro.plate("groups", 3):
            end = pyro.sample("end", dist.LogNormal(level, spread))
            with pyro.plate("rows", 4, dim=-2):
                pyro.sample("y", dist.Uniform(0.0, end), obs=y)

    vi = VI(AutoFlow(ends), num_steps=300, engine="eager", seed=0, progress_bar=False).run(y)
    assert not vi.diagnostics()["outcome"].is_trusted


@pytest.mark.parametrize(("lost", "outcome"), [(0.15, Outcome.OUTLIERS), (0.3, Outcome.CUT), (0.6, Outcome.CUT)])
def test_weights_do_not_speak_for_draws_of_which_many_are_beyond_an_edge(lost: float, outcome: Outcome) -> None:
    log_weight = 0.1 * torch.randn(10_000)
    log_weight[: int(lost * len(log_weight))] = -torch.inf
    verdict = judge(Evidence(log_weight, [], [], torch.ones(1)))
    assert verdict.outcome is outcome
    assert f"{int(lost * len(log_weight)):,} of its 10,000 draws lie where the model's density is zero" in str(verdict)
