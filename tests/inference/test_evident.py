"""A start that is the posterior already is not trained; any other is, and so is one that somebody asks to train."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import IWAE, VI, AutoFlow, flows
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.engine import Engine, Round, Trainer, work_of
from pyro_nflows.inference.evident import evident, is_evident
from pyro_nflows.inference.fit import start
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.rounds import Fitting
from pyro_nflows.inference.running import Fitter
from pyro_nflows.inference.schedule import Schedule
from pyro_nflows.objectives.draws import Draws
from pyro_nflows.plots import plot_elbo
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
SAID = "The start was already right: no training was needed."


def line(model: Callable[..., Any] = pairs, **options: Any) -> VI:
    return VI(AutoFlow(model, TWO), **{"seed": 0, "engine": "traced", "progress_bar": False, **options})


def located(y: Tensor) -> None:
    loc = pyro.param("loc", lambda: y.new_tensor(0.0))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def skewed(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(y.new_tensor(1.0), 1.0))
    pyro.sample("y", dist.Exponential(rate), obs=y)


def funnel(y: Tensor) -> None:
    log_tau = pyro.sample("log_tau", dist.Normal(y.new_tensor(0.0), 3.0))
    with pyro.plate("rows", 4):
        pyro.sample("z", dist.Normal(0.0, log_tau.exp()))


def schools(y: Tensor) -> None:
    """Eight schools, non-centered."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, y.new_tensor([15.0, 10, 16, 11, 9, 11, 10, 18])), obs=y)


SCHOOLS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)


def two_modes(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 30.0))
    pyro.factor("modes", torch.logaddexp(-0.5 * (z - 10).square(), -0.5 * (z + 10).square()))


def heavy(y: Tensor) -> None:
    pyro.sample("z", dist.StudentT(y.new_tensor(5.0), y.new_zeros(5), 1.0).to_event(1))


def near_modes(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 30.0))
    pyro.factor("modes", torch.logaddexp(-0.5 * z.square(), -0.5 * (z - 3.5).square()))


@pytest.fixture(scope="module")
def untrained() -> VI:
    return line().run(PAIRS)


# ---- a start that is right ------------------------------------------------------------------------------------------


def test_a_gaussian_posterior_is_not_trained_and_is_right(untrained: VI) -> None:
    found = untrained.diagnostics()
    assert (found["num_steps"], found["outcome"]) == (0, Outcome.TRUST)
    assert str(untrained.verdict()).endswith(SAID)
    assert found["iwae"] == pytest.approx(PAIRS_EVIDENCE, abs=0.01)
    assert len(untrained.log_weight) == Schedule().num_samples
    z = untrained.get_samples(4000)["z"]
    assert ((z.mean(0) - PAIRS / 2).abs() < 5 * (0.5 / 4000) ** 0.5).all()
    assert ((z.var(0) - 0.5).abs() < 5 * 0.5 * (2 / 4000) ** 0.5).all()


def test_a_posterior_of_many_counts_is_that_of_quadrature() -> None:
    y = torch.poisson(torch.full((50,), 100.0, dtype=torch.float64), torch.Generator().manual_seed(0))

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(y.new_tensor(4.0), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(z.exp()), obs=y)

    vi = line(model).run(y)
    grid = torch.linspace(4.4, 4.8, 4001, dtype=torch.float64)
    weight = (y.sum() * grid - len(y) * grid.exp() - 0.5 * (grid - 4).square()).softmax(0)
    mean = float(weight @ grid)
    sd = float(weight @ (grid - mean).square()) ** 0.5
    z = vi.get_samples(8000)["z"]
    assert (vi.diagnostics()["num_steps"], vi.diagnostics()["outcome"]) == (0, Outcome.TRUST)
    assert abs(float(z.mean()) - mean) < 5 * sd / 8000**0.5
    assert float(z.std()) == pytest.approx(sd, rel=5 * (2 * 8000) ** -0.5)


def test_what_was_not_trained_prints_plots_and_is_exported(untrained: VI, capsys: pytest.CaptureFixture[str]) -> None:
    untrained.summary()
    out = capsys.readouterr().out
    assert "0 steps in" in out
    assert out.strip().endswith(SAID)
    assert "0 steps in 0 rounds" in repr(untrained.history)
    assert untrained.history.trace().shape == (0,)
    assert plot_elbo(untrained.history.trace()).texts[0].get_text() == "no steps of training"
    assert untrained.to_arviz(500)["posterior"]["z"].shape == (1, 500, 4)
    assert untrained.refine(20, 5, 2, "independence").get_samples()["z"].shape == (40, 4)


