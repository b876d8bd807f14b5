"""Fits of rows of several plates from a checkpoint, and from several starts, here and in other processes."""

import signal
import subprocess
import sys
import textwrap
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.engine.lazy import RowState
from pyro_nflows.inference.crossed_start import CrossedStart
from pyro_nflows.system import files

from .test_minibatch_resume import ROOT, Killed, before_call, groups, is_same, killed_at
from .test_workers import Here

USERS, ITEMS = 12, 9


def table(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(num, generator=generator, dtype=torch.float64) for num in (USERS, ITEMS))
    return a[:, None] + 0.5 * b + 0.5 * torch.randn(USERS, ITEMS, generator=generator, dtype=torch.float64)


def crossed(y: Tensor, is_two_sided: bool = False) -> None:
    """Effects of users and items, some of both."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.3), 2.0))
    users = pyro.plate("users", USERS, subsample_size=4, dim=-2)
    items = pyro.plate("items", ITEMS, subsample_size=3, dim=-1)
    with users as i:
        a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 0.2 if is_two_sided else 1.0))
    with items as j:
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 0.2 if is_two_sided else 0.5))
    with users, items:
        pyro.sample("y", dist.Normal((mu.abs() if is_two_sided else mu) + a + b, 0.5), obs=y[i][:, j])


def with_parameter(y: Tensor) -> None:
    pyro.param("shift", y.new_tensor(0.0))
    crossed(y - pyro.param("shift"))


def line(path: Path | None, model: Any = crossed, seconds: float = 0.0, **options: Any) -> VI:
    """The line that is run again."""
    options = {"num_steps": 40, "engine": "traced", "seed": 0, "progress_bar": False, **options}
    guide = AutoFlow(model, structure="plates")
    return VI(guide, checkpoint=path, checkpoint_seconds=seconds, **options)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_nflows.inference.conditionals.MOST", 32)


@pytest.mark.parametrize(
    ("options", "every"),
    [
        ({"num_steps": None}, 4),
        ({"seed": None}, 5),
        ({"num_starts": 2, "model": with_parameter, "num_steps": 20}, 12),
    ],
    ids=["right at the start", "steps", "starts, parameters"],
)
def test_a_run_killed_again_and_again_comes_to_the_same(
    options: dict[str, Any], every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    expected, deaths, done = line(tmp_path / "whole.pt", **options).run(table()), 0, None
    pyro.set_rng_seed(5)
    while done is None:
        pyro.clear_param_store()
        with monkeypatch.context() as patch:
            killed_at(patch, every + (deaths == 0))
            try:
                done = line(tmp_path / "fit.pt", **options).run(table())
            except Killed:
                deaths += 1
        pyro.set_rng_seed(99)
    assert deaths > 1
    assert is_same(done, expected)
    assert done.history.was_right == (options.get("num_steps", 40) is None)
    loaded = line(tmp_path / "fit.pt", **options).run(table())
    assert is_same(loaded, expected)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the start, and within a step."""
    path, whole = tmp_path / "fit.pt", line(None).run(table())
    for owner, name, number in ((CrossedStart, "_sweep", 1), (RowState, "put", 7)):
        with monkeypatch.context() as patch:
            calls, real = [], getattr(owner, name)

            def call(*args: Any, real: Any = real, calls: Any = calls, number: int = number) -> Any:
                calls.append(0)
                if len(calls) == number + 1:
                    raise KeyboardInterrupt
                return real(*args)

            patch.setattr(owner, name, call)
            first = line(path, seconds=1e6).run(table())
        assert first.history.interrupted
        assert first.get_samples(10)["a"].isfinite().all()
    assert is_same(line(path, seconds=1e6).run(table()), whole)


@pytest.mark.parametrize("where", ["the start", "a step"])
def test_sigterm_writes_the_checkpoint(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(number: int, frame: Any) -> None:
        raise SystemExit

    path, before = tmp_path / "fit.pt", signal.signal(signal.SIGTERM, leave)
    try:
        with monkeypatch.context() as patch:
            before_call(patch, *((CrossedStart, "_sweep", 1) if where == "the start" else (RowState, "put", 7)))
            with pytest.raises(SystemExit):
                line(path, seconds=1e6).run(table())
    finally:
        signal.signal(signal.SIGTERM, before)
    under_way = files.read(path, "checkpoint", "test")["journal"]["under_way"][1]
    assert under_way["beginning"]["phase"] == 1 if where == "the start" else under_way["course"]["number"] == 8
    assert is_same(line(path).run(table()), line(None).run(table()))


SCRIPT = """
    import sys, torch
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    sys.path.insert(0, sys.argv[1])
    from tests.inference import test_crossed_resume as t
    print("ready", flush=True)
    t.line(sys.argv[2], num_steps=2000).run(t.table())
"""


@pytest.mark.slow
def test_a_process_killed_at_random(tmp_path: Path) -> None:
    path, ended = tmp_path / "fit.pt", 0
    for seconds in (0.1, 0.5, 1.0, 2.0, 1.5):
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), ROOT, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            run.stdout.readline()
            try:
                run.wait(seconds)
            except subprocess.TimeoutExpired:
                run.kill()
                ended += 1
    assert ended
    assert is_same(line(path, num_steps=2000).run(table()), line(None, num_steps=2000).run(table()))


# ---- starts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", [None, Here()], ids=["here", "by an executor"])
def test_the_best_of_several_starts_is_kept(executor: Executor | None) -> None:
    vi = line(None, num_starts=2, num_steps=None, executor=executor).run(table())
    bounds = [float(part.log_weight.mean()) for part in vi.posterior.starts]
    assert len(bounds) == 2
    assert bounds[0] == max(bounds)
    assert abs(vi.diagnostics()["elbo"] - bounds[0]) < 1e-6
    assert vi.diagnostics()["outcome"].is_trusted


def test_starts_that_found_other_modes_disagree(tmp_path: Path) -> None:
    y = table() + 3
    vi = line(None, two_sided, num_starts=4, num_steps=None).run(y)
    assert {bool(part.z.mean() > 0) for part in vi.posterior.starts} == {True, False}
    assert vi.diagnostics()["outcome"] is Outcome.STARTS_DISAGREE
    assert "bounds of the log evidence" in vi.verdict().sentence
    vi.save(tmp_path / "fit.pt")
    assert VI.load(tmp_path / "fit.pt", AutoFlow(two_sided, structure="plates"), y).verdict() == vi.verdict()


def two_sided(y: Tensor) -> None:
    crossed(y, True)


def test_an_executor_fits_rows_of_one_plate_too(tmp_path: Path) -> None:
    y, found = torch.linspace(-1.0, 3.0, 40, dtype=torch.float64), []
    for path in (None, tmp_path / "fit.pt", tmp_path / "fit.pt"):
        options: dict[str, Any] = {"num_starts": 2, "executor": Here(), "num_steps": 40}
        found.append(line(path, groups, **options).run(y))
        assert found[-1].diagnostics()["outcome"].is_trusted
        assert len(found[-1].posterior.starts) == 2
        assert is_same(found[-1], found[0])
    with pytest.raises(ValueError, match="parameters of its own"):
        line(None, with_parameter, num_starts=2, executor=Here()).run(table())
