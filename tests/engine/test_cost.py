"""What evaluations take is told from a few of them, and what there is no time for is not begun."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_nflows import flows
from pyro_nflows.engine import Budget, DensityGradient, Engine, OutOfTime, Round, Trainer, sampler
from pyro_nflows.engine.cost import RECORDING, DrawCosts, tried
from pyro_nflows.engine.pace import portions
from pyro_nflows.engine.times import Times
from pyro_nflows.layers import LocScale
from pyro_nflows.objectives.base import Gradient, Objective

Clock = Callable[[float], None]


class Slow:
    """A log density that takes time for each call and for each row, and counts both; a replay of it takes none."""

    def __init__(self, clock: Clock, call: float = 0.0, row: float = 0.0):
        self.clock, self.call, self.row, self.sizes = clock, call, row, list[int]()

    def __call__(self, z: Tensor) -> Tensor:
        self.sizes.append(len(z))
        self.clock(self.call + self.row * len(z))
        return -0.5 * z.square().sum(-1) + z[:, 0].sin()


@pytest.mark.parametrize(
    ("call", "row", "trials"),
    [(0.001, 0.0, [1, 1, 8, 64]), (0.0, 0.1, [1, 1, 8]), (0.0, 1.0, [1, 1, 4]), (3.0, 0.0, [1, 2]), (30.0, 0.0, [1])],
)
def test_trials_take_a_small_part_of_the_time(clock: Clock, call: float, row: float, trials: list[int]) -> None:
    density = Slow(clock, call, row)
    cost = tried(lambda num: density(torch.zeros(num, 2)), 100.0)
    assert density.sizes == trials
    if len(trials) > 1:
        assert cost.of(50) == pytest.approx(call + 50 * row)


def test_the_random_numbers_to_come_do_not_depend_on_trials() -> None:
    state = torch.random.get_rng_state()
    DrawCosts(lambda z: z.sum(-1)).at(LocScale(2), 10.0)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- gradients ------------------------------------------------------------------------------------------------------


def test_what_would_not_end_in_its_piece_of_time_is_not_begun(clock: Clock) -> None:
    slow = Slow(clock, row=0.5)
    budget = Budget(100.0)
    density = DensityGradient(slow).within(budget)
    with budget.within(time.perf_counter() + 30.0), pytest.raises(OutOfTime):
        density.values_and_grads(torch.zeros(200, 2))
    assert slow.sizes == [1, 1, 4]  # trials
    with budget.within(time.perf_counter() + 3.0), pytest.raises(OutOfTime):
        density.hessian(torch.zeros(2))
    assert slow.sizes == [1, 1, 4]
    assert budget.num_refused == 2
    density.values_and_grads(torch.zeros(20, 2))  # outside of pieces of work
    assert max(slow.sizes) <= 8  # rows that are dear are evaluated a few at a time


def test_a_dear_function_is_recorded_once_its_python_has_taken_as_long(clock: Clock) -> None:
    slow = Slow(clock, call=0.1)
    density = DensityGradient(slow, compile=False).within(Budget(100.0))
    values = [density.value_and_grad(torch.full((2,), 0.1 * i))[0] for i in range(RECORDING + 20)]
    calls = len(slow.sizes)
    assert RECORDING < calls < RECORDING + 10  # and trials, and a recording that is compared with it
    right = DensityGradient(slow, compile=False)
    assert torch.allclose(torch.stack(values), torch.stack([right(torch.full((1, 2), 0.1 * i))[0] for i in range(30)]))


def test_where_a_recording_would_take_too_much_of_the_time_there_is_none(clock: Clock) -> None:
    slow = Slow(clock, call=1.0)
    density = DensityGradient(slow, compile=False).within(Budget(30.0))
    for _ in range(20):
        density.value_and_grad(torch.zeros(2))
    assert len(slow.sizes) > 20


def test_a_cheap_function_is_recorded_at_once(clock: Clock) -> None:
    slow = Slow(clock, call=1e-4)
    density = DensityGradient(slow, compile=False).within(Budget(30.0))
    for _ in range(50):
        density.value_and_grad(torch.zeros(2))
    assert len(slow.sizes) < 10


# ---- draws ----------------------------------------------------------------------------------------------------------


def drawn(density: Slow, budget: Budget, num: int, share: float = sampler.DRAWS) -> int:
    made = sampler.Sampler(density, compile=False)
    made.budget = budget
    return len(made.sample(LocScale(2), num, share).z)


@pytest.mark.parametrize(("call", "row"), [(0.0, 0.01), (0.5, 0.0), (0.2, 0.005)])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_draws_take_their_share_of_the_time(clock: Clock, call: float, row: float, share: float) -> None:
    slow, began = Slow(clock, call, row), time.perf_counter()
    num = drawn(slow, Budget(100.0), 20_000, share)
    assert time.perf_counter() - began < 100 * (share + 0.1)  # trials take some too
    assert num > 0.5 * min(20_000, 100 * share / (row + call / 2000))


def test_there_are_a_few_draws_even_where_there_is_no_time_but_not_in_a_piece_of_work(clock: Clock) -> None:
    budget = Budget(10.0)
    assert drawn(Slow(clock, row=1.0), budget, 1000) < 2 * sampler.FEWEST
    with budget.within(time.perf_counter() + 1.0), pytest.raises(OutOfTime):
        drawn(Slow(clock, row=1.0), budget, 1000)


def test_cheap_draws_are_those_that_there_are_without_a_limit() -> None:
    layer, parts = LocScale(3), list[Tensor]()
    for budget in (Budget(), Budget(1e6)):
        made = sampler.Sampler(lambda z: -z.square().sum(-1), compile=False, steady=True)
        made.budget = budget
        torch.manual_seed(0)
        parts.append(made.sample(layer, 3000).log_p)
    assert torch.equal(*parts)


# ---- steps ----------------------------------------------------------------------------------------------------------


def trained(slow: Slow, seconds: float, num_steps: int = 500) -> Trainer:
    trainer = Trainer(slow, progress_bar=False)
    trainer.limit(Budget(seconds))
    assert trainer.run(flows.realnvp(2, 2, (4,)), Objective(), Gradient.PATH, Round(num_steps, 8, 1e-2), "a round")
    trainer.close()
    return trainer


def test_training_ends_where_not_even_a_few_steps_would_end_in_time(clock: Clock) -> None:
    slow, began = Slow(clock, row=1.0), time.perf_counter()
    trainer = trained(slow, 40.0)
    assert time.perf_counter() - began < 10
    assert trainer.history.out_of_time
    assert trainer.history.num_steps == 0


def test_steps_of_which_a_recording_would_take_too_much_of_the_time_are_not_recorded(clock: Clock) -> None:
    trainer = trained(Slow(clock, call=1.0), 60.0)
    assert trainer.history.engines == [Engine.EAGER]
    assert 10 < trainer.history.num_steps < 60
    assert trained(Slow(clock, call=1e-3), 60.0, 60).history.engines != [Engine.EAGER]


def test_a_piece_of_work_without_time_for_steps_is_given_up_and_training_goes_on(clock: Clock) -> None:
    budget, times = Budget(1000.0), Times(DrawCosts(Slow(clock, row=1.0)))
    times.budget = budget
    with budget.within(time.perf_counter() + 30.0), pytest.raises(OutOfTime):
        times.ask([LocScale(2)], Round(10, 8, 1e-2))
    times.ask([LocScale(2)], Round(10, 8, 1e-2))
    assert not budget.is_over


def test_portions_grow_with_the_time_that_is_left_and_end_with_it(clock: Clock) -> None:
    sizes = list[int]()
    for part in portions(torch.zeros(1000), 64, time.perf_counter() + 100.0):
        sizes.append(len(part))
        clock(0.5 * len(part))
    assert sizes[0] == 4
    assert max(sizes) > 20
    assert 150 < sum(sizes) < 250
    assert [len(part) for part in portions(torch.zeros(1000), 64)] == [64] * 15 + [40]
