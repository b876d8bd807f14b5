r"""How many processors there are for this process, and for a worker beside others."""

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

import torch

#: Processors that this process may use at most; None for all that it has.
_most: ContextVar[int | None] = ContextVar("_most", default=None)


def num_cores() -> int:
    """Processors that this process may use.

    Example::

        >>> with on_one_core():
        ...     num_cores()
        1
    """
    most = _most.get()
    if most is not None:
        return most
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Within it, all is computed on one processor, by one thread: beside others that do the same."""
    before, token = torch.get_num_threads(), _most.set(1)
    try:
        torch.set_num_threads(1)
        yield
    finally:
        _most.reset(token)
        torch.set_num_threads(before)
