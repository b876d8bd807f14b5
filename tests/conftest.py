"""Tests run in double precision; the examples in the package's docstrings in torch's default, as a reader's would."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import is_fake
from torch.fx.experimental import proxy_tensor

from tests import pretend_device
from tests.devices import DEVICES, on_device
from tests.few_draws import few_draws


@pytest.fixture(autouse=True, scope="module")
def double_precision() -> Iterator[None]:
    """For a whole module, so that what its fixtures build is in double precision as well."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="session")
def graphs_without_meta_data() -> Iterator[None]:
    """``make_fx`` makes a fake tensor of every value, in two thirds of its time, and tests read none of them."""
    extract = proxy_tensor.extract_val

    def extract_some(value: Any, *args: Any, **kwargs: Any) -> Any:
        is_real = isinstance(value, torch.Tensor) and not is_fake(value)
        return None if is_real else extract(value, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy_tensor, "extract_val", extract_some)
        yield


@pytest.fixture(scope="module", name="few_draws")
def judged_by_few_draws() -> Iterator[None]:
    """For a module that asks for it by ``pytest.mark.usefixtures``."""
    with few_draws():
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes only when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("on_devices"):
        asked = metafunc.config.getoption("--device")
        metafunc.parametrize("device", [asked] if asked else DEVICES, indirect=True)


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a test runs: on the CPU, unless it is marked ``on_devices``."""
    name = getattr(request, "param", "cpu")
    if name == "cpu":
        yield name
        return
    if name == pretend_device.NAME and not pretend_device.POSSIBLE:
        pytest.skip("this torch takes no backend written in Python")
    with on_device(name, request.module):
        yield name
