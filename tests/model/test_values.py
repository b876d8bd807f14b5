"""Values of sites whose places depend on other sites: many rows go through the model at once."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import AutoFlow
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.model.values import constrained, unconstrained


def graded(loc: Tensor) -> None:
    cut = torch.tensor([-1.0, 0.0, 1.0])
    pyro.sample("y", dist.OrderedLogistic(loc, cut), obs=torch.tensor([0, 1, 3, 2]))


def counted(loc: Tensor) -> None:
    probs = torch.stack([loc, -loc, 0 * loc], -1).softmax(-1)
    pyro.sample("y", dist.Multinomial(3, probs), obs=torch.tensor([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]] * 2))


def shared(loc: Tensor) -> None:
    factor = torch.stack([loc, 1 + 0 * loc], -1).unsqueeze(-1)
    pyro.sample("y", dist.LowRankMultivariateNormal(torch.zeros(2), factor, torch.ones(2)), obs=torch.zeros(4, 2))


def chained(loc: Tensor) -> None:
    chain = dist.DiscreteHMM(
        torch.zeros(2), torch.zeros(2, 2), dist.Normal(torch.stack([loc, -loc], -1).unsqueeze(-2), 1.0), duration=3
    )
    pyro.sample("y", chain, obs=torch.zeros(4, 3))


@pytest.mark.parametrize("observe", [graded, counted, shared, chained])
def test_draws_of_a_hierarchy_go_through_the_model_at_once_whatever_the_likelihood(
    observe: Callable[[Tensor], None],
) -> None:
    """Pyro's and torch's operations that ``vmap`` cannot run have stand-ins: a summary ran the model 4,000 times."""
    runs = list[int]()

    def model() -> None:
        runs.append(1)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("group", 4):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            observe(theta)

    guide = AutoFlow(model)
    guide()
    assert guide.latents.moving == {"theta"}
    joint = LogJoint(BoundModel(model, ()), guide.latents)
    joint.look()
    z, before = torch.randn(40, 6), len(runs)
    values = constrained(joint, z)
    back, _ = unconstrained(joint, values)
    assert len(runs) - before <= 6
    torch.testing.assert_close(back, z)
    theta = values["mu"][:, None] + values["tau"][:, None] * z[:, 2:]
    torch.testing.assert_close(values["theta"], theta)
