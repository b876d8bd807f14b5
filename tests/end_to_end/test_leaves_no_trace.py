"""What belongs to the user is after a call as it was before: also after an error, and after Ctrl-C."""

import contextlib
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from pyro.poutine import runtime
from torch import Tensor

from pyro_nflows import ELBO, IWAE, SBC, VI, AutoFlow, flows
from pyro_nflows.plots.fits import plot_density, plot_elbo, plot_weights
from pyro_nflows.plots.ranks import plot_calibration

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
Y = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
#: Torch's random state moves on where draws are made without a seed.
DRAWS = {"torch's random state"}
SIGNALS = sorted(signal.valid_signals())


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def quick(model: Callable[..., Any] = model, **kwargs: Any) -> VI:
    options = {"num_steps": 20, "engine": "traced", "seed": 0, "progress_bar": False, **kwargs}
    return VI(AutoFlow(model, TWO), **options)


def small(**kwargs: Any) -> SBC:
    return SBC(AutoFlow(model, TWO), num_simulations=2, progress_bar=False, **kwargs)


def state() -> dict[str, Any]:
    """Everything global that a fit could touch, in a form that can be compared."""
    store = pyro.get_param_store()
    return {
        "torch's random state": torch.get_rng_state().tolist(),
        "NumPy's random state": str(np.random.get_state(legacy=False)),  # noqa: NPY002
        "Python's random state": random.getstate(),
        "params": {name: (id(store._params[name]), value.tolist()) for name, value in store.items()},
        "param constraints": dict(store._constraints),
        "handlers": list(runtime._PYRO_STACK),
        "Pyro's settings": pyro.settings.get(),
        "validation": torch.distributions.Distribution._validate_args,
        "default type": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(),
        ),
        "printing": (vars(torch._tensor_str.PRINT_OPTS).copy(), str(np.get_printoptions())),
        "NumPy's errors": np.geterr(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "signals": [signal.getsignal(number) for number in SIGNALS],
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable, loggers()),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "hooks": (sys.excepthook, sys.displayhook, sys.gettrace(), sys.getprofile(), threading.excepthook),
        "streams": (id(sys.stdout), id(sys.stderr)),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()),
        "Matplotlib's settings": {**mpl.rcParams, "backend": mpl.get_backend()},
    }


def loggers() -> dict[str, Any]:
    """Pyro's and ours, with what has been set on them."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("pyro", "pyro_nflows")]
    found = {name: logging.getLogger(name) for name in names}
    return {name: (log.level, list(log.handlers)) for name, log in found.items() if log.level or log.handlers}


@contextlib.contextmanager
def untouched(but: set[str] = frozenset()) -> Iterator[None]:  # type: ignore[assignment]
    before = state()
    try:
        yield
    finally:
        after = state()
        assert {key for key in before if before[key] != after[key]} - but == set()


@pytest.fixture(autouse=True)
def unusual(tmp_path: Path) -> Iterator[None]:
    """Settings that nobody's code would set by chance, so that setting a default again is seen."""
    handler, limit, threads = signal.getsignal(signal.SIGTERM), sys.getrecursionlimit(), torch.get_num_threads()
    random.seed(1)
    pyro.param("theirs", torch.tensor(2.0), constraint=dist.constraints.positive)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing says this")
        torch.distributions.Distribution.set_default_validate_args(False)
        torch.set_num_threads(2)
        signal.signal(signal.SIGTERM, lambda *_: None)
        sys.setrecursionlimit(limit + 7)
        yield
    torch.distributions.Distribution.set_default_validate_args(True)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)
    sys.setrecursionlimit(limit)
    plt.close("all")


@pytest.fixture(scope="module")
def fitted() -> VI:
    pyro.clear_param_store()
    quick().run(Y).to_arviz(50)  # whatever is imported at first use is imported
    return quick(engine="eager").run(Y)


# ---- each call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["eager", "traced", "compiled", None])
@pytest.mark.usefixtures("fitted")
def test_a_run(engine: str | None) -> None:
    with untouched():
        quick(engine=engine, num_starts=2).run(Y)


@pytest.mark.usefixtures("fitted")
def test_a_run_again_and_saving(tmp_path: Path) -> None:
    vi = quick().run(Y)
    with untouched():
        vi.run(Y + 1)
        vi.save(tmp_path / "fit.pt")
        VI.load(tmp_path / "fit.pt", AutoFlow(model, TWO), Y + 1)


@pytest.mark.usefixtures("fitted")
def test_without_a_seed_a_run_takes_one_number_from_torch() -> None:
    torch.manual_seed(3)
    torch.randint(2**31, ())
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    with untouched(DRAWS):
        quick(seed=None).run(Y)
    assert torch.equal(torch.get_rng_state(), expected)


