"""A run that is killed, and goes on where it was: the same fit as without."""

import functools
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

from pyro_nflows import ELBO, VI, AutoFlow
from pyro_nflows.engine import Journal
from pyro_nflows.engine.native import build
from pyro_nflows.inference import resume
from pyro_nflows.layers import Planar
from pyro_nflows.system import files

pytestmark = pytest.mark.usefixtures("few_draws")

Y = torch.tensor([1.0, 0.0, 3.0, 2.0], dtype=torch.float64)
ROOT = str(Path(__file__).parents[2])


def counts(y: Tensor) -> None:
    """Not Gaussian, with a parameter of the prior's that is trained too, if asked for."""
    z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Poisson((z[0] + z[1].sin()).exp()), obs=y)


def tuned(y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.3))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Poisson(z.exp()), obs=y)


def two_modes(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(y.new_zeros(2), 30.0).to_event(1))
    pyro.factor("modes", -0.5 * ((z.sum() - 6).square() / 2 + (z - 3).square().sum()).minimum((z + 9).square().sum()))


def flow(latent_dim: int) -> Planar:
    return Planar(latent_dim)


def line(path: Path | None, model: Callable[..., Any] = counts, **options: Any) -> VI:
    """The line that is run again."""
    options = {"num_steps": 120, "engine": "traced", "seed": 0, "progress_bar": False, **options}
    return VI(AutoFlow(model, flow), checkpoint=path, checkpoint_seconds=0.0, **options)


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_nflows.inference.search.NUM_ASCENTS", 4)


class Killed(BaseException):
    """Nothing runs after it: later writes raise it again."""


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Kill the process at a write; a process that is killed before it writes loses no more than that."""
    real, calls = files.write, [0]

    def write(*args: Any) -> None:
        calls[0] += 1
        if calls[0] >= number:
            raise Killed
        real(*args)

    monkeypatch.setattr(resume, "write", write)


def killed(monkeypatch: pytest.MonkeyPatch, number: int, path: Path, *args: Any, **options: Any) -> None:
    """The line's process, killed at a write."""
    with monkeypatch.context() as patch:
        killed_at(patch, number)
        with pytest.raises(Killed):
            line(path, *args, **options).run(Y)


def samples(vi: VI) -> dict[str, Tensor]:
    pyro.set_rng_seed(1)
    return vi.get_samples(100)


def is_same(vi: VI, other: VI) -> bool:
    """Bit for bit."""
    same = all(torch.equal(a, b) for a, b in zip(samples(vi).values(), samples(other).values()))
    trace = torch.equal(vi.history.trace(), other.history.trace())
    return same and trace and torch.equal(vi.log_weight, other.log_weight) and vi.verdict() == other.verdict()


def whole(model: Callable[..., Any] = counts, **options: Any) -> VI:
    pyro.clear_param_store()
    return line(None, model, **options).run(Y)


@functools.cache
def undisturbed() -> VI:
    """The fit that those with the default options are to be; nothing changes it."""
    return whole()


