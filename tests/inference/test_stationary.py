"""Draws that hang on their weights are moved by Hamiltonian Monte Carlo: those of the posterior stay so distributed."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.findings import Drift, Faults
from pyro_nflows.diagnostics.verdict import Evidence, Outcome, judge
from pyro_nflows.inference import running
from pyro_nflows.inference.stationary import NUM_CHAINS, furthest, moved
from pyro_nflows.layers import LocScale
from pyro_nflows.objectives.draws import draw


def normal(z: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)


def half_normal_tail(z: Tensor) -> Tensor:
    """A neck: in the first coordinate, a standard normal that goes on as an exponential of mean three to the left."""
    x = z[..., 0]
    return torch.where(x > -1, -0.5 * x.square(), -0.5 + (x + 1) / 3) + normal(z[..., 1:])


@torch.no_grad()
def drawn(log_joint, dim, scale):
    torch.manual_seed(0)
    layer = LocScale(dim, init_scale=scale).double()
    return layer, draw(log_joint, layer, torch.randn(20_000, dim, dtype=torch.float64))


@pytest.mark.parametrize(("dim", "scale"), [(1, 1.5), (5, 1.5), (20, 1.25), (3, 0.8)])
def test_weighted_draws_of_the_posterior_stay(dim, scale):
    layer, draws = drawn(normal, dim, scale)
    after = moved(normal, layer, draws)
    assert furthest(draws, after) is None
    assert (after.mean(0).abs() < 5 / NUM_CHAINS**0.5).all()
    assert ((after.std(0) - 1).abs() < 5 / (2 * NUM_CHAINS) ** 0.5).all()


def test_a_tail_where_the_guide_has_no_draws_is_found():
    layer, draws = drawn(half_normal_tail, 3, 1.0)
    column, shift, ratio = furthest(draws, moved(half_normal_tail, layer, draws))
    assert column == 0
    assert shift < -0.25
    assert ratio > 1.25


def test_nothing_is_moved_where_that_would_take_too_long():
    layer, draws = drawn(normal, 2, 1.5)
    assert moved(normal, layer, draws, seconds=0.0) is None


def test_draws_that_drift_are_not_trusted():
    torch.manual_seed(0)
    log_weight = torch.randn(20_000, dtype=torch.float64)
    evidence = Evidence(log_weight, [], [], torch.ones(1))
    assert judge(evidence).outcome is Outcome.RESAMPLED
    verdict = judge(evidence._replace(faults=Faults(drift=Drift("tau", -0.4, 1.6))))
    assert verdict.outcome is Outcome.DRIFTS
    assert not verdict.outcome.is_trusted
    assert "the mean of site 'tau' moves by -0.40 standard deviations, and these become 1.60 times" in str(verdict)


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(y.new_zeros(5), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def judged(factor: float) -> VI:
    y, guide = torch.zeros(5, dtype=torch.float64), AutoFlow(model)
    guide.set_up((y,), {})
    layer = guide.plain_layer()
    with torch.no_grad():
        layer.end.loc.zero_()
        layer.end.log_scale.fill_(math.log(factor * 0.5**0.5))
    guide.adopt(layer)
    return VI(guide, seed=0, progress_bar=False).judge(y)


def test_only_where_all_hangs_on_the_weights_are_draws_moved(monkeypatch, tmp_path):
    moves = []

    def drift(trainer, guide, fit, brief):
        moves.append(fit)
        return Drift("z", 0.1, 1.5)

    assert judged(1.8).diagnostics()["outcome"] is Outcome.RESAMPLED
    monkeypatch.setattr(running, "drift", drift)
    assert judged(1.1).diagnostics()["outcome"] is Outcome.TRUST
    assert moves == []
    vi = judged(1.8)
    assert vi.diagnostics()["outcome"] is Outcome.DRIFTS
    vi.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoFlow(model), torch.zeros(5, dtype=torch.float64))
    assert str(again.verdict()) == str(vi.verdict())