def test_what_was_not_trained_is_saved_pickled_and_copied(untrained: VI, tmp_path: Path) -> None:
    untrained.save(tmp_path / "vi.pt")
    loaded = VI.load(tmp_path / "vi.pt", AutoFlow(pairs, TWO), PAIRS)
    for again in (loaded, pickle.loads(pickle.dumps(untrained)), copy.deepcopy(untrained)):
        assert again.verdict() == untrained.verdict()
        assert again.diagnostics() == untrained.diagnostics()
        torch.testing.assert_close(again.guide.median(), untrained.guide.median())
    assert loaded.get_samples(23_000)["z"].shape == (23_000, 4)


def test_whoever_runs_it_again_has_it_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schedule, "of", lambda *_: Schedule(rounds=(Round(50, 16, 1e-3),), num_samples=1000))
    vi = line().run(PAIRS)
    assert vi.diagnostics()["num_steps"] == 0
    vi.run(PAIRS + 1)  # another posterior, whose start is right too
    assert vi.diagnostics()["num_steps"] == 0
    vi.run(PAIRS + 1)
    assert vi.diagnostics()["num_steps"] == 50
    assert SAID not in str(vi.verdict())
    assert vi.diagnostics()["outcome"] is Outcome.TRUST


def test_several_starts_are_each_looked_at() -> None:
    vi = line(num_starts=3).run(PAIRS)
    assert vi.diagnostics()["num_steps"] == 0
    assert len(vi.posterior.starts) == 3
    assert not torch.equal(vi.posterior.starts[0].z, vi.posterior.starts[1].z)
    assert str(vi.verdict()).endswith(SAID)


def test_a_run_that_is_killed_comes_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fit.pt"
    expected = line().run(PAIRS)
    judge = Fitter.judge

    def killed(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(Fitter, "judge", killed)
    with pytest.raises(SystemExit):
        line(checkpoint=path).run(PAIRS)
    monkeypatch.setattr(Fitter, "judge", judge)
    for _ in range(2):  # gone on with, and then complete
        vi = line(checkpoint=path).run(PAIRS)
        assert torch.equal(vi.log_weight, expected.log_weight)
        assert vi.verdict() == expected.verdict()


# ---- starts that are trained ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"num_steps": 20}, {"objective": IWAE(4), "num_steps": 20}, {"annealing": 0.5, "num_steps": 20}],
    ids=["steps", "iwae", "annealed"],
)
def test_steps_that_are_asked_for_are_taken(options: dict[str, Any]) -> None:
    vi = line(**options).run(PAIRS)
    assert vi.diagnostics()["num_steps"] >= 20
    assert SAID not in str(vi.verdict())


def first_title(model: Callable[..., Any], *args: Tensor, **options: Any) -> str | None:
    """The round that a default fit begins with; None where it is complete before any."""
    pyro.clear_param_store()
    guide, plan = AutoFlow(model, TWO, **options), Plan.asked("VI", engine="eager", seed=0, progress_bar=False)
    with Fitter(guide).ready(plan, (args, {}), lambda _: None) as ready:
        init = next(iter(ready.locs))
        task = start(ready.trainer, guide, plan, init).next_round()
        return None if task is None else task.title


@pytest.mark.parametrize(
    ("model", "y"),
    [(skewed, PAIRS[0]), (funnel, PAIRS), (schools, SCHOOLS), (heavy, PAIRS), (near_modes, PAIRS)],
    ids=["gamma", "funnel", "eight schools", "student t", "near modes"],
)
def test_a_posterior_that_is_no_gaussian_is_trained(model: Callable[..., Any], y: Tensor) -> None:
    assert first_title(model, y, centering=None) == "flow"


def test_a_models_own_parameters_are_trained() -> None:
    assert first_title(located, PAIRS) == "Gaussian"
    assert first_title(pairs, PAIRS) is None


def test_a_start_in_one_of_two_modes_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refit(*given: Any) -> Any:
        asked.append(given[-1])
        raise ValueError

    monkeypatch.setattr("pyro_nflows.inference.search.NUM_PARTICLES", (64, 64))
    monkeypatch.setattr("pyro_nflows.inference.running.fit_modes", refit)
    vi = line(two_modes).run(PAIRS)
    assert len(asked) == 1
    assert vi.diagnostics()["outcome"] is Outcome.MODE_MISSED
    assert vi.posterior.missed.share == pytest.approx(0.5, abs=0.1)
    assert SAID not in str(vi.verdict())


# ---- what is evident ------------------------------------------------------------------------------------------------


def draws(log_weight: Tensor) -> Draws:
    return Draws(torch.zeros(len(log_weight), 1), log_weight, torch.zeros_like(log_weight))


