"""Fits by minibatches from a checkpoint: whatever kills the process, the same line comes to the same posterior."""

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.engine import Round
from pyro_nflows.engine.lazy import RowState
from pyro_nflows.engine.minibatch_steps import MinibatchSteps
from pyro_nflows.inference import resume
from pyro_nflows.system import files

ROOT = str(Path(__file__).parents[2])
Y = torch.linspace(-1.0, 3.0, 40, dtype=torch.float64)


def groups(y: Tensor, size: int = 10) -> None:
    """Groups of one observation each: all is normal."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    with pyro.plate("groups", len(y), subsample_size=size) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def paired(y: Tensor) -> None:
    """The same around a number that is estimated."""
    mu = pyro.param("mu", y.new_tensor(0.0))
    with pyro.plate("groups", len(y), subsample_size=10) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def two_sided(y: Tensor) -> None:
    """Two modes, one at each side of zero."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.5), 3.0))
    with pyro.plate("groups", len(y), subsample_size=10) as i:
        z = pyro.sample("z", dist.Normal(mu.abs(), 0.3))
        pyro.sample("y", dist.Normal(z, 0.3), obs=y[i])


def line(path: Path | None, model: Callable[..., Any] = groups, amortize: bool = False, **options: Any) -> VI:
    """The line that is run again."""
    options = {"num_steps": 100, "engine": "traced", "seed": 0, "progress_bar": False, **options}
    return VI(AutoFlow(model, amortize=amortize), checkpoint=path, checkpoint_seconds=0.0, **options)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """The parts of a fit that no test asks for; processes of a test have to do so too, to come to the same."""
    patch.setattr("pyro_nflows.inference.minibatches.PILOT", Round(40, 16, 2e-2))
    for name in ("FEWEST", "MOST", "JUDGED"):
        patch.setattr(f"pyro_nflows.inference.judged_rows.{name}", 500)


class Killed(BaseException):
    """Nothing runs after it: later writes raise it again."""


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Kill the process at a write."""
    real, calls = files.write, itertools.count(1)

    def write(*args: Any) -> None:
        if next(calls) >= number:
            raise Killed
        real(*args)

    monkeypatch.setattr(resume, "write", write)


def is_same(vi: VI, other: VI) -> bool:
    """Bit for bit."""
    found = []
    for fit in (vi, other):
        pyro.set_rng_seed(1)
        found.append(fit.get_samples(50))
    same = all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    trace = torch.equal(vi.history.trace(), other.history.trace())
    return same and trace and torch.equal(vi.log_weight, other.log_weight) and vi.verdict() == other.verdict()


CASES: list[Any] = [
    ({"seed": None}, 3),
    pytest.param({"engine": "eager", "amortize": True, "num_steps": 60}, 2, marks=pytest.mark.slow),
    ({"model": paired, "num_starts": 2, "num_steps": 60}, 3),
]


@pytest.mark.parametrize(("options", "every"), CASES, ids=["tables", "encoder", "starts, parameters"])
def test_a_run_killed_again_and_again_comes_to_the_same(
    options: dict[str, Any], every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    expected, deaths, done = line(tmp_path / "whole.pt", **options).run(Y), 0, None
    located = {name: value.item() for name, value in pyro.get_param_store().items()}
    pyro.set_rng_seed(5)
    while done is None:
        pyro.clear_param_store()
        with monkeypatch.context() as patch:
            killed_at(patch, every + (deaths == 0))
            try:
                done = line(tmp_path / "fit.pt", **options).run(Y)
            except Killed:
                deaths += 1
        pyro.set_rng_seed(99)  # what else is random, a process has its own way
    assert deaths > 1
    assert is_same(done, expected)
    assert {name: value.item() for name, value in pyro.get_param_store().items()} == located


def test_a_change_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fit.pt"
    with monkeypatch.context() as patch:
        killed_at(patch, 4)
        with pytest.raises(Killed):
            line(path).run(Y)
    with pytest.raises(ValueError, match="argument 1 is another"):
        line(path).run(Y + 1)
    with pytest.raises(ValueError, match="num_starts was 1, and is 2"):
        line(path, num_starts=2).run(Y)
    with pytest.raises(ValueError, match="of another model: at the start its log density was"):
        line(path, lambda y: groups(y - 1)).run(Y)
    with pytest.raises(ValueError, match="of another model or of a guide with another flow"):
        line(path, lambda y: (groups(y), pyro.sample("a", dist.Normal(0.0, 1.0)))[0]).run(Y)
    assert is_same(line(path).run(Y), line(None).run(Y))
    with pytest.raises(ValueError, match="another run: num_steps was 100, and is 60"):
        line(path, num_steps=60).run(Y)


def test_a_complete_run_is_loaded_and_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fit.pt"
    first = line(path, num_steps=60, amortize=True, num_starts=2).run(Y)
    monkeypatch.setattr("pyro_nflows.inference.minibatch_run.Starts", lambda *args: 1 / 0)
    again = line(path, num_steps=60, amortize=True, num_starts=2).run(Y)
    assert is_same(again, first)
    assert again.get_samples(len(again.log_weight) + 5)["z"].shape[1] == 40
    assert is_same(VI.load(path, AutoFlow(groups, amortize=True), Y), first)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same process; the interrupt comes while a step is half put into the state of all rows."""
    calls, real, write = itertools.count(), RowState.put, files.write

    def put(self: RowState, *args: Any) -> None:
        number = next(calls)
        if number == 77:
            self.params[args[0]] = args[1].params
            raise KeyboardInterrupt
        real(self, *args)

    vi = line(tmp_path / "fit.pt")
    vi.checkpoint_seconds = 1e6
    with monkeypatch.context() as patch:
        patch.setattr(RowState, "put", put)
        vi.run(Y)
    assert vi.history.interrupted
    assert vi.history.num_steps > 77
    assert vi.get_samples(20)["z"].isfinite().all()
    written = []
    monkeypatch.setattr(resume, "write", lambda *args: (written.append(args), write(*args)))
    assert is_same(vi.run(Y), line(None).run(Y))
    assert not vi.history.interrupted
    assert len(written) == 1  # at the end, and what was there was not written again


