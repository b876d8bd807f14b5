"""How many threads torch runs on, and how many may share a step of compiled code."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

#: Operations of a row from which on threads are worth it: those of a thousand rows then take milliseconds.
WORTH_THREADS = 100_000
#: What torch's number of threads was when the outermost block that changes it began.
_asked: ContextVar[int | None] = ContextVar("_asked", default=None)


def threads_asked() -> int:
    """Torch's number of threads as the user has it, whatever it is at the moment.

    Example::

        >>> before = torch.get_num_threads()
        >>> with restored_threads():
        ...     torch.set_num_threads(before + 1)
        ...     threads_asked() == before
        True
    """
    return _asked.get() or torch.get_num_threads()


@contextmanager
def restored_threads() -> Iterator[None]:
    """Put torch's number of threads back at the end."""
    before = torch.get_num_threads()
    token = _asked.set(threads_asked())
    try:
        yield
    finally:
        _asked.reset(token)
        torch.set_num_threads(before)


@contextmanager
def threads_for(work: int) -> Iterator[None]:
    """One thread of torch's where a row takes few operations, of which more threads make nothing faster.

    With other programs on the machine they make everything slower: each operation waits for the last of its threads,
    and those that are done wait by computing.

    :param work: operations of a row, of the model and of the flow.
    """
    with restored_threads():
        if work < WORTH_THREADS:
            torch.set_num_threads(1)
        yield


def fastest_threads(step: Callable[[], Any], num_steps: int = 3) -> int:
    """Torch's number of threads, or one where that is no slower, as it is when tensors are small."""
    many = torch.get_num_threads()
    if many == 1:
        return 1
    seconds = {}
    for num in (many, 1):
        torch.set_num_threads(num)
        step()
        began = time.perf_counter()
        for _ in range(num_steps):
            step()
        seconds[num] = time.perf_counter() - began
    torch.set_num_threads(many)
    return min(seconds, key=lambda num: seconds[num])
