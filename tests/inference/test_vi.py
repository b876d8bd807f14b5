"""VI from run to verdict, on models small enough to know the answer."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor

from pyro_nflows import ELBO, IWAE, VI, AutoFlow, flows
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.engine import Engine, Round, Trainer
from pyro_nflows.engine.native import build
from pyro_nflows.guides import AutoFlow as AnyGuide
from pyro_nflows.inference import rounds
from pyro_nflows.inference.schedule import Schedule
from tests.guide_registry import Case, cases
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs
from tests.streams import Terminal

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))


def small(model: Callable[..., Any] = pairs) -> AutoFlow:
    return AutoFlow(model, TWO)


def quick(model: Callable[..., Any] = pairs, **kwargs: Any) -> VI:
    options = {"num_steps": 20, "engine": "eager", "seed": 0, "progress_bar": False, **kwargs}
    return VI(small(model), **options)


@pytest.fixture(scope="module")
def fitted() -> VI:
    pyro.clear_param_store()
    return quick(num_steps=100).run(PAIRS)


# ---- asking -------------------------------------------------------------------------------------------------


def test_diagnostics_are_those_of_the_exact_posterior(fitted: VI) -> None:
    d = fitted.diagnostics()
    assert d["elbo"] == pytest.approx(PAIRS_EVIDENCE, abs=0.01)
    assert d["iwae"] == pytest.approx(PAIRS_EVIDENCE, abs=5 * d["iwae_se"] + 1e-6)
    assert d["elbo"] <= d["iwae"]
    assert 0 <= d["elbo_se"] < 0.001
    assert d["ess"] > 0.99
    assert d["outcome"] is Outcome.TRUST
    assert (d["num_steps"], d["num_skipped"], d["interrupted"]) == (150, 0, False)
    assert d["seconds"] > 0


def test_seconds_are_those_of_the_whole_run() -> None:
    began = time.perf_counter()
    vi = quick(num_steps=20).run(PAIRS)
    wall = time.perf_counter() - began
    assert 0.8 * wall < vi.diagnostics()["seconds"] <= wall


@pytest.mark.parametrize("resample", [None, True, False])
def test_samples_are_posterior_draws(fitted: VI, resample: bool | None) -> None:
    z = fitted.get_samples(4000, resample=resample)["z"]
    assert z.shape == (4000, 4)
    assert z.dtype == torch.float64
    assert not z.requires_grad
    assert ((z.mean(0) - PAIRS / 2).abs() < 5 * (0.5 / 4000) ** 0.5 + 0.01).all()
    assert ((z.var(0) - 0.5).abs() < 5 * 0.5 * (2 / 4000) ** 0.5 + 0.01).all()


def test_more_samples_than_were_kept() -> None:
    vi = quick(num_steps=2).run(PAIRS)
    kept = len(vi.get_samples(10**4)["z"])
    assert kept == 10**4
    assert vi.get_samples(23_000)["z"].shape == (23_000, 4)
    assert vi.diagnostics()["elbo"] <= vi.diagnostics()["iwae"]


def test_summary_prints_a_table_the_evidence_and_the_verdict(fitted: VI, capsys: pytest.CaptureFixture[str]) -> None:
    fitted.summary(prob=0.8)
    out = capsys.readouterr().out
    head, *rows = out.splitlines()
    assert head.split() == ["mean", "std", "median", "10.0%", "90.0%", "mcse"]
    assert [row.split()[0] for row in rows[:4]] == ["z[0]", "z[1]", "z[2]", "z[3]"]
    mean, std = (float(number) for number in rows[2].split()[1:3])
    assert (mean, std) == pytest.approx((1.0, 0.5**0.5), abs=0.05)
    assert "ELBO -6.5" in out
    assert "150 steps" in out
    assert out.strip().endswith(fitted.verdict().sentence)


def test_to_arviz(fitted: VI) -> None:
    data = fitted.to_arviz(500)
    assert data["posterior"]["z"].shape == (1, 500, 4)
    assert data["posterior"]["z"].dims[-1] == "unit"
    stats = data["sample_stats"]
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"])
    np.testing.assert_allclose(data["observed_data"]["x"], PAIRS)


def test_save_and_load(fitted: VI, tmp_path: Path) -> None:
    fitted.save(tmp_path / "vi.pt")
    again = VI.load(tmp_path / "vi.pt", small(), PAIRS)
    assert again.diagnostics() == fitted.diagnostics()
    assert torch.equal(again.history.trace(), fitted.history.trace())
    samples = []
    for vi in (fitted, again):
        pyro.set_rng_seed(1)
        samples.append(vi.get_samples(50)["z"])
    assert torch.equal(*samples)
    assert again.get_samples(23_000)["z"].shape == (23_000, 4)
    torch.testing.assert_close(again.guide.median(), fitted.guide.median())


def test_the_guide_is_ready_for_pyro(fitted: VI) -> None:
    predictive = Predictive(pairs, guide=fitted.guide, num_samples=2000, parallel=True, return_sites=["z"])
    z = predictive(PAIRS)["z"]
    assert ((z.mean(0) - PAIRS / 2).abs() < 5 * (0.5 / 2000) ** 0.5 + 0.01).all()


# ---- the model's own parameters ---------------------------------------------------------------------------


def located(y: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros((), dtype=y.dtype))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_a_parameter_far_away_is_waited_for() -> None:
    pyro.clear_param_store()
    y = 30 + torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vi = VI(small(located), seed=0, progress_bar=False).run(y)
    assert pyro.param("loc").item() == pytest.approx(y.mean().item(), abs=0.02)
    assert vi.diagnostics()["outcome"] is Outcome.TRUST


def shifted(y: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros((), dtype=y.dtype))
    z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=y.dtype), 100.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z + loc, 1.0), obs=y)


def test_a_parameter_that_a_latent_makes_up_for_need_not_come_to_rest() -> None:
    """Their sum is known, and either may wander: the bound says that nothing comes of it."""
    pyro.clear_param_store()
    y = 3 + torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vi = VI(small(shifted), seed=0, progress_bar=False).run(y)
    assert vi.diagnostics()["outcome"] is Outcome.TRUST
    total = vi.get_samples(1000)["z"] + pyro.param("loc").detach()
    assert float(total.mean()) == pytest.approx(float(y.mean()), abs=5 * 0.0707 / 1000**0.5 + 0.001)


def test_a_parameter_that_still_moves_is_told_of(tmp_path: Path) -> None:
    pyro.clear_param_store()
    y = torch.full((20,), 30.0, dtype=torch.float64)
    vi = quick(located, num_steps=20).run(y)
    assert vi.diagnostics()["outcome"] is Outcome.UNSETTLED
    assert "still moving" in vi.verdict().sentence
    vi.save(tmp_path / "vi.pt")
    assert VI.load(tmp_path / "vi.pt", small(located), y).diagnostics()["outcome"] is Outcome.UNSETTLED


@pytest.mark.parametrize("narrow", [0.0, rounds.NARROW])
def test_a_narrow_start_is_raced_against_the_plain_one(narrow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a funnel, where a Gaussian can have the better ELBO, and cannot be widened in time."""
    thin = torch.tensor([1.0, 1.0, 1.0, 1e-8]).diag()
    monkeypatch.setattr(rounds, "best_start", lambda _, init, **options: init._replace(scale_tril=thin))
    monkeypatch.setattr(rounds, "NARROW", narrow)
    ess = quick(num_steps=400, engine=None).run(PAIRS).diagnostics()["ess"]
    assert ess > 0.99 if narrow else ess < 0.5


