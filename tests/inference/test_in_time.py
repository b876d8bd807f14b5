"""Runs of slow models end in their time, whatever is slow, and say what there was no time for."""

import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.findings import Faults
from pyro_nflows.diagnostics.verdict import Evidence, Outcome, judge
from pyro_nflows.engine import Budget, DensityGradient, Engine, OutOfTime, Trainer
from pyro_nflows.inference.descended import descended
from pyro_nflows.inference.evident import evident
from pyro_nflows.inference.faults import faults_of
from pyro_nflows.inference.fitted import weighed
from pyro_nflows.inference.schedule import Schedule
from pyro_nflows.inference.search import search
from pyro_nflows.inference.stationary import begun
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.feasible import prior_points
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.modes import missed
from pyro_nflows.modes.gaussians import Gaussian
from pyro_nflows.modes.missed import Missed, missed_regions
from pyro_nflows.modes.pathfinder import best_start
from tests.models import PAIRS, pairs

Clock = Callable[[float], None]
SECONDS = 100.0


@pytest.fixture
def slow(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Makes each run of a model, and each row that goes through it, take time; what is recorded takes none."""

    def slow(call: float, row: float) -> None:
        run, rows = LogJoint._run, LogJoint.__call__

        def slow_run(joint: LogJoint, *args: Any) -> Any:
            clock(call)
            return run(joint, *args)

        def slow_rows(joint: LogJoint, z: Tensor) -> Tensor:
            clock(row * len(z))
            return rows(joint, z)

        monkeypatch.setattr(LogJoint, "_run", slow_run)
        monkeypatch.setattr(LogJoint, "__call__", slow_rows)

    return slow


def heavy(y: Tensor) -> None:
    """Of six latents, far from a Gaussian, so that all there is for weights that are bad is done."""
    scale = pyro.sample("scale", dist.HalfCauchy(y.new_tensor(1.0)))
    with pyro.plate("groups", len(y)):
        z = pyro.sample("z", dist.StudentT(y.new_tensor(2.0), 0.0, scale))
        pyro.sample("y", dist.StudentT(y.new_tensor(1.5), z, 0.5), obs=y)


DATA = torch.tensor([-8.0, -0.2, 0.1, 0.3, 9.0], dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"structure": "joint"}, {"centering": None}])
@pytest.mark.parametrize(("call", "row"), [(0.0, 0.05), (0.0, 1.0), (0.5, 0.0), (2.0, 0.0), (0.2, 0.02)])
def test_a_run_of_a_slow_model_ends_in_its_time(
    clock: Clock, slow: Callable[[float, float], None], call: float, row: float, options: dict[str, Any]
) -> None:
    slow(call, row)
    began = time.perf_counter()
    vi = VI(AutoFlow(heavy, **options), max_seconds=SECONDS, seed=0, engine="eager", progress_bar=False).run(DATA)
    assert time.perf_counter() - began < 1.2 * SECONDS
    assert vi.history.out_of_time
    assert "max_seconds was over" in str(vi.verdict())


def rows(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 1.0))
    with pyro.plate("rows", len(y), subsample_size=10) as i:
        z = pyro.sample("z", dist.StudentT(y.new_tensor(3.0), mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def test_a_fit_by_minibatches_of_a_slow_model_ends_in_its_time(
    clock: Clock, slow: Callable[[float, float], None]
) -> None:
    slow(0.2, 0.0)
    began = time.perf_counter()
    vi = VI(AutoFlow(rows), max_seconds=SECONDS, seed=0, engine="eager", progress_bar=False)
    vi.run(torch.linspace(-2.0, 2.0, 200))
    assert time.perf_counter() - began < 1.2 * SECONDS
    assert vi.history.out_of_time
    assert "max_seconds was over" in str(vi.verdict())


def crossed(y: Tensor) -> None:
    users = pyro.plate("users", len(y), subsample_size=5, dim=-2)
    items = pyro.plate("items", y.shape[1], subsample_size=5, dim=-1)
    with users as i:
        a = pyro.sample("a", dist.StudentT(y.new_tensor(4.0), 0.0, 1.0))
    with items as j:
        b = pyro.sample("b", dist.StudentT(y.new_tensor(4.0), 0.0, 1.0))
    with users, items:
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y[i][:, j])


def test_rows_that_there_is_no_time_to_judge_are_not_trusted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.linspace(-1.0, 1.0, 20)[:, None] + torch.linspace(-1.0, 1.0, 20)
    vi = VI(AutoFlow(crossed), max_seconds=SECONDS, effort="quick", seed=0, engine="eager", progress_bar=False)
    assert vi.run(y).diagnostics()["outcome"].is_trusted
    monkeypatch.setattr("pyro_nflows.inference.crossed.JUDGING", -1.0)
    vi = VI(AutoFlow(crossed), max_seconds=SECONDS, effort="quick", seed=0, engine="eager", progress_bar=False)
    assert not vi.run(y).diagnostics()["outcome"].is_trusted
    assert "there was no time to draw rows again" in str(vi.verdict())


# ---- pieces of a run ------------------------------------------------------------------------------------------------


class Slow:
    """A log density each call of which takes a second; a replay of a recording takes none."""

    def __init__(self, clock: Clock):
        self.clock, self.num_calls = clock, 0

    def __call__(self, z: Tensor) -> Tensor:
        self.num_calls += 1
        self.clock(1.0)
        return -0.5 * (z - 3).square().sum(-1) + z[:, 0].sin()


def trainer_of(density: Slow, seconds: float) -> Trainer:
    trainer = Trainer(density, engine=Engine.EAGER, progress_bar=False)
    trainer.limit(Budget(seconds))
    return trainer


def unit() -> Gaussian:
    return Gaussian(torch.zeros(2), torch.eye(2))


@pytest.mark.parametrize("seconds", [1.0, 10.0, 60.0])
def test_a_start_makes_do_with_what_was_found_in_its_time(clock: Clock, seconds: float) -> None:
    slow, budget, init = Slow(clock), Budget(100.0), unit()
    until = time.perf_counter() + seconds
    density = DensityGradient(slow).within(budget)
    with budget.within(until):
        found = best_start(density, init, until=until)
    assert time.perf_counter() < until + 8  # trials come before anything is known
    assert isinstance(found, Gaussian)
    assert bool((found.loc - 3).abs().max() < 1) == (seconds > 1.0)


def test_a_start_that_is_looked_at_without_enough_time_stays_as_it_was(clock: Clock) -> None:
    layer = AutoFlow(pairs)
    layer(PAIRS)
    for seconds in (2.0, 4.0, 8.0, 20.0):
        trainer, plain = trainer_of(Slow(clock), 100.0), layer.plain_layer()
        before = {name: value.clone() for name, value in plain.state_dict().items()}
        with trainer.budget.within(time.perf_counter() + seconds):
            assert evident(trainer, plain, Schedule()) is None
        assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_a_descent_that_has_no_time_for_its_last_look_is_undone(clock: Clock) -> None:
    guide = AutoFlow(pairs)
    guide(PAIRS)
    num_undone = 0
    for seconds in (5.0, 20.0, 30.0, 40.0):
        slow, plain = Slow(clock), guide.plain_layer()
        trainer = trainer_of(slow, 100.0)
        before = plain.end.loc.detach().clone()
        try:
            with trainer.budget.within(time.perf_counter() + seconds):
                descended(trainer, plain, 10)
        except OutOfTime:
            num_undone += 1
            assert torch.equal(plain.end.loc, before)
    assert num_undone > 0


def test_regions_that_were_found_before_the_time_was_over_are_kept(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide, points = AutoFlow(pairs), [torch.tensor([5.0, -4.0]), torch.zeros(2), torch.tensor([-5.0, 5.0])]
    guide(PAIRS)
    budget, looked = Budget(100.0), list[Tensor]()

    def region_of(density: DensityGradient, layer: Any, evidence: float, path: Tensor, *others: Any) -> Missed:
        looked.append(path)
        budget.need(0.0 if len(looked) == 1 else 1e6)
        return Missed(unit(), 0.5)

    def waves(z: Tensor) -> Tensor:
        return -0.05 * z.square().sum(-1) + 3 * z.cos().sum(-1)

    monkeypatch.setattr(missed, "_region_of", region_of)
    until = time.perf_counter() + 50.0
    with budget.within(until):
        found = missed_regions(DensityGradient(waves).within(budget), guide.plain_layer(), 1.8, points, until=until)
    assert len(found) == 1
    assert len(looked) == 2
    assert budget.num_refused == 1


def test_a_search_that_is_cut_short_is_told(clock: Clock) -> None:
    vi = VI(AutoFlow(pairs), max_seconds=1000.0, seed=0, engine="eager", progress_bar=False).run(PAIRS)
    assert not vi.history.unsearched
    trainer = trainer_of(Slow(clock), 10.0)
    fit = weighed(vi.guide.plain_layer(), trainer.sampler.sample(vi.guide.plain_layer(), 100))
    search(trainer, vi.guide, fit, False, None, hopes=True)
    assert trainer.history.unsearched


def test_weights_that_leave_a_doubt_are_not_trusted_where_there_was_no_time_to_look_into_it(clock: Clock) -> None:
    guide = AutoFlow(pairs)
    guide(PAIRS)
    joint = LogJoint(BoundModel(guide.bare_model, (PAIRS,)), guide.latents)
    trainer = trainer_of(Slow(clock), 100.0)
    fit = weighed(guide.plain_layer(), trainer.sampler.sample(guide.plain_layer(), 1000))
    clock(98.0)
    assert faults_of(trainer, joint, guide, fit).unexamined


@pytest.mark.parametrize("spread", [0.0, 1.1])
def test_the_verdict_on_what_was_not_looked_into(spread: float) -> None:
    log_weight = spread * torch.special.ndtri((torch.arange(10_000) + 0.5) / 10_000).clamp(max=2.0)
    given = Evidence(log_weight, [], [], torch.ones(1))
    assert judge(given).outcome.is_trusted
    verdict = judge(given._replace(faults=Faults(unexamined=True)))
    assert verdict.outcome is Outcome.UNEXAMINED
    assert not verdict.outcome.is_trusted
    assert "whether the posterior is proper" in verdict.sentence
    worse = judge(given._replace(faults=Faults(unexamined=True, improper=("a",))))
    assert worse.outcome is Outcome.IMPROPER


def test_chains_heed_the_clock_as_well_as_the_processor(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "process_time", lambda: 0.0)  # another job has the processor
    slow, budget, layer = Slow(clock), Budget(1000.0), AutoFlow(pairs)
    layer(PAIRS)
    draws = trainer_of(slow, 1e6).sampler.sample(layer.plain_layer(), 1000)
    began = time.perf_counter()
    with budget.within(began + 10.0), pytest.raises(OutOfTime):
        begun(slow, layer.plain_layer(), draws, budget=budget)
    assert time.perf_counter() - began < 20


def test_draws_of_the_prior_end_with_their_time(clock: Clock) -> None:
    def model() -> None:
        clock(1.0)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoFlow(model)
    guide()
    joint = LogJoint(BoundModel(guide.bare_model), guide.latents)
    assert len(prior_points(joint.bound, joint.latents, 8)) == 8
    assert len(prior_points(joint.bound, joint.latents, 8, time.perf_counter() + 2.5)) == 3
