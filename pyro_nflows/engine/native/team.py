"""Threads that share a step of compiled code, lent to one run at a time."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from .build import Build
from .compilers import FOLDER, CompilerError

#: As many threads as a team can have.
MOST = 32
#: So often is what was slower tried again: the machine may be busy with something else now.
AGAIN = 24


class _Lent:
    """So many threads, at work as long as this is there."""

    def __init__(self, size: int) -> None:
        self.size = size


class Teams:
    """Teams that wait for the next run that wants one of their size.

    They belong to the process that made them: a forked one has none of their threads, and makes its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[int, list[int]] = {}
        self._owner = os.getpid()
        self._build: Build | None = None
        self._library: Any = None
        self._failed = False
        self._at_work: WeakSet[_Lent] = WeakSet()

    @property
    def num_busy(self) -> int:
        """Threads at work now, those that called included."""
        return sum(lent.size for lent in list(self._at_work))

    def start(self) -> None:
        """Begin to compile what teams need."""
        with self._lock:
            if self._build is None and not self._failed:
                try:
                    self._build = Build((FOLDER / "team.c").read_text())
                except (CompilerError, OSError):
                    self._failed = True

    @contextlib.contextmanager
    def lent(self, size: int) -> Iterator[tuple[Any, Any]]:
        """A team of so many threads, and the function that has it share work; None twice if it is one thread, or if
        there can be no more."""
        team = self._take(min(size, MOST)) if size > 1 else 0
        lent = _Lent(size if team else 1)  # which nobody counts when this call is over, however an interrupt ends it
        self._at_work.add(lent)
        try:
            share = ctypes.cast(self._library.team_share, ctypes.c_void_p) if team else None
            yield (ctypes.c_void_p(team) if team else None), share
        finally:
            self._at_work.discard(lent)
            with self._lock:
                if team and self._owner == os.getpid():
                    self._library.team_rest(ctypes.c_void_p(team))
                    self._idle.setdefault(size, []).append(team)

    def _take(self, size: int) -> int:
        self.start()
        with self._lock:
            if self._owner != os.getpid():
                self._owner, self._idle = os.getpid(), {}
            if self._library is None and not self._failed:
                if self._build is not None and not self._build.is_ready:
                    return 0  # for now
                try:
                    self._library = self._loaded()
                except (CompilerError, OSError, AttributeError):
                    self._failed = True
            if self._failed:
                return 0
            for other in [num for num in self._idle if num != size]:
                for team in self._idle.pop(other):
                    self._library.team_end(ctypes.c_void_p(team))
            idle = self._idle.get(size)
            return idle.pop() if idle else self._library.team_make(size) or 0

    def _loaded(self) -> Any:
        library = self._build.load() if self._build is not None else None
        if library is None:
            raise CompilerError("there are no teams")
        library.team_make.restype = ctypes.c_void_p
        library.team_make.argtypes = [ctypes.c_int64]
        return library


class Chosen:
    """How many threads share a run's steps: all that may, or one where that was faster when last tried.

    What is computed does not depend on it.

    Example::

        >>> chosen, tried = Chosen(), []
        >>> for part in range(6):
        ...     tried.append(chosen.next(most=2))
        ...     chosen.note(tried[-1], seconds={1: 3.0, 2: 2.0}[tried[-1]])
        ...
        >>> tried
        [2, 2, 1, 2, 2, 2]
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._turn = 0

    def next(self, most: int) -> int:
        """For the next steps.

        :param most: as many as may be.
        """
        for num in (most, 1):
            if num not in self._seconds:
                return num
        best = min((most, 1), key=lambda num: self._seconds[num])
        return best if self._turn % AGAIN else most + 1 - best

    def note(self, num: int, seconds: float) -> None:
        """What a step took; the very first ones, which find nothing in the cache, tell nothing."""
        if self._turn:
            self._seconds[num] = seconds
        self._turn += 1


#: This process's.
TEAMS = Teams()