def test_summary_and_diagnostics(fitted: VI, capsys: pytest.CaptureFixture[str]) -> None:
    with untouched(DRAWS):
        fitted.summary()
        fitted.diagnostics()
        fitted.verdict()
    assert "z" in capsys.readouterr().out


def test_samples(fitted: VI) -> None:
    with untouched(DRAWS):
        fitted.get_samples(100)
        fitted.get_samples(30000, resample=False)


def test_arviz(fitted: VI) -> None:
    with untouched(DRAWS):
        fitted.to_arviz(50)


@pytest.mark.parametrize("method", ["nuts", "hmc", "independence"])
def test_refining(fitted: VI, method: str) -> None:
    with untouched():
        fitted.refine(10, 10, 1, method)


@pytest.mark.usefixtures("fitted")
def test_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    with untouched():
        check = small(seed=0).run(Y)
        check.summary()
        check.plot()
    torch.manual_seed(3)
    torch.randint(2**31, ())
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    with untouched(DRAWS):
        small().run(Y)
    assert torch.equal(torch.get_rng_state(), expected)


def test_pictures() -> None:
    with untouched():
        plot_elbo([1.0, 2.0, 3.0])
        plot_weights(torch.arange(100.0))
        plot_density(lambda z: -z.square().sum(-1), limits=(-1, 1))
        plot_calibration({"z": torch.arange(10)}, 9)


@pytest.mark.parametrize("loss", [ELBO(4), IWAE(4), ELBO(4, compile=True)], ids=["ELBO", "IWAE", "compiled"])
def test_steps_of_svi(loss: ELBO) -> None:
    guide = AutoFlow(model, TWO)
    guide(Y)
    svi = SVI(model, guide, Adam({"lr": 1e-3}), loss=loss)
    svi.step(Y)
    theirs = {"params", "param constraints"}  # that is what a step is for
    with untouched(DRAWS | theirs):
        svi.step(Y)
        svi.evaluate_loss(Y)
    assert pyro.param("theirs").item() == pytest.approx(2.0)


# ---- what goes wrong ----------------------------------------------------------------------------------------


class Fault:
    """The model, but something is raised at a call of it."""

    def __init__(self, error: type[BaseException], at: int):
        self.error, self.at, self.calls = error, at, 0

    def __call__(self, y: Tensor) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error("at the chosen moment")
        model(y)


@pytest.mark.usefixtures("fitted")
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 3, 20, 400])
def test_a_run_that_ends_early(error: type[BaseException], at: int) -> None:
    with untouched(), contextlib.suppress(error):
        quick(Fault(error, at), engine="eager").run(Y)


@pytest.mark.filterwarnings("ignore::pyro_nflows.model.log_joint.VectorizationWarning")
@pytest.mark.usefixtures("fitted")
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 5, 20])
def test_questions_that_end_early(error: type[BaseException], at: int) -> None:
    fault = Fault(ZeroDivisionError, -1)
    vi = quick(fault, engine="eager").run(Y)
    asked: list[Callable[[], Any]] = [
        lambda: vi.get_samples(30000),
        lambda: vi.to_arviz(50),
        lambda: vi.refine(5, 5, 1, "nuts"),
        lambda: SBC(AutoFlow(fault, TWO), num_simulations=1, seed=0, engine="eager", progress_bar=False).run(Y),
    ]
    for ask in asked:
        fault.error, fault.at = error, fault.calls + at
        with untouched(DRAWS), contextlib.suppress(error, ValueError):
            ask()


@pytest.mark.usefixtures("fitted")
@pytest.mark.parametrize("engine", ["traced", "compiled"])
@pytest.mark.parametrize("after", [0.05, 0.3, 0.8])
def test_a_real_interrupt(engine: str, after: float, monkeypatch: pytest.MonkeyPatch) -> None:
    swallowed: list[type[BaseException]] = []
    # Python itself drops an interrupt that strikes in a destructor or a weak reference's callback, and says so here.
    monkeypatch.setattr(sys, "unraisablehook", lambda found: swallowed.append(found.exc_type))

    def soon() -> None:
        time.sleep(after)
        if not done.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    done, thread = threading.Event(), threading.Thread(target=soon)
    with untouched():
        try:
            thread.start()
            quick(engine=engine, num_steps=20000).run(Y)
            done.set()
            thread.join()
        except KeyboardInterrupt:
            thread.join()
    assert set(swallowed) <= {KeyboardInterrupt}
