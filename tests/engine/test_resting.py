"""A round ends early where its bound has come to rest, by a cooling tail, and only where it may."""

import math

import pytest
import torch
from torch import Tensor

from pyro_nflows.engine import Engine, Round, Trainer
from pyro_nflows.engine.course import Course
from pyro_nflows.engine.program import Program
from pyro_nflows.engine.resting import BLOCK, LEFT, cooled, is_settled, tail_of
from pyro_nflows.inference.schedule import EFFORTS, Schedule
from pyro_nflows.layers import Chain, LocScale
from pyro_nflows.objectives.base import Gradient, Objective

pytestmark = pytest.mark.on_devices

K = 128


def bounds(lacks: float, gain: float = 0.0, seed: int = 0) -> Tensor:
    """Two blocks of bounds that lack so much of the evidence, with so much gained from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2 * BLOCK, generator=generator, dtype=torch.float64, device="cpu").to(torch.empty(()).device)
    return -100 + math.sqrt(2 * lacks / K) * noise + gain * torch.arange(2 * BLOCK) / BLOCK


def test_a_bound_at_rest_beside_the_evidence_has_settled() -> None:
    assert sum(is_settled(bounds(0.2 * LEFT, seed=seed), K) for seed in range(20)) > 15  # by noise, one seems to rise


def test_a_bound_that_rests_far_below_the_evidence_has_not() -> None:
    assert not any(is_settled(bounds(3 * LEFT, seed=seed), K) for seed in range(20))


def test_a_bound_that_still_rises_has_not() -> None:
    assert not any(is_settled(bounds(0.2 * LEFT, gain=0.01, seed=seed), K) for seed in range(20))


def test_nor_has_one_that_is_too_short_or_not_finite() -> None:
    flat = bounds(0.2 * LEFT)
    assert not is_settled(flat[1:], K)
    for bad in (math.nan, math.inf, -math.inf):
        broken = flat.clone()
        broken[-1] = bad
        assert not is_settled(broken, K)


def test_steps_cool_along_a_cosine_to_zero() -> None:
    sizes = Round(600, K, 1e-2).step_sizes(torch.zeros(()))
    now = cooled(sizes, 200)
    end = 200 + tail_of(600)
    assert torch.equal(now[:201], sizes[:201])
    assert bool((now[200:end].diff() < 0).all())
    assert now[end - 1] < 0.01 * now[200]
    assert not now[end:].any()
    assert torch.equal(cooled(sizes, None), sizes)


def train(
    settles: bool, engine: Engine = Engine.EAGER, num: int = 600, members: int = 1
) -> tuple[Trainer, list[Chain]]:
    trainer, layers = Trainer(normal, engine=engine, progress_bar=False), [Chain(LocScale(2)) for _ in range(members)]
    torch.manual_seed(0)
    trainer.run_many(layers, Objective(), Gradient.PATH, Round(600, 16, 5e-2, settles=settles), "")
    return trainer, layers


def normal(z: Tensor) -> Tensor:
    """Two latents of means 1 and variances 1."""
    return -0.5 * (z - 1).square().sum(-1) - math.log(2 * math.pi)


@pytest.mark.parametrize("engine", [Engine.EAGER, Engine.TRACED, Engine.COMPILED])
def test_a_round_ends_at_the_same_step_with_each_engine_and_is_as_good(engine: Engine) -> None:
    trainer, (layer,) = train(True, engine)
    num = trainer.history.num_steps
    assert num == train(True)[0].history.num_steps < 600
    assert num % BLOCK == 0
    assert (layer[0].loc - 1).abs().max() < 1e-3
    assert layer[0].log_scale.abs().max() < 1e-3


def test_it_goes_on_to_its_end_unless_it_may_settle() -> None:
    assert train(False)[0].history.num_steps == 600


def test_each_of_several_fits_settles_by_itself() -> None:
    trainer, layers = train(True, members=3)
    assert trainer.history.num_steps < 3 * 600
    assert all((layer[0].loc - 1).abs().max() < 1e-3 for layer in layers)


def test_steps_that_are_asked_for_are_taken() -> None:
    assert [part.settles for part in Schedule().rounds] == [True, True, False]
    asked = Schedule.of(400, 1, 0.0)
    assert not any(part.settles for part in [asked.end, *asked.rounds])


def test_a_round_for_the_tails_is_not_ended_by_its_bound() -> None:
    """Large weights are too rare for the noise of a bound to show them."""
    rounds = [part for effort in EFFORTS for part in Schedule.of_effort(effort).rounds]
    assert any(part.covering for part in rounds)
    assert not any(part.covering and part.settles for part in rounds)


def test_a_killed_round_goes_on_where_it_cooled() -> None:
    """The state of a round under way knows since when it cools."""
    program = Program(normal, Chain(LocScale(2)), Objective(), Gradient.PATH, 16)
    course, again = Course(program, None), Course(program, None)
    course.cools_from = 150
    again.take(course.where())
    assert again.cools_from == 150
