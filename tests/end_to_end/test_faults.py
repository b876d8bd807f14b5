"""Faults at any call, step and file operation of a fit: the fit can be used, or all is as it was."""

import builtins
import errno
import functools
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.engine.program import Program
from pyro_nflows.engine.tape import Tape
from pyro_nflows.layers import Planar

#: A fault that is dealt with on the way may be told of.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("few_draws")]

Y = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)


#: What is called at each run of the model.
REACHED: dict[str, Callable[[], None]] = {"model": lambda: None}


def counts(y: Tensor) -> None:
    REACHED["model"]()
    loc = pyro.param("loc", torch.tensor(0.3))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Poisson(z.exp()), obs=y)


def flow(latent_dim: int) -> Planar:
    return Planar(latent_dim)


def line(path: Path | None = None) -> VI:
    options: dict[str, Any] = {"num_steps": 8, "engine": "traced", "seed": 0, "progress_bar": False}
    return VI(AutoFlow(counts, flow), checkpoint=path, checkpoint_seconds=0.0, **options)


PACKAGE = str(Path(sys.modules["pyro_nflows"].__file__ or "").parent)
#: Is told the number of each call of a kind.
Heard = Callable[[int], None]


@contextmanager
def calls(heard: Heard) -> Iterator[list[int]]:
    """Of a function of this package."""
    number = [0]

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            number[0] += 1
            heard(number[0])

    sys.setprofile(profile)
    try:
        yield number
    finally:
        sys.setprofile(None)


