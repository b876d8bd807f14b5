"""Draws of the hubs, with all others drawn anew from their Gaussians given these."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import VI, AutoFlow, compare
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.diagnostics.worth import effective
from pyro_nflows.engine import DensityGradient
from pyro_nflows.inference.redrawn import redrawn
from tests.guides.test_hubs import DATA, T, exact, local_level


@pytest.fixture(scope="module")
def vi():
    """A fit whose layers know nothing of how the states depend on their scales, so that its own draws are bad."""
    pyro.clear_param_store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_nflows.inference.given_hubs._regress", lambda *_: None)
        return VI(AutoFlow(local_level), seed=0, progress_bar=False).run(DATA)


def test_a_guide_that_is_right_of_its_hubs_alone_has_good_draws(vi):
    found = vi.diagnostics()
    assert found["outcome"] is Outcome.REDRAWN
    assert found["outcome"].is_trusted
    assert found["num_steps"] == 0
    assert found["ess"] > 0.9 > 0.5 > vi.posterior.redrawn.own_ess
    said = str(vi.verdict())
    assert f"of whose {T + 2} latents {T} are drawn anew from their Gaussians given the other 2" in said
    assert "not the guide by itself" in said
    assert f"of the guide's own {vi.posterior.redrawn.own_ess:.1%}" in said


def test_their_weights_give_the_evidence_and_the_moments(vi):
    log_evidence, mean, sd = exact(DATA)
    draws = vi.posterior.draws
    weight = draws.log_weight.softmax(0)
    worth = effective(draws.log_weight) * len(weight)
    noise = 5 * (1 / effective(draws.log_weight) - 1) ** 0.5 / len(weight) ** 0.5
    assert abs(draws.log_weight.logsumexp(0) - math.log(len(weight)) - log_evidence) < noise + 1e-3
    found = weight @ draws.z.double()
    assert bool(((found - mean).abs() < 5 * sd / worth**0.5).all())
    width = (weight @ (draws.z.double() - found).square()).sqrt()
    assert bool(((width / sd - 1).abs() < 5 / worth**0.5).all())


def test_weights_depend_on_the_hubs_alone_where_the_others_are_gaussian(vi, monkeypatch):
    layer, joint = copy.deepcopy(vi.posterior.layer.plain()), vi.posterior.log_joint()
    pattern = layer.end.elimination.pattern
    others = pattern.others
    with torch.no_grad():
        layer.end.log_scale[pattern.hubs] += 0.2  # as the fit has them, their weights hardly vary
    noise = torch.randn(50, T + 2, generator=torch.Generator().manual_seed(0))
    found = []
    for sign in (1.0, -0.5):
        noise[:, others] *= sign
        monkeypatch.setattr("pyro_nflows.inference.redrawn.even_noise", lambda *_: noise.clone())
        found.append(redrawn(joint, DensityGradient(joint), layer, 50))
    assert not torch.equal(found[0].z, found[1].z)
    torch.testing.assert_close(found[0].log_weight, found[1].log_weight, rtol=0, atol=2e-3)
    assert found[0].log_weight.std() > 0.03


def test_more_of_them_are_drawn_where_more_are_asked_for(vi):
    posterior = copy.deepcopy(vi).posterior
    num = len(posterior.draws.z) + 500
    more = posterior.with_draws(num)
    assert len(more.draws.z) == num
    assert more.redrawn is not None
    assert effective(more.draws.log_weight[-500:]) > 0.9
    assert torch.equal(more.draws.z[-500:], posterior.with_draws(num).draws.z[-500:])


def test_other_seeds_have_other_draws(vi, monkeypatch):
    monkeypatch.setattr("pyro_nflows.inference.given_hubs._regress", lambda *_: None)
    pyro.clear_param_store()
    other = VI(AutoFlow(local_level), seed=1, progress_bar=False).run(DATA)
    layer = vi.posterior.layer.plain()
    hubs = layer.end.elimination.pattern.hubs
    a, b = (fit.posterior.draws.z[:, hubs].double() for fit in (vi, other))
    assert abs(torch.corrcoef(torch.stack([a[:, 0], b[:, 0]]))[0, 1]) < 5 / len(a) ** 0.5


def test_what_seemed_good_and_is_not_is_drawn_anew_before_any_training(monkeypatch):
    """The first draws of a placed layer show no stray, and more of them do: a layer that is told to be good."""
    made = iter(range(100))
    monkeypatch.setattr("pyro_nflows.inference.given_hubs._regress", lambda *_: None)
    monkeypatch.setattr("pyro_nflows.inference.given_hubs._bound", lambda *_: next(made))
    monkeypatch.setattr("pyro_nflows.inference.given_hubs._weights", lambda *_: torch.zeros(2000))
    pyro.clear_param_store()
    vi = VI(AutoFlow(local_level), seed=0, progress_bar=False).run(DATA)
    assert vi.diagnostics()["outcome"] is Outcome.REDRAWN
    assert vi.diagnostics()["num_steps"] == 0


class Trained(Exception):
    """A fit has come to its steps."""


def test_draws_anew_that_are_no_good_are_not_asked_for_twice(monkeypatch):
    made, asked = iter(range(100)), []

    def train(*args, **options):
        raise Trained

    monkeypatch.setattr("pyro_nflows.inference.given_hubs._regress", lambda *_: None)
    monkeypatch.setattr("pyro_nflows.inference.given_hubs._bound", lambda *_: next(made))
    monkeypatch.setattr("pyro_nflows.inference.given_hubs._weights", lambda *_: torch.linspace(-2.0, 2.0, 2000))
    monkeypatch.setattr("pyro_nflows.inference.given_hubs.good_redrawn", lambda *_: asked.append(1))
    monkeypatch.setattr("pyro_nflows.inference.rounds.Fitting._flow", train)
    pyro.clear_param_store()
    with pytest.raises(Trained):
        VI(AutoFlow(local_level), seed=0, progress_bar=False).run(DATA)
    assert len(asked) == 1


def test_the_guides_own_draws_are_there_too(vi):
    posterior = vi.posterior
    own = posterior.unmoved()
    assert own.redrawn is None
    assert effective(own.log_weight) == pytest.approx(posterior.redrawn.own_ess)
    assert own.verdict().outcome is not Outcome.REDRAWN
    assert torch.equal(posterior.of_guide.z, own.draws.z)
    assert torch.equal(posterior.log_weight, posterior.draws.log_weight)
    assert all(len(value) == 100 for value in vi.get_samples(100, resample=False).values())


def test_they_come_back_from_a_file_and_a_pickle(vi, tmp_path):
    vi.save(tmp_path / "fit.pt")
    loaded = VI.load(tmp_path / "fit.pt", AutoFlow(local_level), DATA)
    without = VI.load(tmp_path / "fit.pt", AutoFlow(local_level))
    for other in (loaded, without, pickle.loads(pickle.dumps(vi)), copy.deepcopy(vi)):
        assert str(other.verdict()) == str(vi.verdict())
        assert torch.equal(other.posterior.draws.z, vi.posterior.draws.z)
    num = len(vi.posterior.draws.z) + 100
    assert len(next(iter(loaded.get_samples(num).values()))) == num


def test_arviz_evidence_and_chains_have_them(vi):
    data = vi.to_arviz(num_samples=1000, log_likelihood=False)
    assert data.posterior.attrs["verdict"] == "REDRAWN"
    assert data.posterior.attrs["trusted"]
    assert len(compare({"a": vi, "b": vi}, loo=False).models) == 2
    with pytest.raises(ValueError, match="the flow by itself is not to be trusted"):
        vi.posterior.as_prior()


def test_a_checkpoint_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_nflows.inference.given_hubs._regress", lambda *_: None)
    pyro.clear_param_store()
    path, fits = tmp_path / "run.pt", []

    def stopped(*_):
        raise KeyError("as a kill")

    with monkeypatch.context() as patch:
        patch.setattr("pyro_nflows.inference.running.faults_of", stopped)
        with pytest.raises(KeyError, match="as a kill"):
            VI(AutoFlow(local_level), seed=0, progress_bar=False, checkpoint=path).run(DATA)
    with monkeypatch.context() as patch:
        patch.setattr("pyro_nflows.inference.given_hubs.given_hubs", stopped)  # it is not done again
        fits.append(VI(AutoFlow(local_level), seed=0, progress_bar=False, checkpoint=path).run(DATA))
    fits.append(VI(AutoFlow(local_level), seed=0, progress_bar=False).run(DATA))
    first, second = (fit.posterior.draws.z for fit in fits)
    assert fits[0].diagnostics()["outcome"] is Outcome.REDRAWN
    torch.testing.assert_close(first, second)


def test_a_layer_of_another_kind_is_refused():
    pyro.clear_param_store()
    guide = AutoFlow(lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1)))
    guide()
    with pytest.raises(ValueError, match="expected a flow of hubs and of the others given them"):
        redrawn(lambda z: z.sum(1), DensityGradient(lambda z: z.sum(1)), guide.plain_layer(), 10)
