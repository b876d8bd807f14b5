"""Faults at any call of a fit: the fit can be used, or all is as it was."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.layers import Planar

#: A fault that is dealt with on the way may be told of.
pytestmark = pytest.mark.filterwarnings("ignore")

Y = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)


def counts(y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.3))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Poisson(z.exp()), obs=y)


def flow(latent_dim: int) -> Planar:
    return Planar(latent_dim)


def line(path: Path | None = None) -> VI:
    options: dict[str, Any] = {"num_steps": 8, "engine": "traced", "seed": 0, "progress_bar": False}
    return VI(AutoFlow(counts, flow), checkpoint=path, checkpoint_seconds=0.0, **options)


@contextmanager
def calls(heard: Callable[[int], None]) -> Iterator[list[int]]:
    """Be told the number of each call of a function of this package."""
    number, package = [0], str(Path(sys.modules["pyro_nflows"].__file__ or "").parent)

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            number[0] += 1
            heard(number[0])

    sys.setprofile(profile)
    try:
        yield number
    finally:
        sys.setprofile(None)


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


ERRORS = [OSError("disk"), RuntimeError("torch"), ValueError("model"), MemoryError(), KeyboardInterrupt()]


def faults(seed: int, num: int, total: int) -> Iterator[tuple[int, BaseException]]:
    rng = random.Random(seed)
    for _ in range(num):
        yield rng.randint(1, total), rng.choice(ERRORS)


@pytest.fixture(scope="module")
def total() -> int:
    """How many calls a run takes."""
    pyro.clear_param_store()
    line().run(Y)
    pyro.clear_param_store()
    with pytest.MonkeyPatch.context() as patch, calls(lambda number: None) as number:
        patch.setattr("pyro_nflows.search.NUM_LOOKS", 4)
        line().run(Y)
    return number[0]


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_nflows.search.NUM_LOOKS", 4)


@pytest.mark.parametrize("num", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_a_fault_at_any_call_of_a_second_run(num: int, total: int, tmp_path: Path) -> None:
    vi = line().run(Y)
    for when, error in faults(num, num, total):
        before, located, steps = draws(vi), loc(), vi.history
        try:
            with calls(raising(when, error)):
                vi.run(Y)
        except (Exception, KeyboardInterrupt):
            if vi.history is steps:  # nothing was kept
                assert torch.equal(draws(vi), before)
                assert loc() == located
        check_usable(vi, tmp_path)


@pytest.mark.parametrize("num", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a_fault_at_any_call_and_the_same_line_again(num: int, total: int, tmp_path: Path) -> None:
    pyro.clear_param_store()
    elbo = line().run(Y).diagnostics()["elbo"]
    for i, (when, error) in enumerate(faults(num, num, total)):
        pyro.clear_param_store()
        try:
            with calls(raising(when, error)):
                vi = line(tmp_path / f"{i}.pt").run(Y)
            check_usable(vi, tmp_path)
        except (Exception, KeyboardInterrupt):
            pass
        pyro.clear_param_store()
        again = line(tmp_path / f"{i}.pt").run(Y)
        check_usable(again, tmp_path)
        assert again.diagnostics()["elbo"] == pytest.approx(elbo, abs=1e-6)
