"""Draws that hang on their weights are moved by Hamiltonian Monte Carlo: those of the posterior stay so distributed."""

import copy
import math
import pickle
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoCIF, AutoFlow, AutoPlanar, compare
from pyro_nflows.diagnostics.findings import Faults
from pyro_nflows.diagnostics.moves import Drift
from pyro_nflows.diagnostics.verdict import Evidence, Outcome, judge
from pyro_nflows.engine import OutOfTime
from pyro_nflows.inference import chains, running, stationary
from pyro_nflows.inference import settled as settled_chains
from pyro_nflows.inference.as_it_is import judged_as_it_is
from pyro_nflows.inference.settled import NUM_KEPT, SPACING, Kept, Spread, furthest, most_r_hat, settled
from pyro_nflows.inference.stationary import FAR, NUM_CHAINS, Moves, begun, further
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


def chains_of(log_joint, layer, draws):
    chains = begun(log_joint, layer, draws)
    return Kept.of(chains, layer, SPACING)


@pytest.mark.parametrize(("dim", "scale"), [(1, 1.5), (5, 1.5), (20, 1.25), (3, 0.8)])
def test_weighted_draws_of_the_posterior_stay(dim, scale):
    layer, draws = drawn(normal, dim, scale)
    z = chains_of(normal, layer, draws).z
    assert furthest(Spread.of_draws(draws), Spread.of_chains(z), *FAR) is None
    assert (z.mean((0, 1)).abs() < 5 / NUM_CHAINS**0.5).all()
    assert ((z.std((0, 1)) - 1).abs() < 5 / (2 * NUM_CHAINS) ** 0.5).all()


def test_a_tail_where_the_guide_has_no_draws_is_found():
    layer, draws = drawn(half_normal_tail, 3, 1.0)
    kept = chains_of(half_normal_tail, layer, draws)
    column, shift, ratio = furthest(Spread.of_draws(draws), Spread.of_chains(kept.z), *FAR)
    assert column == 0
    assert shift < -0.25
    assert ratio > 1.25


def test_nothing_is_moved_where_that_would_take_too_long():
    layer, draws = drawn(normal, 2, 1.5)
    with pytest.raises(OutOfTime):
        begun(normal, layer, draws, until=0.0)


def test_chains_that_have_settled_have_the_posterior_though_the_guide_has_not():
    """Fifty latents, each twice as wide as in the guide and moved by one: no weight is left."""
    layer, draws = drawn(lambda z: normal(z / 2 - 0.5), 50, 1.0)
    kept = chains_of(lambda z: normal(z / 2 - 0.5), layer, draws)
    last, how = settled(kept, layer)
    found = last.draws()
    assert how.r_hat < most_r_hat(NUM_CHAINS, NUM_KEPT)
    assert 3000 < how.ess <= NUM_CHAINS * NUM_KEPT == len(found.z)
    assert torch.equal(found.log_weight, torch.zeros_like(found.log_weight))
    torch.testing.assert_close(found.log_p, normal(found.z / 2 - 0.5))
    assert ((found.z.mean(0) - 1).abs() < 5 * 2 / how.ess**0.5).all()
    assert ((found.z.std(0) / 2 - 1).abs() < 5 / (2 * how.ess) ** 0.5).all()
    more = further(lambda z: normal(z / 2 - 0.5), layer, found, how, 1000)
    assert len(more.z) == 1024
    assert ((more.z.mean(0) - 1).abs() < 5 * 2 / 1000**0.5).all()


def two_modes(z: Tensor) -> Tensor:
    """Six standard deviations to either side."""
    return torch.logaddexp(normal(z[..., :1] - 6), normal(z[..., :1] + 6)) + normal(z[..., 1:])


def test_chains_that_stay_in_their_modes_have_not_settled(monkeypatch):
    monkeypatch.setattr(settled_chains, "MAX_TRIES", 1)
    layer, draws = drawn(two_modes, 2, 6.0)
    kept = chains_of(two_modes, layer, draws)
    assert settled(kept, layer)[1] is None


def funnel(z: Tensor) -> Tensor:
    """Neal's, whose neck no step size fits."""
    return normal(z[..., :1] / 3) + normal(z[..., 1:] * (-0.5 * z[..., :1]).exp()) - 4.5 * z[..., 0]


def test_chains_that_cannot_enter_a_neck_have_not_settled(monkeypatch):
    monkeypatch.setattr(settled_chains, "MAX_TRIES", 2)
    layer, draws = drawn(funnel, 10, 1.0)
    kept = chains_of(funnel, layer, draws)
    assert settled(kept, layer)[1] is None