def test_a_run_with_more_time_goes_on(tmp_path: Path) -> None:
    path, whole = tmp_path / "fit.pt", line(None).run(Y)
    short = line(path, callback=lambda look: look.title == "flow").run(Y)
    assert short.history.stopped
    assert 0 < short.history.num_steps < whole.history.num_steps
    assert is_same(line(path).run(Y), whole)


def test_an_interrupt_of_judging_keeps_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, name = tmp_path / "fit.pt", "pyro_nflows.inference.row_posterior.Collapser.draws"
    with monkeypatch.context() as patch:
        patch.setattr(name, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            line(path, paired, num_steps=60).run(Y)
    pyro.clear_param_store()
    with monkeypatch.context() as patch:
        patch.setattr("pyro_nflows.inference.minibatches.Minibatches._train", lambda *args: 1 / 0)
        again = line(path, paired, num_steps=60).run(Y)
    pyro.clear_param_store()
    assert is_same(again, line(None, paired, num_steps=60).run(Y))


# ---- starts -------------------------------------------------------------------------------------------------


def test_the_best_of_several_starts_is_kept() -> None:
    vi = line(None, num_starts=3, num_steps=60).run(Y)
    bounds = [float(part.log_weight.mean()) for part in vi.posterior.starts]
    assert len(bounds) == 3
    assert bounds[0] == max(bounds)
    assert abs(vi.diagnostics()["elbo"] - bounds[0]) < 1e-6
    assert vi.diagnostics()["outcome"].is_trusted


def test_starts_that_found_other_modes_disagree(tmp_path: Path) -> None:
    y, options = Y.abs() + 1, {"num_starts": 3, "num_steps": 60}
    vi = line(None, two_sided, **options).run(y)
    assert {bool(part.z.mean() > 0) for part in vi.posterior.starts} == {True, False}
    assert vi.diagnostics()["outcome"] is Outcome.STARTS_DISAGREE
    assert vi.get_samples(100)["mu"].mean() > 0  # the prior prefers that side
    vi.save(tmp_path / "fit.pt")
    assert VI.load(tmp_path / "fit.pt", AutoFlow(two_sided), y).verdict() == vi.verdict()


# ---- real signals -------------------------------------------------------------------------------------------

SCRIPT = """
    import pytest, sys, torch
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    sys.path.insert(0, sys.argv[1])
    from tests.inference import test_minibatch_resume as t
    t.shrink(pytest.MonkeyPatch())
    vi = t.line(sys.argv[2], num_steps=2000)
    vi.checkpoint_seconds = float(sys.argv[3])
    print("ready", flush=True)
    vi.run(t.Y)
"""


def process(path: Path, seconds: float = 0.0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), ROOT, str(path), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_process_killed_at_random(how: str, tmp_path: Path) -> None:
    """By SIGKILL, or by SIGTERM, at which the checkpoint is written."""
    expected, times, path, ended = line(None, num_steps=2000).run(Y), random.Random(0), tmp_path / "fit.pt", 0
    for _ in range(8):
        with process(path, 0.0 if how == "kill" else 1e6) as run:
            assert run.stdout is not None
            run.stdout.readline()
            try:
                run.wait(times.uniform(0.0, 3.0))
            except subprocess.TimeoutExpired:
                getattr(run, how)()
                ended += 1
    assert ended
    assert is_same(line(path, num_steps=2000).run(Y), expected)


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM cannot be handled there")
@pytest.mark.parametrize("when", ["a step is taken", "a step is recorded"])
def test_sigterm_writes_the_checkpoint(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(number: int, frame: Any) -> None:
        raise SystemExit

    vi, before = line(tmp_path / "fit.pt"), signal.signal(signal.SIGTERM, leave)
    vi.checkpoint_seconds = 1e6
    try:
        with monkeypatch.context() as patch:
            if when == "a step is taken":
                before_call(patch, RowState, "put", 77)
            else:
                before_call(patch, MinibatchSteps, "_step", 0)
            with pytest.raises(SystemExit):
                vi.run(Y)
    finally:
        signal.signal(signal.SIGTERM, before)
    course = files.read(tmp_path / "fit.pt", "checkpoint", "test")["journal"]["under_way"][1]["course"]
    assert course["number"] == (78 if when == "a step is taken" else 0)
    assert is_same(line(tmp_path / "fit.pt").run(Y), line(None).run(Y))


def before_call(patch: pytest.MonkeyPatch, owner: Any, name: str, when: int) -> None:
    """Tell this process to end before a call of a method."""
    real, calls = getattr(owner, name), itertools.count()

    def call(*args: Any) -> Any:
        if next(calls) == when:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    patch.setattr(owner, name, call)
