"""Fits beside each other: in threads, in processes, in a coroutine; and inside of what torch can be put into."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from pyro.poutine import runtime
from torch import Tensor

from pyro_nflows import ELBO, IWAE, SBC, VI, AutoDAIS, AutoFlow, flows
from pyro_nflows.system.exclusive import exclusive

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
Y = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
MEAN, SD = 0.75, 0.5  # of N(0, 1) times three observations with standard deviation 1
ROOT = Path(__file__).parents[2]


def normal(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def quick(**kwargs: Any) -> VI:
    options = {"num_steps": 20, "engine": "eager", "seed": 0, "progress_bar": False, **kwargs}
    return VI(AutoFlow(normal, TWO), **options)


def draws(vi: VI) -> Tensor:
    return vi.posterior.draws.z


# ---- threads ------------------------------------------------------------------------------------------------


def test_fits_in_threads_are_those_of_one_thread() -> None:
    alone = [draws(quick(seed=seed).run(Y)) for seed in range(3)]
    pyro.clear_param_store()
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda seed: draws(quick(seed=seed).run(Y)), range(3)))
    for a, b in zip(alone, together):
        torch.testing.assert_close(a, b)
    assert runtime._PYRO_STACK == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda vi: vi.get_samples(30000),
        lambda vi: vi.to_arviz(100),
        lambda vi: vi.refine(5, 5, 1, "hmc"),
        lambda vi: SBC(AutoFlow(normal, TWO), num_simulations=1, seed=0, progress_bar=False).run(Y),
    ],
    ids=["get_samples", "to_arviz", "refine", "SBC"],
)
def test_what_runs_the_model_waits_for_its_turn(ask: Callable[[VI], Any]) -> None:
    vi = quick().run(Y)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (ask(vi), done.set()))
    with exclusive():
        thread.start()
        assert not done.wait(0.2)
    assert done.wait(60)
    thread.join()


def test_the_thread_that_has_its_turn_may_take_it_again() -> None:
    with exclusive():
        assert quick().run(Y).get_samples(10)["z"].shape == (10,)


def test_an_error_gives_the_turn_to_the_next_thread() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(TypeError):
        pool.submit(lambda: quick().run()).result()
    assert quick().run(Y).diagnostics()["ess"] > 0.9


# ---- coroutines ---------------------------------------------------------------------------------------------


async def _run() -> VI:
    return quick().run(Y)


async def _gather() -> list[VI]:
    return await asyncio.gather(*(asyncio.to_thread(quick().run, Y) for _ in range(2)))


def test_a_fit_runs_in_a_coroutine_and_beside_one() -> None:
    expected = draws(quick().run(Y))
    for vi in (asyncio.run(_run()), *asyncio.run(_gather())):
        torch.testing.assert_close(draws(vi), expected)


# ---- grad modes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("guide", [partial(AutoFlow, build=TWO), partial(AutoDAIS, num_steps=2)], ids=["flow", "DAIS"])
def test_a_fit_and_its_questions_work_without_gradients_outside(guide: Callable[..., AutoFlow], mode: Any) -> None:
    with mode():
        y = Y.clone()
        vi = VI(guide(normal), num_steps=100, engine="traced", seed=0, progress_bar=False).run(y)
        z = vi.get_samples(20000)["z"]
        vi.to_arviz(50)
        vi.refine(5, 5, 1, "independence")
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert float(z.mean()) == pytest.approx(MEAN, abs=5 * SD / 20000**0.5)
    assert float(z.std()) == pytest.approx(SD, abs=5 * SD / 40000**0.5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calibration_and_refining_work_without_gradients_outside(mode: Any) -> None:
    with mode():
        vi = quick(num_steps=50).run(Y.clone())
        refined = vi.refine(20, 20, 1, "nuts").get_samples()["z"]
        check = SBC(AutoFlow(normal, TWO), num_simulations=2, seed=0, progress_bar=False).run(Y.clone())
    assert refined.isfinite().all()
    assert len(check.ranks["z"]) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("loss", [ELBO(4), IWAE(4), ELBO(4, compile=True)], ids=["ELBO", "IWAE", "compiled"])
def test_steps_of_svi_train_without_gradients_outside(loss: ELBO, mode: Any) -> None:
    guide = AutoFlow(normal, TWO)
    svi = SVI(normal, guide, Adam({"lr": 0.05}), loss=loss)
    with mode():
        y = Y.clone()
        svi.evaluate_loss(y)
        assert guide.layer is not None
        before = [p.clone() for p in guide.layer.parameters()]
        svi.step(y)
        assert any(not torch.equal(p, b) for p, b in zip(guide.layer.parameters(), before))
    svi.loss(normal, guide, Y)


def test_a_guide_first_called_in_inference_mode_trains_later() -> None:
    guide = AutoFlow(normal, TWO)
    with torch.inference_mode():
        guide(Y.clone())
    assert not any(p.is_inference() for p in guide.parameters())
    assert VI(guide, num_steps=20, engine="eager", seed=0, progress_bar=False).run(Y).diagnostics()["ess"] > 0.9


# ---- processes ----------------------------------------------------------------------------------------------


def test_a_forked_child_does_not_wait_for_a_thread_it_does_not_have() -> None:
    """Nor does it see the handlers of that thread."""
    script = """
        import os, threading
        import pyro
        from pyro import poutine
        from pyro.poutine import runtime
        from pyro_nflows.system.exclusive import exclusive

        inside, leave = threading.Event(), threading.Event()

        def busy():
            with exclusive(), poutine.trace():
                inside.set()
                leave.wait()

        thread = threading.Thread(target=busy)
        thread.start()
        inside.wait()
        child = os.fork()
        if not child:
            with exclusive():
                os._exit(len(runtime._PYRO_STACK))
        status = os.waitpid(child, 0)[1]
        leave.set()
        thread.join()
        print(os.waitstatus_to_exitcode(status), len(runtime._PYRO_STACK))
    """
    assert _run_script(script) == "0 0\n"


POOL = """
    import multiprocessing, sys
    from concurrent.futures import ProcessPoolExecutor
    import pyro, torch
    import pyro.distributions as dist
    from pyro_nflows import AutoFlow, VI
    from pyro_nflows.system.exclusive import exclusive

    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=y)

    def fit(seed):
        vi = VI(AutoFlow(model), seed=seed, num_steps=5, progress_bar=False).run(torch.ones(3))
        with exclusive():
            torch.randn(1000, 1000).exp().sum()  # large enough for torch to use its threads
        return bool(vi.get_samples(10)["z"].isfinite().all()), torch.get_num_threads()

    if __name__ == "__main__":
        torch.set_num_threads(2)
        torch.randn(1000, 1000).exp().sum()  # the threads are there before the fork
        context = multiprocessing.get_context(sys.argv[1])
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            print(list(pool.map(fit, [0])))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_fits_run_in_a_pool_of_processes(method: str, tmp_path: Path) -> None:
    if method == "fork" and sys.platform == "darwin":
        pytest.skip("system libraries of macOS do not survive a fork")
    assert _run_script(POOL, method, folder=tmp_path) == "[(True, 2)]\n"


def _run_script(script: str, *args: str, folder: Path | None = None) -> str:
    """What a script prints, within some minutes; its workers do not outlive it."""
    command = ["-c", textwrap.dedent(script)]
    if folder is not None:
        (folder / "script.py").write_text(textwrap.dedent(script))
        command = [str(folder / "script.py")]
    process = subprocess.Popen(
        # Python 3.12 and later warn of any fork in a process that has threads.
        [sys.executable, "-W", "ignore", *command, *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=500)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    return out


# ---- defaults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fit_follows_the_default_type(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        z = quick(num_steps=50).run(Y.to(dtype)).get_samples(100)["z"]
    finally:
        torch.set_default_dtype(torch.float64)
    assert z.dtype is dtype


def test_a_default_device_is_respected() -> None:
    torch.set_default_device("cpu")
    try:
        vi = quick(num_steps=50, engine=None).run(Y)
        vi.to_arviz(50)
        assert vi.get_samples(10)["z"].device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_a_device_without_values_is_refused_in_words() -> None:
    torch.set_default_device("meta")
    try:
        with pytest.raises(ValueError, match="default device is 'meta'"):
            quick().run(Y)
    finally:
        torch.set_default_device(None)
