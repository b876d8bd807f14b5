"""A callback sees where training is, may end it, and cannot lose a fit."""

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.engine import CallbackWarning, Look
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs

SAID = "Training ended because the callback said so"


def line(model: Any = pairs, **options: Any) -> VI:
    guide = AutoFlow(model, lambda dim: flows.realnvp(dim, 2, (4,)))
    return VI(guide, **{"seed": 0, "engine": "traced", "progress_bar": False, **options})


def rows(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    with pyro.plate("rows", len(y), subsample_size=10) as index:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[index])


def test_it_sees_every_block_of_every_round() -> None:
    looks: list[Look] = []
    line(num_steps=200, callback=looks.append).run(PAIRS)
    assert [(look.title, look.step, look.num_steps) for look in looks] == [
        ("Gaussian", 50, 100),
        ("Gaussian", 100, 100),
        ("flow", 50, 150),
        ("flow", 100, 150),
        ("flow", 150, 150),
        ("flow, round 2", 50, 50),
    ]
    assert all(look.elbo == pytest.approx(PAIRS_EVIDENCE, abs=0.1) for look in looks)
    seconds = [look.seconds for look in looks]
    assert seconds == sorted(seconds)


def test_it_ends_training_and_what_has_been_reached_is_judged() -> None:
    vi = line(num_steps=1000, callback=lambda look: look.title == "flow" and look.step >= 100).run(PAIRS)
    assert vi.diagnostics()["num_steps"] == 500 + 100  # of the affine end, and of the flow
    assert SAID in str(vi.verdict())
    assert "max_seconds" not in str(vi.verdict())
    assert vi.diagnostics()["iwae"] == pytest.approx(PAIRS_EVIDENCE, abs=0.01)
    assert len(vi.log_weight) == 22_500


def test_it_ends_all_starts_and_fits_by_minibatches() -> None:
    vi = line(num_steps=1000, num_starts=2, callback=lambda look: True).run(PAIRS)
    assert vi.diagnostics()["num_steps"] == 100  # a block of each, side by side
    by_rows = line(rows, callback=lambda look: True).run(torch.linspace(-1, 1, 40, dtype=torch.float64))
    assert by_rows.history.stopped
    assert not by_rows.history.out_of_time


def test_an_error_in_it_is_told_and_loses_nothing() -> None:
    def broken(look: Look) -> None:
        raise KeyError("no such logger")

    with pytest.warns(CallbackWarning, match="the callback raised KeyError: .*; the fit goes on"):
        vi = line(num_steps=200, callback=broken).run(PAIRS)
    assert vi.diagnostics()["num_steps"] == 100 + 200
    assert torch.equal(vi.log_weight, line(num_steps=200).run(PAIRS).log_weight)


def test_a_run_that_it_ended_goes_on_where_it_was(tmp_path: Path) -> None:
    options = {"num_steps": 400, "checkpoint": tmp_path / "fit.pt", "checkpoint_seconds": 0.0}
    first = line(callback=lambda look: look.step >= 100, **options).run(PAIRS)
    second = line(**options).run(PAIRS)
    assert first.history.num_steps < second.history.num_steps == 200 + 400
    assert SAID not in str(second.verdict())


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="VI: callback must be a function of a Look, got int"):
        line(callback=3)


def test_the_seconds_of_a_stopped_budget_are_those_that_are_left() -> None:
    vi = line(num_steps=400, max_seconds=1000.0, callback=lambda look: True).run(PAIRS)
    assert vi.history.stopped
    assert not vi.history.unsearched
    assert math.isfinite(vi.diagnostics()["elbo"])