# ---- what can go wrong, and nothing is lost -----------------------------------------------------------------


class OldSquare(torch.autograd.Function):
    """An autograd.Function in the old style, which torch.func refuses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def squared() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    pyro.factor("square", -OldSquare.apply(z))


@pytest.mark.filterwarnings("ignore::pyro_nflows.model.log_joint.VectorizationWarning")
def test_an_old_autograd_function_is_no_obstacle() -> None:
    vi = quick(squared, num_steps=200).run()
    assert vi.diagnostics()["elbo"] == pytest.approx(-0.5 * math.log(3), abs=0.01)


@pytest.mark.parametrize("where", ["rounds.best_start", "stages.sound", "search.missed_regions"])
def test_an_interrupt_between_rounds_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"pyro_nflows.inference.{where}", interrupt)
    vi = quick(num_steps=8).run(PAIRS)
    assert vi.diagnostics()["interrupted"]
    assert vi.get_samples(10)["z"].shape == (10, 4)


def test_an_interrupt_before_the_best_fit_is_chosen_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list[Any]()
    close = Trainer.close

    def interrupted_once(self: Trainer) -> None:
        chosen.append(self)
        if len(chosen) == 1:
            raise KeyboardInterrupt
        close(self)

    monkeypatch.setattr(Trainer, "close", interrupted_once)
    vi = quick(num_steps=8).run(PAIRS)
    assert len(chosen) > 1
    assert vi.diagnostics()["interrupted"]
    assert vi.get_samples(10)["z"].shape == (10, 4)


def test_no_draw_with_any_weight_is_a_verdict_not_an_error() -> None:
    runs = [0]

    def dies() -> None:
        runs[0] += 1
        pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.factor("bad", torch.tensor(-math.inf if runs[0] > 30 else 0.0, dtype=torch.float64))

    vi = quick(dies).run()
    d = vi.diagnostics()
    assert (d["elbo"], d["iwae"], d["ess"], d["pareto_k"]) == (-math.inf, -math.inf, 0.0, math.inf)
    assert d["outcome"] is Outcome.NOT_FINITE
    assert "'bad'" in vi.verdict().sentence
    vi.summary()


# ---- running ------------------------------------------------------------------------------------------------


def test_a_seed_makes_a_run_reproducible() -> None:
    first, same, other = (quick(seed=seed).run(PAIRS) for seed in (1, 1, 2))
    assert torch.equal(first.history.trace(), same.history.trace())
    assert first.diagnostics()["elbo"] == same.diagnostics()["elbo"]
    assert not torch.equal(first.history.trace(), other.history.trace())


def test_without_a_seed_pyros_seed_decides() -> None:
    traces = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        traces.append(quick(seed=None).run(PAIRS).history.trace())
    assert torch.equal(traces[0], traces[1])
    assert not torch.equal(traces[0], traces[2])


def test_global_random_states_are_left_alone() -> None:
    pyro.set_rng_seed(11)  # torch's, Python's and NumPy's
    before = pyro.util.get_rng_state()
    quick().run(PAIRS)
    after = pyro.util.get_rng_state()
    assert torch.equal(after["torch"], before["torch"])
    assert after["random"] == before["random"]
    assert (after["numpy"][1] == before["numpy"][1]).all()


def test_the_param_store_is_left_alone() -> None:
    pyro.param("mine", torch.tensor(2.0))
    mine = pyro.get_param_store()._params["mine"]
    quick().run(PAIRS).get_samples(5)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert pyro.get_param_store()._params["mine"] is mine


def test_two_fits_of_the_same_shapes_do_not_mix() -> None:
    """Though their guides have the same names in the param store."""

    def shifted(x: Tensor) -> None:
        pairs(x + 10)

    guides = [quick(model).run(PAIRS).guide for model in (pairs, shifted)]
    for guide, mean in zip(guides, (PAIRS / 2, PAIRS / 2 + 5)):
        guide(PAIRS)
        assert (guide.median()["z"] - mean).abs().max() < 1


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_params_of_the_model_are_trained(engine: str) -> None:
    """Maximum likelihood: the mean of ``x`` is that of the data."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    data = 0.4 + 0.1 * PAIRS
    vi = quick(model, num_steps=150, engine=engine, objective=ELBO(32)).run(data)
    assert list(pyro.get_param_store().keys()) == ["loc"]
    assert float(pyro.param("loc").detach()) == pytest.approx(float(data.mean()), abs=0.02)
    assert vi.diagnostics()["ess"] > 0.9


