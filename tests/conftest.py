"""Where every test starts: one seed, no stored parameters, Pyro's checks on, one thread; and in double precision."""

import getpass
import os
import tempfile
from collections.abc import Iterator

import pyro
import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault(
    "PYRO_NFLOWS_CACHE", os.path.join(tempfile.gettempdir(), f"pyro_nflows_tests_{getpass.getuser()}")
)


def start_afresh() -> None:
    pyro.enable_validation(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


class CleanStart:
    """A plugin, to reach the examples in the package's docstrings too; those run in torch's default precision."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Before a module's fixtures, so that they do not depend on which test asks for them first."""
        start_afresh()

    @pytest.fixture(autouse=True)
    def clean_start(self) -> None:
        """And after them, so that the test does not either."""
        start_afresh()


@pytest.fixture(autouse=True, scope="module")
def double_precision() -> Iterator[None]:
    """For a whole module, so that what its fixtures build is in double precision as well."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CleanStart(), "clean_start")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
