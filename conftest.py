"""Where every test and every example starts: one seed, no stored parameters, Pyro's checks, threads as asked."""

import gc
import os
import signal
import sys
import tempfile

import pyro
import pytest
import torch

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
FOLDER = os.path.join(tempfile.gettempdir(), f"pyro_nflows_tests_{os.getuid()}")
os.environ.setdefault("PYRO_NFLOWS_CACHE", FOLDER)
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", f"{FOLDER}_hypothesis")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        help="where tests marked on_devices run: cpu, cuda, or pretend, a device that there is not, to find "
        "what would go wrong on a GPU; unless given, cpu, and with the mark gpu on cuda too",
    )


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, which the tests of it send."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def start_afresh() -> None:
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    gc.callbacks.clear()  # a Ctrl-C that arrives in one, such as hypothesis', is lost
    torch.set_num_threads(THREADS)
    pyro.enable_validation(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before a module's fixtures, so that they do not depend on which test asks for them first."""
    start_afresh()


@pytest.fixture(autouse=True)
def clean_start() -> None:
    """And after them, so that the test does not either."""
    start_afresh()


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace: dict[str, object]) -> None:
    """What every example is written with, whatever the module that it stands in happens to import."""
    doctest_namespace.update(pyro=pyro, dist=pyro.distributions, torch=torch)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    named_by_address = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if named_by_address:  # another name in each process, so that tests cannot be shared out
        raise pytest.UsageError(f"tests need names that are the same in each run, got {named_by_address[0]}")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
