"""Ctrl-C held back for a moment, so that what belongs together is done together."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A block that Ctrl-C does not break into: it is heard at the end. Only for what takes no time.

    Signals are Python's main thread's business; in other threads, this does nothing.

    Example::

        >>> import os
        >>> try:
        ...     with uninterrupted():
        ...         os.kill(os.getpid(), signal.SIGINT)
        ...         print("all of it")
        ... except KeyboardInterrupt:
        ...     print("then the interrupt")
        all of it
        then the interrupt
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    heard: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if heard:
        handler(*heard[0])