@contextmanager
def patched(heard: Heard, operations: list[tuple[Any, str]], from_package: bool) -> Iterator[list[int]]:
    """Of given operations, wherever they are made or in this package alone."""
    number = [0]

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not from_package or sys._getframe(1).f_code.co_filename.startswith(PACKAGE):
                number[0] += 1
                heard(number[0])
            return operation(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in operations:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield number


def steps(heard: Heard) -> AbstractContextManager[list[int]]:
    """Of a step, in Python or replayed; of a slope too."""
    return patched(heard, [(Program, "step"), (Tape, "run")], from_package=False)


FILE_OPERATIONS = "open close replace fsync stat chmod unlink scandir"


def file_operations(heard: Heard) -> AbstractContextManager[list[int]]:
    """Of an operation on a file; writing is tried by itself in the tests of files."""
    operations = [(os, name) for name in FILE_OPERATIONS.split()]
    return patched(heard, [*operations, (builtins, "open"), (torch, "save"), (torch, "load")], from_package=True)


@contextmanager
def models(heard: Heard) -> Iterator[list[int]]:
    """Of the model."""
    number = [0]

    def reached() -> None:
        number[0] += 1
        heard(number[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REACHED, "model", reached)
        yield number


PLACES: dict[str, Callable[[Heard], AbstractContextManager[list[int]]]] = {
    "call": calls,
    "step": steps,
    "file operation": file_operations,
    "model": models,
}
#: Faults at random places; without a number, one at each.
FEW = [("call", 8), ("step", 4), ("model", 4)]
MANY = [("call", 200), ("step", None), ("model", None)]


def raising(when: int, error: BaseException) -> Callable[[int], None]:
    def hear(number: int) -> None:
        if number == when:
            raise error

    return hear


def draws(vi: VI) -> Tensor:
    pyro.set_rng_seed(1)
    return vi.get_samples(50, resample=False)["z"]


def loc() -> float:
    return float(pyro.get_param_store()["loc"])


def check_usable(vi: VI, folder: Path) -> None:
    assert draws(vi).isfinite().all()
    assert torch.isfinite(torch.tensor(vi.diagnostics()["elbo"]))
    vi.save(folder / "saved.pt")
    assert torch.equal(draws(VI.load(folder / "saved.pt", AutoFlow(counts, flow), Y)), draws(vi))


class Killed(BaseException):
    """Nothing is written after it."""


ERRORS = [OSError(errno.EIO, "disk"), RuntimeError("torch"), ValueError("model"), MemoryError(), KeyboardInterrupt()]


def faults(num: int | None, total: int) -> Iterator[tuple[int, BaseException]]:
    rng = random.Random(num or 0)
    for when in range(1, total + 1) if num is None else (rng.randint(1, total) for _ in range(num)):
        yield when, rng.choice(ERRORS)


@pytest.fixture(scope="module")
def totals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How many calls of each kind a run takes."""
    pyro.clear_param_store()
    line().run(Y)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_nflows.inference.search.NUM_ASCENTS", 4)
        for place, watched in PLACES.items():
            pyro.clear_param_store()
            path = tmp_path_factory.mktemp("counted") / "fit.pt"
            with watched(lambda number: None) as number:
                line(path if place == "file operation" else None).run(Y)
            found[place] = number[0]
    return found


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_nflows.inference.search.NUM_ASCENTS", 4)


def slow(cases: list[Any]) -> list[Any]:
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("place", "num"), [*FEW, *slow(MANY)])
def test_a_fault_anywhere_in_a_second_run(place: str, num: int | None, totals: dict[str, int], tmp_path: Path) -> None:
    vi = line().run(Y)
    for when, error in faults(num, totals[place]):
        before, located, history = draws(vi), loc(), vi.history
        try:
            with PLACES[place](raising(when, error)):
                vi.run(Y)
        except (Exception, KeyboardInterrupt):
            if vi.history is history:  # nothing was kept
                assert torch.equal(draws(vi), before)
                assert loc() == located
        check_usable(vi, tmp_path)


@pytest.mark.parametrize(("place", "num"), [*FEW, ("file operation", 6), *slow([*MANY, ("file operation", None)])])
def test_a_fault_anywhere_and_the_same_line_again(
    place: str, num: int | None, totals: dict[str, int], tmp_path: Path
) -> None:
    elbo = elbo_of_a_run()
    for i, (when, error) in enumerate(faults(num, totals[place])):
        again(tmp_path / f"{i}.pt", run_with_fault(place, when, error, tmp_path / f"{i}.pt"), elbo)


@functools.cache
def elbo_of_a_run() -> float:
    pyro.clear_param_store()
    return float(line().run(Y).diagnostics()["elbo"])


def run_with_fault(place: str, when: int, error: BaseException, path: Path) -> VI | None:
    """The fit, unless the fault came out, or cut it short; a fault may be dealt with, in another way."""
    pyro.clear_param_store()
    try:
        with PLACES[place](raising(when, error)):
            vi = line(path).run(Y)
    except (Exception, KeyboardInterrupt):
        return None
    check_usable(vi, path.parent)
    return None if vi.history.interrupted else vi


def again(path: Path, vi: VI | None, elbo: float) -> None:
    """The same line once more: the fit that there is, or the one that would have been."""
    pyro.clear_param_store()
    found = line(path).run(Y)
    check_usable(found, path.parent)
    expected = elbo if vi is None else vi.diagnostics()["elbo"]
    assert found.diagnostics()["elbo"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("num", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_a_fault_at_a_file_operation_of_a_run_that_goes_on(
    num: int | None, totals: dict[str, int], tmp_path: Path
) -> None:
    """The file that it goes on from is half a run; each fault at its reading is tried, and some later ones."""
    elbo = elbo_of_a_run()
    total = totals["file operation"]

    def end(number: int) -> None:
        if number >= total // 2:
            raise Killed

    pyro.clear_param_store()
    with pytest.raises(Killed), file_operations(end):
        line(tmp_path / "half.pt").run(Y)
    half = (tmp_path / "half.pt").read_bytes()
    later = [(3 + when, error) for when, error in faults(num, total // 2)]
    for when, error in [*((when, error) for when in range(1, 4) for error in ERRORS[::4]), *later]:
        path = tmp_path / "fit.pt"
        path.write_bytes(half)
        again(path, run_with_fault("file operation", when, error, path), elbo)
