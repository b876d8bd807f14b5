"""Work in other processes: the same results as here, whatever the number of workers, and errors that say where."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import SBC, VI, AutoFlow, flows
from pyro_nflows.engine import Round
from pyro_nflows.inference.schedule import Schedule
from pyro_nflows.inference.workers import WorkerError, spread

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
TINY = Schedule(end=Round(5, 4, 5e-2), rounds=(Round(5, 4, 1e-3),), num_samples=40, max_ends=1)


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, torch.tensor([1.0, 2.0])).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)


def sbc(model: Callable[..., Any], executor: Executor | None, num: int = 6) -> SBC:
    guide = AutoFlow(model, TWO)
    options: dict[str, Any] = {"num_samples": 9, "schedule": TINY, "engine": "eager", "seed": 3, "progress_bar": False}
    return SBC(guide, num_simulations=num, executor=executor, **options).run(torch.zeros(3))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


class Here(Executor):
    """An executor that is none of Python's own: it does the work at once."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def test_ranks_do_not_depend_on_where_they_come_from(pool: ProcessPoolExecutor) -> None:
    alone, here, there = sbc(model, None), sbc(model, Here()), sbc(model, pool)
    for other in (here, there):
        assert not other.failed
        for name, ranks in alone.ranks.items():
            assert torch.equal(other.ranks[name], ranks)
        for name, shares in alone.shares.items():
            assert torch.allclose(other.shares[name], shares)


def fit(executor: Executor | None, **options: Any) -> VI:
    given: dict[str, Any] = {"num_steps": 8, "num_starts": 3, "engine": "eager", "seed": 3, "progress_bar": False}
    return VI(AutoFlow(model, TWO), executor=executor, **{**given, **options}).run(torch.tensor([0.5, 1.0, -1.0]))


def test_fits_of_starts_do_not_depend_on_where_they_come_from(pool: ProcessPoolExecutor) -> None:
    here, there = fit(Here()), fit(pool)
    assert len(here.posterior.starts) == 3
    assert here.diagnostics()["num_steps"] == there.diagnostics()["num_steps"] == 3 * (4 + 8)
    for one, other in zip(here.posterior.starts, there.posterior.starts, strict=True):
        assert torch.allclose(one.z, other.z)
        assert torch.allclose(one.log_weight, other.log_weight)
    assert not torch.equal(here.posterior.starts[0].z, here.posterior.starts[1].z)
    assert here.verdict().sentence == there.verdict().sentence


class Frail(Here):
    """Fails at one start, until it is mended."""

    broken = True

    def __init__(self) -> None:
        self.num = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.num += 1
        if self.broken and self.num == 3:
            future: Future[Any] = Future()
            future.set_exception(MemoryError("no more"))
            return future
        return super().submit(fn, *args, **kwargs)


def test_a_run_that_is_resumed_has_the_starts_that_were_complete(tmp_path: Path) -> None:
    frail, path = Frail(), tmp_path / "run.pt"
    with pytest.raises(WorkerError, match=r"VI.run: start 3 failed in its worker .MemoryError: no more"):
        fit(frail, checkpoint=path)
    frail.broken, frail.num = False, 0
    resumed = fit(frail, checkpoint=path)
    assert frail.num == 1
    assert torch.equal(*(vi.get_samples(50, resample=False)["z"] for vi in (resumed, fit(Here()))))


def own_parameter(y: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0))
    pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)) * scale, 1.0).expand([3]).to_event(1), obs=y)


def test_what_starts_cannot_do_apart_is_said() -> None:
    with pytest.raises(ValueError, match="VI: with executor= training is elsewhere, where no callback is called"):
        VI(AutoFlow(model), executor=Here(), callback=print)
    with pytest.raises(ValueError, match=r"parameters of its own \(pyro.param\), which all starts train"):
        VI(AutoFlow(own_parameter, TWO), num_starts=2, executor=Here(), progress_bar=False).run(torch.zeros(3))
    with ThreadPoolExecutor(1) as threads, pytest.raises(TypeError, match="VI: executor is a ThreadPoolExecutor"):
        VI(AutoFlow(model), executor=threads)


def square(x: float) -> float:
    if x == 3.0:
        raise ArithmeticError("three")
    if x == 5.0:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def test_an_error_says_of_what_it_is(pool: ProcessPoolExecutor) -> None:
    for executor in (Here(), pool):
        with pytest.raises(WorkerError, match=r"demo: piece 3 failed in its worker \(ArithmeticError: three\)"):
            list(spread("demo", "piece", executor, square, [(i, (float(i),)) for i in range(4)]))


def test_a_worker_that_dies_is_told_with_what_it_did() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        with pytest.raises(WorkerError, match="demo: a worker died during piece 5, perhaps killed for want of memory"):
            list(spread("demo", "piece", executor, square, [(i, (float(i),)) for i in (0, 1, 5)]))
        with pytest.raises(WorkerError, match=r"demo: the executor takes no work .*; make a new one"):
            list(spread("demo", "piece", executor, square, [(0, (0.0,))]))


def test_what_is_no_executor_of_processes_is_refused() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(TypeError, match="SBC: executor is a ThreadPoolExecutor"):
        SBC(AutoFlow(model), executor=threads)
    with pytest.raises(TypeError, match=r"must be a concurrent.futures.Executor, such as ProcessPool.*got int"):
        SBC(AutoFlow(model), executor=2)  # type: ignore[arg-type]


def test_a_model_that_no_worker_can_import_is_named(pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_nflows.inference.portable.STRONGER", ())

    def local(y: Tensor) -> None:
        model(y)

    with pytest.raises(WorkerError, match=r"SBC.run: simulation 0 .*at the top level of a module"):
        sbc(local, pool, 1)


def test_ctrl_c_in_a_worker_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, as_ever = [0], spread

    def interrupted(*args: Any) -> Iterator[tuple[int, Any]]:
        for index, found in as_ever(*args):
            calls[0] += 1
            yield index, found if calls[0] < 4 else None

    monkeypatch.setattr("pyro_nflows.inference.replicated.spread", interrupted)
    done = sbc(model, Here())
    assert done.interrupted
    assert done.ranks["z[0]"].shape == (3,)
