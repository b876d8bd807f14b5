"""Joint guides whose default flow has couplings within the rows of plates: which have them, and what they keep."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import AutoFlow, AutoIAF, flows
from pyro_nflows.layers import RowCoupling

Y = torch.linspace(-1.0, 2.0, 4)


def pairs(y):
    """Four weights, each with a scale of its own."""
    tau = pyro.sample("tau", dist.HalfCauchy(torch.ones_like(y[0])))
    with pyro.plate("features", 4):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        weight = pyro.sample("weight", dist.Normal(0.0, tau * scale))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(weight.cumsum(-1), 1.0), obs=y)


def single(y):
    """Rows of one."""
    with pyro.plate("features", 4):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(weight, 1.0).to_event(1), obs=y)


def wide(y):
    """Rows of thirteen, which are more than what belongs closely together."""
    with pyro.plate("groups", 2):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([13]).to_event(1))
    pyro.sample("y", dist.Normal(weight.sum(), 1.0), obs=y[0])


def couplings(guide):
    return [part for part in guide.modules() if isinstance(part, RowCoupling)]


def randomised(guide):
    guide(Y)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return guide


def test_the_default_flow_has_them_where_rows_have_several_coordinates_and_says_so():
    guide = AutoFlow(pairs)
    guide(Y)
    assert len(couplings(guide)) == 8
    assert "joint over 9 latents, with couplings within rows of features" in repr(guide)


@pytest.mark.parametrize(
    "guide",
    [
        AutoFlow(single),
        AutoFlow(wide),
        AutoIAF(pairs),
        AutoFlow(pairs, flows.realnvp),
        AutoFlow(pairs, structure="plates"),
    ],
)
def test_rows_of_one_or_of_many_a_flow_of_ones_own_and_a_guide_that_follows_plates_have_none(guide):
    guide(Y)
    assert not couplings(guide)
    assert "couplings within rows" not in repr(guide)


def test_one_may_ask_for_them_in_a_flow_of_ones_own():
    guide = AutoFlow(pairs, lambda dim: flows.within_rows(first.hierarchy, flows.iaf(dim)))
    first = AutoFlow(pairs, structure="plates")
    first(Y)
    guide(Y)
    assert len(couplings(guide)) == 8


def test_a_state_makes_them_again_without_a_run_of_the_model():
    guide = randomised(AutoFlow(pairs, centering=None))
    values = guide(Y)
    expected = guide.log_prob(values)
    fresh = AutoFlow(pairs)
    fresh.load_state_dict(guide.state_dict())
    assert len(couplings(fresh)) == 8
    fresh(Y)
    assert torch.allclose(fresh.log_prob(values), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda guide: pickle.loads(pickle.dumps(guide))])
def test_copies_have_them(copied):
    guide = randomised(AutoFlow(pairs, centering=None))
    values = guide(Y)
    again = copied(guide)
    assert len(couplings(again)) == 8
    assert torch.allclose(again.log_prob(values), guide.log_prob(values))
