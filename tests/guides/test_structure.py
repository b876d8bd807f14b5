"""Guides that follow the plates of a model: which do, what they say of it, and that they are the same everywhere."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_nflows import VI, AutoCIF, AutoDAIS, AutoFlow, AutoIAF, AutoSpline
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.layers import PlateAffine, PlateCoupling, TriangularAffine

DATA = torch.linspace(-2.0, 3.0, 60)


def groups(y):
    """Sixty groups: the rows integrate out to y ~ N(mu, s^2 + 1)."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(y[0]), 5.0))
    with pyro.plate("groups", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def exact(y):
    """Mean and standard deviation of mu, and the log evidence."""
    precision = len(y) / 2 + 1 / 25
    mean = y.sum() / 2 / precision
    covariance = 2 * torch.eye(len(y)).to(y) + 25
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    return mean.item(), precision**-0.5, evidence.item()


def small(y):
    groups(y[:5])


def loose(y):
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([60]).to_event(1))


def test_a_guide_of_many_rows_follows_plates_and_says_so():
    guide = AutoFlow(groups)
    assert guide.extra_repr() == ""
    guide(DATA)
    assert guide.follows_plates
    assert "follows plates: 1 latent outside of plates; groups: 60 rows of 1" in repr(guide)
    assert isinstance(guide.plain_layer().end, PlateAffine)


def regression(y):
    """Sixty weights in a plate, which the data tie together."""
    with pyro.plate("features", 60):
        weights = pyro.sample("weights", dist.Normal(0.0, 1.0))
    x = torch.eye(60)[:, torch.arange(60).roll(1)] + torch.eye(60)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)


@pytest.mark.parametrize("model", [small, loose, regression])
def test_few_latents_or_none_in_plates_or_rows_that_data_tie_together_are_joint(model):
    guide = AutoFlow(model)
    guide(DATA)
    assert not guide.follows_plates
    assert "joint over" in repr(guide)


def test_either_can_be_asked_for():
    joint, plates = AutoFlow(groups, structure="joint"), AutoFlow(small, structure="plates")
    joint(DATA)
    assert isinstance(joint.plain_layer().end, TriangularAffine)
    pyro.clear_param_store()
    plates(DATA)
    assert isinstance(plates.plain_layer().end, PlateAffine)


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match='structure must be "auto", "joint" or "plates"'):
        AutoFlow(groups, structure="rows")
    with pytest.raises(ValueError, match=r"none of its latents is in a pyro\.plate"):
        AutoFlow(loose, structure="plates")(DATA)


@pytest.mark.parametrize("kind", [AutoFlow, AutoIAF, AutoSpline, AutoCIF])
def test_any_flow_may_be_that_of_what_is_outside_of_plates(kind):
    torch.manual_seed(0)

    def model(y):
        pyro.sample("more", dist.Normal(torch.zeros_like(y[0]), 1.0))
        groups(y)

    guide = kind(model, structure="plates")
    guide(DATA)
    assert any(isinstance(part, PlateCoupling) for part in guide.layer.modules())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(DATA) for _ in range(60)]
    assert sum(losses[-20:]) < sum(losses[:20])


def test_an_annealed_guide_is_joint():
    guide = AutoDAIS(groups)
    guide(DATA)
    assert not guide.follows_plates


def test_a_conjugate_hierarchy_is_fitted_exactly():
    y = DATA.double()
    mean, sd, evidence = exact(y)
    vi = VI(AutoFlow(groups), num_steps=600, seed=0, progress_bar=False).run(y)  # a start is right to less than this
    found = vi.diagnostics()
    assert found["outcome"] is Outcome.TRUST
    assert found["ess"] > 0.999
    assert abs(found["elbo"] - evidence) < 0.01
    mu = vi.get_samples(4000)["mu"]
    assert abs(mu.mean().item() - mean) < 5 * sd / math.sqrt(4000)
    assert abs(mu.std().item() / sd - 1) < 5 / math.sqrt(2 * 4000)


def test_its_state_makes_it_again_without_a_run_of_the_model():
    guide = AutoFlow(groups, centering=None)
    values = guide(DATA)
    with torch.no_grad():
        for parameter in guide.layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = guide.log_prob(values)
    fresh = AutoFlow(groups)
    fresh.load_state_dict(guide.state_dict())
    fresh(DATA)
    assert fresh.follows_plates
    assert torch.allclose(fresh.log_prob(values), expected)
    for again in (pickle.loads(pickle.dumps(guide)), copy.deepcopy(guide)):
        assert again.follows_plates
        assert torch.allclose(again.log_prob(values), expected)


def test_it_predicts():
    guide = AutoFlow(groups)
    guide(DATA)
    draws = Predictive(groups, guide=guide, num_samples=7)(DATA)
    assert draws["z"].shape == (7, 60)
