"""A run ends when its time does, with what it has reached judged honestly."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.diagnostics.findings import Training
from pyro_nflows.engine import Budget, Engine, Round, Stretch, Trainer
from pyro_nflows.engine.budget import JUDGING
from pyro_nflows.engine.density_gradient import DensityGradient
from pyro_nflows.modes.ascent import ascend
from pyro_nflows.modes.gaussians import Gaussian
from pyro_nflows.modes.pathfinder import lbfgs_path
from pyro_nflows.objectives.base import Gradient, Objective
from tests.models import PAIRS, pairs

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
OVER = "Training ended because max_seconds was over"


def line(model: Callable[..., Any] = pairs, **options: Any) -> VI:
    return VI(AutoFlow(model, TWO), **{"seed": 0, "engine": "eager", "progress_bar": False, **options})


# ---- the clock ------------------------------------------------------------------------------------------------------


def test_training_leaves_time_for_judging(clock: Callable[[float], None]) -> None:
    budget = Budget(100.0)
    clock(100 * (1 - JUDGING) - 1)
    assert not budget.is_over
    clock(1.5)
    assert budget.is_over
    assert budget.left == pytest.approx(100 * JUDGING - 0.5)
    clock(100.0)
    assert budget.left == 0.0
    assert not Budget().is_over


def test_fits_one_after_the_other_share_the_time(clock: Callable[[float], None]) -> None:
    budget = Budget(100.0 / (1 - JUDGING))  # a hundred for training
    for num_left in (4, 3, 2, 1):
        budget.share(num_left)
        clock(24.9)
        assert not budget.is_over
        clock(0.1001)
        assert budget.is_over


def test_steps_fall_to_zero_when_the_time_ends_first(clock: Callable[[float], None]) -> None:
    budget = Budget(200.0 / (1 - JUDGING))
    stretch = Stretch(budget, 0.5)  # 100 seconds
    step_sizes = Round(1000, 8, 1.0).step_sizes(torch.zeros(()))
    sizes = []
    for step in range(0, 100, 10):  # a step a second: the time ends after 100 of 1,000 steps
        sizes.append(float(step_sizes[step]) * stretch.slowed(step / 1000))
        clock(10.0)
    expected = Round(10, 8, 1.0).step_sizes(torch.zeros(()))
    torch.testing.assert_close(torch.tensor(sizes), expected, rtol=1e-4, atol=1e-4)
    assert stretch.is_over
    assert not budget.is_over
    assert Stretch(Budget(), 0.5).slowed(0.9) == 1.0


def test_a_round_ends_with_its_time(clock: Callable[[float], None]) -> None:
    def slow(z: Tensor) -> Tensor:
        clock(1.0)
        return -0.5 * z.square().sum(-1)

    layer = TWO(2)
    trainer = Trainer(slow, engine=Engine.EAGER, progress_bar=False)
    trainer.limit(Budget(40.0))
    assert trainer.run(layer, Objective(), Gradient.PATH, Round(1000, 4, 1e-2), "a round")
    assert trainer.history.out_of_time
    assert 5 < trainer.history.num_steps < 40
    num = trainer.history.num_steps
    assert trainer.run(layer, Objective(), Gradient.PATH, Round(1000, 4, 1e-2), "another")
    assert trainer.history.num_steps == num


def test_climbs_end_with_their_time(clock: Callable[[float], None]) -> None:
    class Slow(DensityGradient):
        def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
            clock(1.0)
            return super().value_and_grad(z)

    def valley(z: Tensor) -> Tensor:
        return -((z[:, 0] - 1).square() + 100 * (z[:, 1] - z[:, 0].square()).square())

    density, start = Slow(valley), torch.tensor([-1.0, 2.0])
    assert len(lbfgs_path(density, start, 100)) > 12
    assert len(lbfgs_path(density, start, 100, time.perf_counter() + 10)) < 12
    frame = Gaussian(torch.zeros(2), torch.eye(2))
    assert len(ascend(density, start[None], frame)[0]) > 5
    assert len(ascend(density, start[None], frame, until=time.perf_counter() - 1)[0]) == 1


# ---- runs -----------------------------------------------------------------------------------------------------------


def slowed_down(y: Tensor) -> None:
    """Not Gaussian, and it takes a while."""
    time.sleep(0.01)
    z = pyro.sample("z", dist.StudentT(y.new_tensor(2.0), 0.0, 1.0))
    pyro.sample("y", dist.Normal(z.exp(), 1.0), obs=y)


def test_a_run_takes_no_longer_than_it_may() -> None:
    began = time.perf_counter()
    vi = line(slowed_down, num_steps=10**6, max_seconds=2.0).run(PAIRS[0])
    assert time.perf_counter() - began < 5.0  # on a machine that does other things too
    assert vi.history.out_of_time
    assert 0 < vi.diagnostics()["num_steps"] < 10**6
    assert OVER in str(vi.verdict())


def test_what_was_reached_in_time_is_judged_and_saved_and_the_same_line_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    def slow(y: Tensor) -> None:
        clock(0.01)
        z = pyro.sample("z", dist.StudentT(y.new_tensor(2.0), 0.0, 1.0))
        pyro.sample("y", dist.Normal(z.exp(), 1.0), obs=y)

    monkeypatch.setattr("pyro_nflows.engine.trainer.BLOCK", 5)
    options: dict[str, Any] = {"num_steps": 10**6, "checkpoint": tmp_path / "run.pt", "checkpoint_seconds": 0.0}
    first = line(slow, max_seconds=2.0, **options).run(PAIRS[0])
    first.save(tmp_path / "fit.pt")
    assert VI.load(tmp_path / "fit.pt", AutoFlow(slow, TWO), PAIRS[0]).verdict() == first.verdict()
    second = line(slow, max_seconds=2.0, **options).run(PAIRS[0])
    num = first.history.rounds[0]  # those of the affine end, whose round was complete
    assert second.history.num_steps > num > 0
    assert torch.equal(second.history.trace()[:num], first.history.trace()[:num])
    second.run(PAIRS[0])
    assert second.diagnostics()["num_steps"] > 0


def test_a_run_that_is_done_in_time_says_nothing_of_it() -> None:
    plain, limited = (line(num_steps=20, **options).run(PAIRS) for options in ({}, {"max_seconds": 1000.0}))
    assert limited.verdict() == plain.verdict()
    assert not limited.history.out_of_time
    assert torch.equal(limited.history.trace(), plain.history.trace())


def test_several_starts_and_an_untrained_one_heed_the_time() -> None:
    vi = line(slowed_down, num_steps=10**6, num_starts=2, max_seconds=1.0).run(PAIRS[0])
    assert len(vi.posterior.starts) == 2
    assert OVER in str(vi.verdict())
    assert line(max_seconds=100.0).run(PAIRS).diagnostics()["num_steps"] == 0


def groups(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 1.0))
    with pyro.plate("groups", len(y), subsample_size=4) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def test_a_fit_by_minibatches_heeds_the_time() -> None:
    y = torch.linspace(-1.0, 1.0, 12)
    began = time.perf_counter()
    vi = VI(AutoFlow(groups), num_steps=10**6, max_seconds=2.0, seed=0, engine="eager", progress_bar=False).run(y)
    assert time.perf_counter() - began < 6.0
    assert vi.history.out_of_time
    assert OVER in str(vi.verdict())
    assert vi.get_samples(50)["z"].shape == (50, 12)


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_the_sentence_says_what_the_time_was_not_enough_for() -> None:
    assert Training(5, out_of_time=True).words(refused=False) == f" {OVER}."
    assert "more time may help" in Training(5, out_of_time=True).words(refused=True)
    assert "no time left to search for other modes" in Training(5, unsearched=True).words(refused=False)
    assert Training(5).words(refused=False) == ""


@pytest.mark.parametrize(
    ("seconds", "error", "message"),
    [
        (0, ValueError, "max_seconds must be above 0, got 0; leave it out"),
        (-1.5, ValueError, "got -1.5"),
        (float("nan"), ValueError, "got nan"),
        ("60", TypeError, "max_seconds must be a number of seconds, got str"),
        (True, TypeError, "got bool"),
    ],
)
def test_what_is_no_time_is_refused(seconds: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        line(max_seconds=seconds)
