"""Tests that run on other devices too: with the module's mark ``on_devices``, once for each device."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import pretend_device

#: Where a test marked ``on_devices`` runs; what needs a CUDA device is left to ``pytest -m gpu``.
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)]


@contextmanager
def on_device(name: str, module: ModuleType) -> Iterator[None]:
    """Within it torch's default device is another one, and the data that tests share are there.

    :param name: of the device.
    :param module: of the test, whose own tensors are moved as well.
    """
    if name == pretend_device.NAME:
        pretend_device.start()
    with pytest.MonkeyPatch.context() as patch:
        for shared in (sys.modules.get("tests.models"), sys.modules.get("tests.registry"), module):
            _move(shared, name, patch)
        with pretend_device.pretended() if name == pretend_device.NAME else torch.device(name):
            yield


def _move(module: ModuleType | None, device: str, patch: pytest.MonkeyPatch) -> None:
    """A module's tensors, and those that its functions have as defaults."""
    for name, value in list(vars(module).items()) if module else []:
        if isinstance(value, Tensor):
            patch.setattr(module, name, value.to(device))
        elif inspect.isfunction(value) and any(isinstance(default, Tensor) for default in value.__defaults__ or ()):
            patch.setattr(value, "__defaults__", tuple(_moved(default, device) for default in value.__defaults__ or ()))


def _moved(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
