"""A fit asks for its rounds one by one, and what comes next depends on what came of the last."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyro_nflows import AutoFlow, flows
from pyro_nflows.diagnostics.worth import effective
from pyro_nflows.engine import Engine, Round, Trainer
from pyro_nflows.inference.fit import drive, start
from pyro_nflows.inference.mark import Mark
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.rounds import Fitting
from pyro_nflows.inference.schedule import Schedule
from pyro_nflows.inference.stages import FlowRounds
from pyro_nflows.objectives.base import Gradient
from pyro_nflows.objectives.covering import Covering
from pyro_nflows.objectives.draws import Draws
from tests.models import PAIRS, pairs

ROUNDS = (Round(5, 8, 5e-3), Round(5, 8, 3e-3), Round(5, 8, 2e-3, covering=True))
PLAN = Plan(schedule=Schedule(Round(5, 8, 2e-2), ROUNDS, num_samples=500, good_ess=2.0), engine=Engine.EAGER)


def log_joint(z: Tensor) -> Tensor:
    return -0.5 * (z - 1).square().sum(-1)


@pytest.fixture
def by_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Gaussian is trained by Adam, as where the flow of Gaussians does not apply."""
    monkeypatch.setattr("pyro_nflows.inference.rounds.can_descend", lambda *_: False)


def fitting(plan: Plan = PLAN) -> Fitting:
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, 2, (4,)))
    guide(PAIRS)
    trainer = Trainer(log_joint, engine=Engine.EAGER, progress_bar=False)
    return start(trainer, guide, plan, torch.zeros(4, dtype=torch.float64))


def titles(one: Fitting, wells: dict[str, bool] | None = None) -> list[str]:
    """Of the rounds that a fit asks for, where those that are named go badly, and none is trained."""
    found = []
    while (task := one.next_round()) is not None:
        found.append(task.title)
        one.done((wells or {}).get(task.title, True))
    return found


def test_a_fit_begins_with_the_best_gaussian_and_goes_on_until_its_draws_are_good() -> None:
    one = fitting()
    assert titles(one) == ["flow", "flow, round 2", "flow, round 3"]
    assert one.trainer.history.descent > 0


@pytest.mark.usefixtures("by_adam")
def test_a_fit_by_adam_begins_with_a_gaussian_and_goes_on_until_its_draws_are_good() -> None:
    one = fitting()
    assert titles(one) == ["Gaussian", "flow", "flow, round 2", "flow, round 3"]
    assert one.fit is not None
    assert not one.fit.failed
    assert len(one.fit.draws.z) == 500