ENGINES = ["eager", "traced", pytest.param("compiled", marks=pytest.mark.skipif(not build.compiler(), reason="no C"))]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_killed_again_and_again_comes_to_the_same(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, deaths, done = whole(engine=engine), 0, None
    while done is None:
        pyro.set_rng_seed(deaths)  # what else is random, a process has its own way
        with monkeypatch.context() as patch:
            killed_at(patch, 4)
            try:
                done = line(tmp_path / "fit.pt", engine=engine).run(Y)
            except Killed:
                deaths += 1
    assert deaths > 2
    assert is_same(done, expected)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (counts, {"num_starts": 3}),
        pytest.param(counts, {"annealing": 0.5}, marks=pytest.mark.slow),
        (counts, {"seed": None, "objective": ELBO(8, "total")}),
        (tuned, {"num_starts": 2}),
    ],
    ids=["starts", "annealed", "no seed", "parameters"],
)
def test_whatever_is_asked_for(
    model: Callable[..., Any], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyro.set_rng_seed(5)
    expected = line(None, model, **options).run(Y)
    located = {name: value.item() for name, value in pyro.get_param_store().items()}
    for number in (3, 6):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        path = tmp_path / f"{number}.pt"
        killed(monkeypatch, number, path, model, **options)
        pyro.clear_param_store()
        pyro.set_rng_seed(99)
        assert is_same(line(path, model, **options).run(Y), expected)
        assert {name: value.item() for name, value in pyro.get_param_store().items()} == located


def test_a_search_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tempering heeds the clock, so what it gave is on file, too."""
    monkeypatch.setattr("pyro_nflows.inference.search.NUM_PARTICLES", (64, 64))
    sizes = {"num_steps": None, "engine": "traced"}
    monkeypatch.setattr("pyro_nflows.inference.schedule.Schedule.of", lambda *sizes: small_schedule())
    monkeypatch.setattr("pyro_nflows.inference.schedule.Schedule.of_modes", small_schedule)
    expected = whole(two_modes, **sizes)
    assert any("several modes" in name or "tempered" in name for name in steps_of(tmp_path, **sizes))
    for number in (6, 11):
        path = tmp_path / f"{number}.pt"
        killed(monkeypatch, number, path, two_modes, **sizes)
        assert is_same(line(path, two_modes, **sizes).run(Y), expected)


def small_schedule() -> Any:
    from pyro_nflows.engine import Round
    from pyro_nflows.inference.schedule import Schedule

    rounds = (Round(100, 16, 5e-3), Round(100, 16, 3e-3))
    return Schedule(end=Round(100, 16, 2e-2), rounds=rounds, num_samples=1000, good_ess=0.999)


def steps_of(folder: Path, **sizes: Any) -> list[str]:
    names: list[str] = []
    real = Journal.recall

    def recall(self: Journal, name: str, *args: Any) -> Any:
        names.append(name)
        return real(self, name, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "recall", recall)
        line(folder / "steps.pt", two_modes, **sizes).run(Y)
    return names


# ---- a complete run -----------------------------------------------------------------------------------------


def test_a_complete_run_is_loaded_and_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fit.pt"
    expected = line(path).run(Y)
    assert os.listdir(tmp_path) == ["fit.pt"]
    monkeypatch.setattr("pyro_nflows.engine.trainer.Trainer.run_many", lambda *args: 1 / 0)
    again = line(path).run(Y)
    assert is_same(again, expected)
    assert again.get_samples(5000)["z"].shape == (5000, 2)
    assert is_same(VI.load(path, AutoFlow(counts, flow), Y), expected)


def test_a_removed_file_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    first = line(path, seed=None).run(Y)
    path.unlink()
    assert not is_same(line(path, seed=None).run(Y), first)


CHANGES: dict[str, tuple[dict[str, Any], tuple[Any, ...], str]] = {
    "seed": ({"seed": 1}, (Y,), "seed was 0, and is 1"),
    "steps": ({"num_steps": 10}, (Y,), "num_steps was 120, and is 10"),
    "engine": ({"engine": None}, (Y,), "engine was traced, and is None"),
    "objective": ({"objective": ELBO(3)}, (Y,), r"objective was ELBO\(1, path\), and is ELBO\(3, path\)"),
    "data": ({}, (Y + 1,), "argument 1 is another"),
    "more data": ({}, (Y, 2), "argument 2 is here only"),
    "model": ({"model": lambda y: counts(y + 1)}, (Y,), "of another model: at the start its log density was -"),
    "flow": ({"model": tuned}, (Y,), "of another model or of a guide with another flow"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_is_told_which_part_differs(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, args, message = CHANGES[change]
    path = tmp_path / "fit.pt"
    killed(monkeypatch, 4, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"VI: the checkpoint .*{message}.*remove the file to start anew"):
        line(path, **options).run(*args)
    if "model" not in options:
        assert path.read_bytes() == before
    assert is_same(line(path).run(Y), undisturbed())


def test_the_same_data_elsewhere_are_the_same(tmp_path: Path) -> None:
    def model(y: Any, options: dict[str, Any]) -> None:
        counts(torch.as_tensor(y))

    path = tmp_path / "fit.pt"
    expected = line(path, model).run(Y.numpy(), {"a": [1.0, None]})
    assert is_same(line(path, model).run(Y.numpy().copy(), {"a": [1.0, None]}), expected)
    with pytest.raises(ValueError, match="argument 2 is another"):
        line(path, model).run(Y.numpy(), {"a": [2.0, None]})


def test_a_file_that_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    notes, fit, cut = (tmp_path / name for name in ("notes.txt", "fit.pt", "cut.pt"))
    notes.write_text("dear diary")
    line(None).run(Y).save(fit)
    cut.write_bytes(fit.read_bytes()[:-10])
    for path, message in ((notes, "no file of pyro_nflows"), (fit, "a fit that vi.save wrote"), (cut, "cut short")):
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            line(path).run(Y)
        assert path.read_bytes() == before


def test_an_unfinished_run_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(monkeypatch, 3, tmp_path / "fit.pt")
    with pytest.raises(ValueError, match="the checkpoint of a run that is not complete; run the same line again"):
        VI.load(tmp_path / "fit.pt", AutoFlow(counts, flow), Y)


def test_a_run_that_could_not_begin_leaves_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    with pytest.raises(ValueError, match="NaN"):
        line(path).run(Y * torch.nan)
    assert is_same(line(path).run(Y), undisturbed())


# ---- what goes wrong ----------------------------------------------------------------------------------------


def test_a_full_disk_is_told_of_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls, path = files.write, [0], tmp_path / "fit.pt"

    def full(*args: Any) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError("No space left on device")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "write", full)
        with pytest.warns(resume.CheckpointWarning, match="could not be written .No space"):
            vi = line(path).run(Y)
    assert is_same(vi, undisturbed())
    assert is_same(line(path).run(Y), vi)


def test_a_folder_that_is_not_there_is_told_of_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*make it first"):
        line(tmp_path / "none" / "fit.pt").run(Y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint": 3}, TypeError, "checkpoint must be the path of a file, got int"),
        ({"checkpoint_seconds": -1.0}, ValueError, "checkpoint_seconds must be a number from 0 on, got -1.0"),
        ({"checkpoint_seconds": "often"}, ValueError, "checkpoint_seconds must be a number"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VI(AutoFlow(counts), **options)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same process, or in another."""
    path, real, calls = tmp_path / "fit.pt", files.write, [0]

    def write(*args: Any) -> None:
        real(*args)
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt

    vi = line(path)
    with monkeypatch.context() as patch:
        patch.setattr(resume, "write", write)
        vi.run(Y)
    assert vi.history.interrupted
    assert samples(vi)["z"].isfinite().all()
    assert is_same(vi.run(Y), undisturbed())


def test_it_is_written_by_the_clock(tmp_path: Path) -> None:
    now, kept = [0.0], list[Any]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_nflows.engine.journal.time.monotonic", lambda: now[0])
        journal = Journal(kept.append, seconds=10.0)
        for i in range(1, 8):
            now[0] = 4.0 * i
            journal.step(str(i), lambda: 1)
    assert [len(state["done"]) for state in kept] == [3, 6]


# ---- real signals -------------------------------------------------------------------------------------------

SCRIPT = """
    import sys, torch
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    sys.path.insert(0, sys.argv[1])
    from tests.few_draws import few_draws
    from tests.inference import test_resume
    test_resume.tell_steps()
    few_draws().__enter__()
    vi = test_resume.line(sys.argv[2], num_steps=1000)
    vi.checkpoint_seconds = float(sys.argv[3])
    print("ready", flush=True)
    vi.run(test_resume.Y)
    print("done", flush=True)
"""


def tell_steps() -> None:
    """Print a line for each step that a journal takes note of."""
    record = Journal.record

    def told(self: Journal, name: str, value: Any) -> None:
        record(self, name, value)
        print("step", name, flush=True)

    setattr(Journal, "record", told)  # noqa: B010 (this process is for one run)


def process(path: Path, seconds: float = 0.0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), ROOT, str(path), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed_at_random(path: Path, num_kills: int) -> int:
    """The number of processes that were killed before the run was complete."""
    times = random.Random(0)
    for i in range(num_kills):
        with process(path) as run:
            assert run.stdout is not None
            run.stdout.readline()
            try:
                run.wait(times.uniform(0.0, 0.6))
                return i
            except subprocess.TimeoutExpired:
                run.kill()
    return num_kills


@pytest.mark.parametrize("num_kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_process(num_kills: int, tmp_path: Path) -> None:
    expected, killed, round_ = whole(num_steps=1000), 0, 0
    while killed < num_kills:
        path = tmp_path / f"{round_}.pt"
        killed += killed_at_random(path, num_kills - killed)
        vi = line(path, num_steps=1000).run(Y)
        assert is_same(vi, expected)
        round_ += 1


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM cannot be handled there")
def test_sigterm_writes_the_checkpoint_and_ends_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    with process(path, seconds=1e6) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        assert run.stdout.readline() == "step begin\n"
        first = path.stat().st_size
        run.terminate()
        assert run.wait(10) == -signal.SIGTERM
    assert path.stat().st_size > first
    assert files.read(path, "checkpoint", "test")["journal"]["done"][0][0] == "begin"
    assert is_same(line(path, num_steps=1000).run(Y), whole(num_steps=1000))


def test_signal_handlers_are_left_alone(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    line(tmp_path / "fit.pt").run(Y)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