def test_the_ess_and_the_tail_have_to_be_good_by_a_margin() -> None:
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert is_evident(draws(0.1 * normal), 0.95)  # ESS exp(-0.01)
    assert not is_evident(draws(0.2 * normal), 0.95)  # exp(-0.04)
    heavy = (1 - torch.rand(20_000, generator=torch.Generator().manual_seed(1))) ** -0.66  # Pareto, k = 0.66
    log_weight = (1 + 5e-3 * heavy).log().double()
    assert is_evident(draws(log_weight), 0.95, tail=False)
    assert not is_evident(draws(log_weight), 0.95)
    assert not is_evident(draws(torch.cat([torch.zeros(999), torch.tensor([math.nan])])), 0.95)


def test_where_it_is_not_evident_nothing_has_changed() -> None:
    guide, plan = AutoFlow(skewed, TWO), Plan.asked("VI", engine="eager", seed=0, progress_bar=False)
    with Fitter(guide).ready(plan, ((PAIRS[0],), {}), lambda _: None) as ready:
        layer = guide.plain_layer()
        with torch.no_grad():
            layer.end.log_scale.zero_()
        random, state = torch.get_rng_state(), {name: value.clone() for name, value in layer.state_dict().items()}
        assert evident(ready.trainer, layer, plan.schedule) is None
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


def test_a_start_beside_its_place_is_moved_there() -> None:
    guide, plan = AutoFlow(pairs, TWO), Plan.asked("VI", engine="eager", seed=0, progress_bar=False)
    with Fitter(guide).ready(plan, ((PAIRS,), {}), lambda _: None) as ready:
        layer = guide.plain_layer()
        with torch.no_grad():
            layer.end.loc.copy_(PAIRS / 2 + 0.3)
            layer.end.log_scale.fill_(math.log(0.8))
        found = evident(ready.trainer, layer, plan.schedule)
    assert found is not None
    assert len(found.z) == plan.schedule.num_samples
    torch.testing.assert_close(layer.end.loc.detach(), PAIRS / 2, atol=0.05, rtol=0)
    torch.testing.assert_close(layer.end.log_scale.detach().exp(), torch.full_like(PAIRS, 0.5**0.5), atol=0.05, rtol=0)


# ---- what draws cost ------------------------------------------------------------------------------------------------


def test_work_counts_products_and_not_what_is_done_once() -> None:
    X, y = torch.randn(500, 7), torch.randn(500)
    gram = torch.randn(50, 50)

    def log_joint(z: Tensor) -> Tensor:
        known = (gram @ gram.T).sum()  # of the data alone
        return -0.5 * (y[:, None] - X @ z.T).square().sum(0) + known

    each = 500 * 7 + 3 * 500  # products, differences, squares; the sum gives one number, of which the rest is made
    assert each - 500 <= work_of(log_joint, torch.zeros(7)) <= each + 10


def test_a_dear_model_has_fewer_draws_and_a_cheap_one_all() -> None:
    assert Schedule().for_work(20).num_samples == Schedule().num_samples
    assert Schedule().for_work(0).num_samples == Schedule().num_samples
    assert Schedule().for_work(10**6).num_samples == 2000
    assert Schedule(num_samples=500).for_work(10**9).num_samples == 500
    assert 2000 < Schedule().for_work(400_000).num_samples < Schedule().num_samples


def test_a_dear_model_is_trained_until_most_draws_count_unless_more_was_asked_for() -> None:
    """Of 4,000 draws, 1,400 more that count would cost 4,800 steps of 128 particles."""
    assert Schedule().for_work(400_000).good_ess == Schedule().for_latents(100).good_ess < Schedule().good_ess
    assert Schedule().for_work(20).good_ess == Schedule().good_ess
    for effort in ("quick", "thorough"):
        asked = Schedule.of_effort(effort)
        assert asked.for_work(10**6).good_ess == asked.good_ess
    assert Schedule.of(500, 1, 0.0).for_work(10**6).good_ess > 1


def test_a_density_that_cannot_be_evaluated_has_no_work() -> None:
    assert work_of(lambda z: z @ torch.zeros(3), torch.zeros(2)) == 0


def test_a_fit_takes_as_many_draws_as_the_model_is_worth() -> None:
    def log_joint(z: Tensor) -> Tensor:
        return -0.5 * (z[:, :, None] - torch.zeros(250_000)).square().mean(-1).sum(-1)

    guide, plan = AutoFlow(pairs, TWO), Plan(progress_bar=False)
    guide(PAIRS)
    trainer = Trainer(log_joint, engine=Engine.EAGER, progress_bar=False)
    assert Fitting(trainer, plan, guide.plain_layer(), None).plan.schedule.num_samples == 2000