def test_a_start_that_is_the_posterior_itself_is_not_trained_unless_it_goes_on() -> None:
    plan = replace(PLAN, schedule=replace(PLAN.schedule, good_ess=0.5))
    one = fitting(plan)
    assert titles(one) == []
    assert one.fit is not None
    assert len(one.fit.draws.z) == 500
    again = Fitting(one.trainer, replace(plan, goes_on=True), one.layer, one.init)
    assert titles(again) == ["flow"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_last_round_that_spoils_the_tail_gives_way_to_the_one_before(
    interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws a third as wide as the posterior have weights with a tail of index 0.9."""
    monkeypatch.setattr(Mark, "was_better", lambda *_: False)  # the Gaussian here is the posterior, and would do too
    one = fitting()
    while (task := one.next_round()) is not None:
        if task.title == "flow, round 3":
            with torch.no_grad():
                one.layer.end.log_scale -= 1.0
            one.trainer.history.interrupted = interrupted
        one.done(True)
    assert one.fit is not None
    is_right = effective(one.fit.draws.log_weight) > 0.99
    assert is_right is not interrupted
    assert one.trainer.history.restarts == 0
    torch.manual_seed(0)
    fresh = one.trainer.sampler.sample(one.fit.layer, 500)
    assert (effective(fresh.log_weight) > 0.99) is is_right


def trained(schedule: Schedule, log_scale: float) -> Fitting:
    """A fit that goes on from a trained flow, whose Gaussian is wider than the posterior."""
    one = fitting(replace(PLAN, schedule=schedule))
    with torch.no_grad():
        one.layer.end.loc.fill_(1.0)
        one.layer.end.log_scale.fill_(log_scale)
        for parameter in one.layer.flow.parameters():
            parameter.add_(1e-3)
    return one


@pytest.mark.parametrize(("good_ess", "rounds"), [(0.6, 2), (0.9, 3)])
def test_a_round_that_gains_little_is_the_last_where_much_is_not_asked_for(good_ess: float, rounds: int) -> None:
    """Weights of draws that are wider than the posterior have no tail."""
    schedule = replace(PLAN.schedule, num_samples=2000, good_ess=good_ess)
    one = trained(schedule, 0.4)
    assert len(titles(one)) == rounds
    assert one.fit is not None
    assert 0.2 < effective(one.fit.draws.log_weight) < 0.6


def test_one_large_weight_among_the_first_draws_asks_for_a_look_at_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which then decide: here the flow is nearly the posterior."""
    look = FlowRounds._draws

    def with_one(rounds: FlowRounds, num_samples: int) -> Draws:
        draws = look(rounds, num_samples)
        draws.log_p[0] += 6.0
        return draws

    monkeypatch.setattr(FlowRounds, "_draws", with_one)
    one = trained(replace(PLAN.schedule, num_samples=4000, good_ess=0.6), 0.1)
    few = with_one(FlowRounds(one.trainer, one.plan, one.layer), 2000).log_weight
    assert effective(few) < 0.3
    assert titles(one) == ["flow"]
    assert one.fit is not None
    assert effective(one.fit.draws.log_weight) > 0.9


def test_given_hubs_the_first_round_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = replace(PLAN.schedule, num_samples=2000, good_ess=0.6)
    assert titles(trained(schedule, 0.1)) == ["flow"]
    one = trained(schedule, 0.1)
    monkeypatch.setattr("pyro_nflows.inference.stages.GivenHubs", type(one.layer.flow))
    assert titles(one) == ["flow", "flow, round 2"]


def test_with_a_sparse_end_of_many_latents_steps_have_few_particles_unless_they_are_asked_for() -> None:
    chosen = Schedule().for_latents(1000, is_sparse=True)
    assert {part.num_particles for part in chosen.rounds} == {32}
    assert chosen.good_ess == Schedule().for_latents(1000, is_full=True).good_ess < Schedule().for_latents(500).good_ess
    assert {part.num_particles for part in Schedule().for_latents(1000, is_full=True).rounds} == {128}
    for asked in (Schedule.of(300, 64, 0.0), Schedule.of_effort("thorough")):
        assert asked.for_latents(1000, is_sparse=True) == asked


@pytest.mark.usefixtures("by_adam")
def test_a_gaussian_that_fails_is_begun_again_at_the_plain_start() -> None:
    one = fitting()
    assert titles(one, {"Gaussian": False}) == ["Gaussian", "Gaussian"]
    assert one.fit is not None
    assert one.fit.failed


@pytest.mark.usefixtures("by_adam")
def test_a_round_that_fails_is_the_last() -> None:
    one = fitting()
    assert titles(one, {"flow, round 2": False}) == ["Gaussian", "flow", "flow, round 2"]
    assert one.fit is not None
    assert one.fit.failed


def test_after_an_interrupt_there_is_no_further_round() -> None:
    one = fitting()
    assert one.next_round() is not None
    one.trainer.interrupt()
    one.done(True)
    assert one.next_round() is None
    assert one.fit is not None


def test_a_flow_that_has_been_trained_has_no_gaussian_round() -> None:
    one = fitting()
    with torch.no_grad():
        for parameter in one.layer.flow.parameters():
            parameter.add_(0.1)
    assert titles(one)[0] == "flow"


@pytest.mark.usefixtures("by_adam")
def test_the_last_round_gives_draws_of_large_weight_more_say() -> None:
    one, shares = fitting(), []
    while (task := one.next_round()) is not None:
        assert task.gradient is Gradient.PATH
        shares.append(task.objective.share if isinstance(task.objective, Covering) else math.nan)
        one.done(True)
    assert shares[1:] == [0.0, 0.0, 0.5]


def test_done_without_a_round_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no round is under way; call next_round first"):
        fitting().done(True)


def test_several_fits_are_driven_together_and_few_at_a_time() -> None:
    begun: list[int] = []

    def fits() -> list[Fitting]:
        one = fitting()
        trainer = one.trainer
        return [Fitting(trainer, PLAN, one.layer, None) for _ in range(3)]

    def counted() -> object:
        for i, one in enumerate(fits()):
            begun.append(i)
            yield one

    complete = 0
    for one in drive(counted(), width=2):  # type: ignore[arg-type]
        complete += 1
        assert one.fit is not None
        assert len(begun) <= complete + 2
    assert complete == 3