def test_run_again_trains_further() -> None:
    vi = quick(num_steps=30).run(PAIRS)
    first = vi.diagnostics()["elbo"]
    steps = vi.run(PAIRS).diagnostics()["num_steps"]
    assert steps == 30
    assert vi.diagnostics()["elbo"] > first - 0.05


def test_traced_and_eager_runs_are_the_same() -> None:
    traces = []
    for engine in ("eager", "traced"):
        vi = quick(engine=engine, num_steps=60).run(PAIRS)
        assert set(vi.history.engines) == {Engine(engine)}
        traces.append(vi.history.trace())
    torch.testing.assert_close(*traces, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", [ELBO(8, "total"), IWAE(8), IWAE(8, "path")])
def test_any_objective(objective: ELBO) -> None:
    d = quick(objective=objective, num_steps=60).run(PAIRS).diagnostics()
    assert d["elbo"] == pytest.approx(PAIRS_EVIDENCE, abs=0.1)


@cases()
def test_any_guide(case: Case) -> None:
    guide: AnyGuide = case(pairs)
    vi = VI(guide, num_steps=10, engine="eager", seed=0, progress_bar=False).run(PAIRS)
    assert vi.diagnostics()["elbo"] == pytest.approx(PAIRS_EVIDENCE, abs=0.2)


def test_one_dimension_and_keyword_arguments() -> None:
    def model(*, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    vi = VI(AutoFlow(model), num_steps=10, engine="eager", seed=0, progress_bar=False).run(y=torch.tensor(0.5))
    assert vi.diagnostics()["elbo"] == pytest.approx(-0.5 * math.log(4 * math.pi) - 0.0625, abs=0.05)


def test_enumerated_latents_are_summed_out() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(z + k, 1.0), obs=y)

    d = quick(model, num_steps=60).run(torch.tensor(0.5)).diagnostics()
    parts = torch.tensor([0.7, 0.3]).log() + dist.Normal(torch.tensor([0.0, 1.0]), 2**0.5).log_prob(torch.tensor(0.5))
    assert d["iwae"] == pytest.approx(float(parts.logsumexp(0)), abs=5 * d["iwae_se"] + 1e-6)


# ---- when things go wrong -----------------------------------------------------------------------------------


class Counting:
    """The pairs, and something else at some of the runs under ``vmap``."""

    def __init__(self, act: Callable[[int], Any]):
        self.act, self.count = act, 0

    def __call__(self, x: Tensor) -> None:
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        if torch._C._functorch.maybe_current_level() is not None:
            self.count += 1
            pyro.factor("trouble", z.sum() * 0 + self.act(self.count))


def interrupt_at(when: int) -> Callable[[int], float]:
    def act(count: int) -> float:
        if count == when:
            raise KeyboardInterrupt
        return 0.0

    return act


def test_an_interrupted_run_keeps_what_it_has_reached(capsys: pytest.CaptureFixture[str]) -> None:
    # Sixty steps of the Gaussian and a few runs before them, then half of the flow's 120 steps.
    vi = quick(Counting(interrupt_at(140)), num_steps=120).run(PAIRS)
    d = vi.diagnostics()
    assert d["interrupted"]
    assert 60 < d["num_steps"] < 180
    assert d["elbo"] == pytest.approx(PAIRS_EVIDENCE, abs=0.5)
    assert vi.get_samples(5)["z"].isfinite().all()
    vi.summary()
    assert "Training was interrupted" in capsys.readouterr().out


def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    vi = quick(Counting(lambda count: math.nan if count % 7 == 0 else 0.0), num_steps=100).run(PAIRS)
    assert 15 <= vi.diagnostics()["num_skipped"] <= 25
    assert all(param.isfinite().all() for param in vi.guide.parameters())


def test_draws_that_overflow_count_for_nothing_if_they_are_rare() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("overflow", torch.where(z > 3.1, math.nan, 0.0))

    vi = quick(model).run()
    assert vi.diagnostics()["outcome"] is Outcome.OUTLIERS
    z = vi.get_samples(1000)["z"]
    assert z.max() <= 3.1
    assert abs(z.mean()) < 0.1
    assert abs(z.std() - 1) < 0.1


@pytest.mark.parametrize("is_bad", [lambda z: z > 1.5, lambda z: (30 * z).sin() > 0], ids=["beyond", "stripes"])
def test_a_fit_with_many_of_them_is_not_trusted(is_bad: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Beyond an edge, a narrow guide has few of them, and its weights tell; in stripes, every guide has many."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("overflow", torch.where(is_bad(z), math.nan, 0.0))

    vi = quick(model).run()
    outcome = vi.diagnostics()["outcome"]
    assert not outcome.is_trusted
    assert (outcome is Outcome.NOT_FINITE) is bool(is_bad(vi.posterior.draws.z[:, 0]).double().mean() > 0.01)
    assert not is_bad(vi.get_samples(1000)["z"]).any()


def test_too_many_of_them_name_the_site() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
        pyro.factor("cliff", torch.where(z.abs() > 0.5, math.nan, 0.0) * z)

    vi = quick(model).run()
    assert vi.history.failed
    assert vi.diagnostics()["outcome"] is Outcome.NOT_FINITE
    assert "first at site 'cliff'" in vi.verdict().sentence
    assert vi.get_samples(5)["z"].isfinite().all()


def test_starts_that_find_different_modes_are_told() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        modes = torch.stack([dist.Normal(-5.0, 0.1).log_prob(z), dist.Normal(5.0, 0.1).log_prob(z) + 1])
        pyro.factor("modes", modes.logsumexp(0))

    for num_starts, outcome in ((1, Outcome.MODE_MISSED), (6, Outcome.STARTS_DISAGREE)):
        vi = quick(model, num_starts=num_starts).run()
        assert vi.diagnostics()["outcome"] is outcome


def test_annealing() -> None:
    vi = quick(annealing=0.5, num_steps=60).run(PAIRS)
    assert vi.history.num_steps == 60  # no Gaussian is fitted first
    assert math.isfinite(vi.diagnostics()["elbo"])


def test_the_flow_of_gaussians_widens_a_narrow_start(monkeypatch: pytest.MonkeyPatch) -> None:
    thin = torch.tensor([1.0, 1.0, 1.0, 1e-8]).diag()
    monkeypatch.setattr(rounds, "best_start", lambda _, init, **options: init._replace(scale_tril=thin))
    monkeypatch.setattr(rounds.Fitting, "_evidence", lambda _: None)
    monkeypatch.setattr(Schedule, "of", lambda *_: Schedule(rounds=(Round(2, 16, 1e-4),), num_samples=1000))
    vi = quick(num_steps=None).run(PAIRS)
    assert vi.diagnostics()["ess"] > 0.99
    assert vi.history.descent > 1


def test_the_bar_shows_elbo_steps_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    quick(progress_bar=True).run(PAIRS)
    bar = terminal.getvalue()
    for part in ("Gaussian", "flow", "ELBO -6.", "15/15", "step/s"):
        assert part in bar
    quick().run(PAIRS)
    assert terminal.getvalue() == bar


# ---- engines ------------------------------------------------------------------------------------------------


def normal_mean(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 10.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_new_data_of_the_same_shape_do_not_run_the_model_at_every_step() -> None:
    calls = [0]

    def counted(y: Tensor) -> None:
        calls[0] += 1
        normal_mean(y)

    vi = VI(small(counted), num_steps=400, seed=0, progress_bar=False).run(torch.tensor([1.0, 2.0, 3.0]))
    first, recorded = calls[0], list(vi._fitter.trainer._runners)
    vi.run(torch.tensor([5.0, 6.0, 7.0]))
    assert list(vi._fitter.trainer._runners) == recorded
    assert vi.get_samples(4000)["z"].mean().item() == pytest.approx(6.0, abs=0.1)
    assert calls[0] - first < 200  # of the 400 steps and what goes with them
    vi.run(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    assert vi.get_samples(4000)["z"].mean().item() == pytest.approx(6.5, abs=0.1)


@pytest.mark.parametrize("engine", [None, *Engine])
def test_every_engine_gives_the_same_fit(engine: Engine | None) -> None:
    if engine is Engine.COMPILED and build.compiler() is None:
        pytest.skip("no C compiler")

    def counts(y: Tensor) -> None:
        """Not Gaussian: where a Gaussian start is exact, all gradients are rounding, which Adam blows up."""
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Poisson(z.exp()), obs=y)

    y = torch.tensor([1.0, 0.0, 3.0])
    vi = VI(small(counts), num_steps=60, seed=0, engine=engine, progress_bar=False).run(y)
    eager = VI(small(counts), num_steps=60, seed=0, engine="eager", progress_bar=False).run(y)
    assert engine is None or set(vi.history.engines) == {engine}
    assert torch.allclose(vi.history.trace(), eager.history.trace(), rtol=1e-6)
    assert torch.allclose(vi.log_weight, eager.log_weight, atol=1e-5)


def test_starts_train_side_by_side_and_each_in_its_own_way() -> None:
    vi = quick(num_starts=3, num_steps=60, engine="traced").run(PAIRS)
    first, second, _ = vi.posterior.starts
    assert not torch.equal(first.z.mean(0), second.z.mean(0))
    assert vi.history.num_steps == 3 * (30 + 60)
    assert len(vi.history.engines) == 3  # rounds, whatever the number of starts


def test_starts_of_a_model_with_parameters_train_one_after_the_other() -> None:
    def model(y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    vi = quick(model, num_starts=2, num_steps=60).run(torch.tensor(3.0))
    assert len(vi.posterior.starts) == 2
    assert len(vi.history.engines) == 6


def test_several_starts_are_chains_in_arviz() -> None:
    vi = quick(num_steps=200, num_starts=3).run(PAIRS)
    data = vi.to_arviz(num_samples=3000)
    assert data["posterior"]["z"].shape == (3, 1000, 4)
    assert data["sample_stats"]["log_weight"].shape == (3, 1000)
    assert float(az.rhat(data)["z"].max()) < 1.02
