r"""One thread at a time, with gradients on.

Pyro keeps its stack of handlers, its parameters and torch its random state once for the whole process. Two models
that run in two threads therefore see each other's sites. What runs a model here holds one lock for as long as it does;
another thread waits.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.poutine import runtime
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from .randomness import forked

_lock = threading.RLock()
_forked = False


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Within it, or as a decorator, no other thread is in one; and autograd works, whatever it is inside of.

    The thread that holds it may enter it again. In a process that was forked, torch is kept to one thread: the others
    did not come along, and OpenMP would wait for them for ever.

    Example::

        >>> with torch.inference_mode(), exclusive():
        ...     torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        (False, True)
    """
    with _lock, differentiable(), _one_thread() if _forked else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Within it, or as a decorator, autograd works, whatever it is inside of.

    Example::

        >>> with torch.no_grad(), differentiable():
        ...     torch.ones(2, requires_grad=True).sum().requires_grad
        True
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def validation(is_enabled: bool) -> Iterator[None]:
    """Pyro's of the same name, after which torch's own checks are as they were: Pyro sets them like its own.

    Example::

        >>> torch.distributions.Distribution.set_default_validate_args(False)
        >>> with validation(True):
        ...     pass
        >>> torch.distributions.Distribution._validate_args
        False
        >>> torch.distributions.Distribution.set_default_validate_args(True)
    """
    before = torch.distributions.Distribution._validate_args
    try:
        with pyro.validation_enabled(is_enabled):
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


@contextlib.contextmanager
def with_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within it torch's default type of numbers is this one.

    Example::

        >>> before = torch.get_default_dtype()
        >>> with with_dtype(torch.float64):
        ...     torch.zeros(1).dtype
        torch.float64
        >>> torch.get_default_dtype() == before
        True
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it torch's random numbers start from a seed, on all devices; afterwards they go on as if nothing had been.

    Example::

        >>> before = torch.get_rng_state()
        >>> with seeded(0):
        ...     _ = torch.randn(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    with forked(seed):
        yield


def usable(call: Any) -> Any:
    """A model's arguments, with copies of tensors made in inference mode, which autograd refuses.

    :raises ValueError: if they, or what the model would make, are on the device ``meta``.

    Example::

        >>> with torch.inference_mode():
        ...     data = {"x": torch.ones(3)}
        >>> data["x"].is_inference(), usable(data)["x"].is_inference()
        (True, False)
    """
    leaves = tree_flatten(call)[0]
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
        raise ValueError("got data on the device 'meta', where tensors hold no values; move them to a CPU or a GPU")
    if torch.get_default_device().type == "meta":
        raise ValueError(
            "the default device is 'meta', where tensors hold no values, so no model can be fitted; "
            "call torch.set_default_device(None) first"
        )
    with torch.inference_mode(False):
        return tree_map(_normal, call) if any(map(_is_inference, leaves)) else call


def _is_inference(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_inference()


def _normal(leaf: Any) -> Any:
    return leaf.clone() if _is_inference(leaf) else leaf


def _start_afresh() -> None:
    """In a forked child, forget a run of a thread that the child does not have."""
    global _forked, _lock
    _forked = True
    if not _lock.acquire(blocking=False):
        _lock = threading.RLock()
        runtime._PYRO_STACK.clear()
    else:
        _lock.release()


os.register_at_fork(after_in_child=_start_afresh)