def slow(z: Tensor) -> Tensor:
    """A fortieth as wide in one direction as in the others: chains whose steps fit it take long to cross the others."""
    return normal(z @ ROTATION * torch.tensor([80.0, 1.0, 1.0], dtype=z.dtype))


#: Of coordinates, so that no width of one shows how narrow a direction is.
ROTATION = torch.linalg.qr(torch.arange(9.0, dtype=torch.float64).reshape(3, 3).sin()).Q


@pytest.mark.parametrize(("nearly", "settles"), [(0.0, False), (1e6, True)])
def test_chains_that_nearly_agree_go_on(nearly, settles, monkeypatch):
    for name, value in (("MAX_TRIES", 1), ("MORE_TRIES", 4), ("NEARLY", nearly)):
        monkeypatch.setattr(settled_chains, name, value)
    layer, draws = drawn(slow, 3, 1.0)
    _, how = settled(chains_of(slow, layer, draws), layer)
    assert (how is not None) == settles


def test_a_chain_that_stays_at_a_point_keeps_the_others_from_having_settled():
    """One of 256, five standard deviations away: R-hat does not show it."""
    layer, draws = drawn(normal, 3, 1.2)
    first = chains_of(normal, layer, draws)
    z = torch.randn_like(first.z)
    assert first._replace(z=z).all_moved()
    z[7] = 5.0
    assert not first._replace(z=z).all_moved()
    assert settled_chains._mixing(z)[0] < most_r_hat(NUM_CHAINS, NUM_KEPT)


def test_where_chains_end_is_compared_with_the_weights_too(monkeypatch):
    found = iter([None, (2, 0.1, 1.5)])
    monkeypatch.setattr(stationary, "furthest", lambda *_: next(found))
    monkeypatch.setattr(stationary, "settled", lambda first, *_: (first, None))
    vi = judged(1.8)
    assert vi.diagnostics()["outcome"] is Outcome.DRIFTS
    assert vi.posterior.faults.drift == Drift("z", 0.1, 1.5)


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


def judged(factor: float, kind: type[AutoFlow] = AutoFlow, settles: bool = True) -> VI:
    y, guide = torch.zeros(5, dtype=torch.float64), kind(model)
    guide.set_up((y,), {})
    layer = guide.plain_layer()
    with torch.no_grad():
        layer.end.loc.zero_()
        layer.end.log_scale.fill_(math.log(factor * 0.5**0.5))
    guide.adopt(layer)
    vi = VI(guide, seed=0, progress_bar=False)
    vi._posterior = judged_as_it_is(guide, vi.plan, ((y,), {}), settles=settles)
    return vi


def test_only_where_all_hangs_on_the_weights_are_draws_moved(monkeypatch, tmp_path):
    moved = []

    def moves(trainer, guide, fit, regions, brief, settles):
        moved.append(fit)
        return Moves(Drift("z", 0.1, 1.5))

    monkeypatch.setattr(running, "moves", moves)
    assert judged(1.1).diagnostics()["outcome"] is Outcome.TRUST
    assert moved == []
    vi = judged(1.8)
    assert vi.diagnostics()["outcome"] is Outcome.DRIFTS
    vi.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoFlow(model), torch.zeros(5, dtype=torch.float64))
    assert str(again.verdict()) == str(vi.verdict())


def test_what_chains_would_find_is_not_looked_for_where_nothing_comes_of_it(monkeypatch):
    """Of weights that are refused, a drift says nothing more."""
    monkeypatch.setattr(running, "moves", None)
    assert judged(0.4, settles=False).diagnostics()["outcome"] is Outcome.DISTRUST


@pytest.fixture(scope="module")
def narrow() -> VI:
    """A guide so narrow that its weights are refused; chains settle."""
    return judged(0.4)


def test_draws_of_a_bad_guide_are_moved_to_the_posterior(narrow):
    assert narrow.diagnostics()["outcome"] is Outcome.MOVED
    assert narrow.verdict().outcome.is_trusted
    assert "256 Markov chains (R-hat 1.0" in str(narrow.verdict())
    for num in (1000, 4096, 6000):
        z = narrow.get_samples(num)["z"]
        assert z.shape == (num, 5)
        assert (z.mean(0).abs() < 5 * (0.5 / num) ** 0.5).all()
        assert ((z.std(0) / 0.5**0.5 - 1).abs() < 5 / (2 * num) ** 0.5).all()


