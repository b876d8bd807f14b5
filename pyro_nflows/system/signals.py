"""Ctrl-C held back for a moment, and SIGTERM held up: what belongs together is done together, and nothing is lost."""

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A block that Ctrl-C does not break into: it acts at the end. Only for what takes no time.

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


def imported(*names: str) -> None:
    """Import modules that will be needed, on a thread, where no signal handler runs.

    An import that an interrupt breaks off leaves a package in parts: those that were done stay, the package is begun
    anew without them, and whatever needs it fails for as long as the process lasts. What cannot be imported is left
    to whoever needs it.

    Example::

        >>> imported("json.decoder", "no_such_module")
        >>> "json.decoder" in sys.modules
        True
    """
    missing = [name for name in names if name not in sys.modules]
    if missing:
        thread = threading.Thread(target=_import, args=(missing,), name="imports")
        thread.start()
        thread.join()


@contextlib.contextmanager
def imported_before(name: str, needs: str) -> Iterator[None]:
    """A block in which what a module needs is imported before the module is, if it ever is; Ctrl-C waits for that.

    Example::

        >>> with imported_before("no_such_module", needs="json.encoder"):
        ...     pass
    """
    first = _First(name, needs)
    sys.meta_path.insert(0, first)
    try:
        yield
    finally:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not first]


class _First:
    """Finds nothing, but hears what is looked for."""

    def __init__(self, name: str, needs: str):
        self.name, self.needs = name, needs

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """On this thread, which has the lock of all imports: another one would wait for it, and this one for that."""
        if name == self.name:
            with uninterrupted():
                _import([self.needs])


def _import(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


@contextlib.contextmanager
def before_sigterm(action: Callable[[], None]) -> Iterator[None]:
    """A block in which SIGTERM does this first, and then what it would have done.

    Example::

        >>> import os
        >>> def leave(number, frame):
        ...     raise SystemExit("left")
        >>> before = signal.signal(signal.SIGTERM, leave)
        >>> try:
        ...     with before_sigterm(lambda: print("one more thing")):
        ...         os.kill(os.getpid(), signal.SIGTERM)
        ... except SystemExit as end:
        ...     print(end)
        ... finally:
        ...     _ = signal.signal(signal.SIGTERM, before)
        one more thing
        left
    """
    before = signal.getsignal(signal.SIGTERM)
    heard_here = before is signal.SIG_DFL or callable(before)
    if threading.current_thread() is not threading.main_thread() or not heard_here:
        yield
        return

    def hear(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        try:
            action()
        finally:
            if callable(before):
                before(number, frame)
            else:
                os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is hear:
            signal.signal(signal.SIGTERM, before)