def test_the_guides_own_draws_are_there_still(narrow):
    z = narrow.get_samples(4000, resample=False)["z"]
    assert ((z.std(0) / (0.4 * 0.5**0.5) - 1).abs() < 0.06).all()
    assert narrow.diagnostics()["ess"] < 0.5
    assert narrow.log_weight.std() > 0.1


def test_moved_draws_come_back_from_a_file_and_a_pickle(narrow, tmp_path):
    narrow.save(tmp_path / "fit.pt")
    y = torch.zeros(5, dtype=torch.float64)
    loaded = VI.load(tmp_path / "fit.pt", AutoFlow(model), y)
    without = VI.load(tmp_path / "fit.pt", AutoFlow(model))
    for other in (loaded, without, pickle.loads(pickle.dumps(narrow)), copy.deepcopy(narrow)):
        assert str(other.verdict()) == str(narrow.verdict())
        torch.testing.assert_close(other.posterior.draws.z, narrow.posterior.draws.z)
        torch.testing.assert_close(
            other.get_samples(500)["z"].std(), narrow.get_samples(500)["z"].std(), rtol=0.1, atol=0
        )
    num = len(loaded.posterior.draws.z) + 100
    assert loaded.get_samples(num)["z"].shape == (num, 5)


def test_arviz_and_the_table_have_the_moved_draws(narrow):
    data = narrow.to_arviz()
    assert data.posterior.attrs["verdict"] == "MOVED"
    assert data.posterior.attrs["trusted"]
    assert float(data.posterior["z"].std()) == pytest.approx(0.5**0.5, rel=0.05)
    assert "log_guide" not in data.sample_stats
    assert (data.sample_stats["log_weight"] == 0).all()
    raw = narrow.to_arviz(resample=False)
    assert float(raw.posterior["z"].std()) == pytest.approx(0.4 * 0.5**0.5, rel=0.05)
    frame = narrow.posterior.summarised().frame
    assert (frame["std"] / 0.5**0.5 - 1).abs().max() < 0.1
    worth = narrow.posterior.settled.ess
    assert frame["mcse"].max() == pytest.approx(frame["std"].max() / worth**0.5, rel=0.05)


def test_a_guide_that_is_judged_as_it_is_keeps_its_draws(narrow):
    vi = VI(narrow.guide, seed=0, progress_bar=False).judge(torch.zeros(5, dtype=torch.float64))
    assert vi.posterior.settled is None
    assert vi.diagnostics()["outcome"] is Outcome.DISTRUST


def test_evidence_of_moved_draws_is_compared_only_where_the_weights_are_good(narrow):
    with pytest.raises(ValueError, match="nor is its evidence"):
        compare({"a": narrow, "b": narrow}, loo=False)
    few = judged(2.4)  # worth 1,300 draws
    assert few.diagnostics()["outcome"] is Outcome.MOVED
    assert len(compare({"a": few, "b": few}, loo=False).models) == 2


def test_draws_of_use_are_kept_where_chains_would_leave_fewer():
    vi = judged(1.8)  # worth 7,000 of 22,500 draws, where chains leave 4,096
    assert vi.diagnostics()["outcome"] is Outcome.RESAMPLED
    assert vi.posterior.settled is None
    assert vi.posterior.faults.drift is None


@pytest.mark.parametrize("kind", [AutoCIF, AutoPlanar])
def test_draws_of_flows_without_an_inverse_are_moved_in_the_coordinates_of_their_end(kind):
    vi = judged(0.4, kind)
    assert vi.diagnostics()["outcome"] is Outcome.MOVED
    for num in (2000, 5000):
        z = vi.get_samples(num)["z"]
        assert (z.mean(0).abs() < 5 * (0.5 / num) ** 0.5).all()
        assert ((z.std(0) / 0.5**0.5 - 1).abs() < 5 / (2 * num) ** 0.5).all()


def test_a_quick_look_ends_in_time(monkeypatch):
    """A density whose step size is far shorter than what the dimension says, on a clock that evaluations move."""
    now, values = [0.0], chains._values

    def timed(*args):
        now[0] += 1e-3
        return values(*args)

    monkeypatch.setattr(time, "process_time", lambda: now[0])
    monkeypatch.setattr(chains, "_values", timed)
    layer, draws = drawn(lambda z: normal(z * torch.tensor([1.0, 1e3])), 2, 1.0)
    with pytest.raises(OutOfTime):
        begun(lambda z: normal(z * torch.tensor([1.0, 1e3])), layer, draws, until=0.3)
    assert now[0] < 0.4
    now[0] = 0.0
    begun(normal, *drawn(normal, 2, 1.5), until=0.3)
