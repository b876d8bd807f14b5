"""Compiles in a process of its own, and keeps what was compiled on disk (:mod:`.store`).

The same source compiled by the same compiler for the same processor is found again by any process. A compiler that
takes longer than ``$PYRO_NFLOWS_COMPILE_SECONDS`` (300) is stopped.
"""

import contextlib
import ctypes
import hashlib
import math
import os
import shutil
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from .compilers import LINEAR, LINEAR_FLAGS, CompilerError, command, compiler, identity, positive
from .store import store

#: Seconds that a compiler may take.
LIMIT = 300.0
#: Of compilers that nobody waits for any more, so many may end by themselves, of sources of so many characters, and
#: within so many seconds: a fit that was done before its code was may be followed by one like it.
MOST_LEFT, SHORT, SECONDS_LEFT = 2, 500_000, 10.0
#: What this process has loaded, by folder and key: it is not loaded again.
_LOADED: dict[tuple[Path, str], ctypes.CDLL] = {}
#: Those that were left to end by themselves, by the same.
_LEFT: dict[tuple[Path, str], "Build"] = {}
#: Code that programs share, by the type of its numbers.
_SHARED: dict[str, "Build"] = {}
#: Those types, by the prefix of their functions.
TYPES = {"f": "float", "d": "double"}
_LOCK = threading.RLock()


class Build:
    """A compilation under way, or found in the cache.

    :param source: C that includes ``support.h``.
    :param flags: more arguments of the compiler.
    :raises CompilerError: if there is no compiler, or it cannot be started.
    """

    def __init__(self, source: str, flags: Sequence[str] = ()):
        path = compiler()
        if path is None:
            raise CompilerError("no C compiler was found (cc, gcc or clang; set CC to name another)")
        self._source, self._command, self._store = source, command(path, flags), store()
        self._limit = positive("PYRO_NFLOWS_COMPILE_SECONDS", LIMIT)
        positive("PYRO_NFLOWS_CACHE_MB", 1.0)
        self.key = hashlib.sha256((source + identity(self._command)).encode()).hexdigest()[:32]
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = _nothing
        self._failure: str | None = None
        self._lock, self._owner = threading.RLock(), os.getpid()
        self._place = self._store.folder, self.key
        self._library = _LOADED.get(self._place)
        self._code = None if self._library else self._store.read(self.key)
        self.cached = self._library is not None or self._code is not None
        if self.cached:
            self._store.touch(self.key)
        elif not self._goes_on():
            self._start()

    def _start(self) -> None:
        self._began = time.monotonic()
        try:
            self._work = self._store.workspace()
        except OSError as error:
            raise CompilerError(f"nothing can be compiled in {self._store.folder}: {error}") from error
        try:
            (self._work / "program.c").write_text(self._source)
            self._process = self._run()
        except OSError as error:
            shutil.rmtree(self._work, ignore_errors=True)
            raise CompilerError(f"nothing can be compiled in {self._store.folder}: {error}") from error
        self._end = weakref.finalize(self, _stop, self._process, self._work, self._owner)

    def _goes_on(self) -> bool:
        """Whether a compiler was left at work on the same, which is now this one's."""
        with _LOCK:
            left = _LEFT.get(self._place)
            if left is None or left._owner != self._owner or left._process is None:
                return False
            del _LEFT[self._place]
            self._began, self._work, self._process = left._began, left._work, left._process
            left._end, left._process, detached = _nothing, None, left._end
        if isinstance(detached, weakref.finalize):
            detached.detach()
        self._end = weakref.finalize(self, _stop, self._process, self._work, self._owner)
        return True

    def _run(self) -> "subprocess.Popen[bytes]":
        """The compiler, in a session of its own: a Ctrl-C is for us, and all of its children can be stopped."""
        with open(self._work / "errors", "wb") as errors:
            return subprocess.Popen(
                [*self._command, "program.c", "-o", "program.so", "-lm"],
                cwd=self._work,
                env={**os.environ, "TMPDIR": str(self._work), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`load` would not wait."""
        self._own()
        if self._process is None:
            return True
        return self._process.poll() is not None or self._remaining() <= 0

    @property
    def has_failed(self) -> bool:
        """Whether it was given up, or the compiler failed."""
        return self._failure is not None

    def _remaining(self) -> float:
        return self._began + self._limit - time.monotonic()

    def load(self) -> ctypes.CDLL:
        """The compiled library.

        :raises CompilerError: with the compiler's first line, if it failed.
        """
        self._own()
        with self._lock:
            if self._code is not None:
                self._library = self._from_cache(self._code)
                self._code = None
            if self._library is None:
                self._library = self._compiled()
            return _LOADED.setdefault(self._place, self._library)

    def _own(self) -> None:
        """In a forked process, leave the compiler to the process that started it, and start one."""
        if self._owner == os.getpid():
            return
        self._owner, self._lock, theirs = os.getpid(), threading.RLock(), self._process
        if theirs is not None:
            theirs.returncode, self._process = 0, None
            try:
                self._start()
            except CompilerError as error:
                self._failure = str(error)

    def _from_cache(self, code: bytes) -> ctypes.CDLL | None:
        """A private copy of what was checked: nobody can change it in between, nor cut it later."""
        try:
            work = self._store.workspace()
        except OSError as error:
            raise CompilerError(f"nothing can be loaded from {self._store.folder}: {error}") from error
        try:
            copy = work / "program.so"
            copy.write_bytes(code)
            return _opened(copy)
        except CompilerError as error:
            self._store.discard(self.key, str(error))
            return None
        except OSError as error:
            raise CompilerError(f"nothing can be loaded from {self._store.folder}: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _compiled(self) -> ctypes.CDLL:
        if self._process is None and not self.has_failed:
            self._start()
        try:
            self._wait()
            made = self._work / "program.so"
            library = _opened(made)
            with contextlib.suppress(OSError):  # a full disk keeps nothing, but this process has its code
                self._store.write(self.key, made.read_bytes())
        except CompilerError as error:
            self._failure = str(error)
            self.cancel()
            raise
        self._stop_compiler()
        return library

    def _wait(self) -> None:
        if self._process is None:
            raise CompilerError(self._failure or "compiling was given up")
        try:
            self._process.wait(max(0.0, self._remaining()))
        except subprocess.TimeoutExpired as error:
            text = f"the compiler took longer than {self._limit:g} s (PYRO_NFLOWS_COMPILE_SECONDS sets the limit)"
            raise CompilerError(text) from error
        if self._process.returncode:
            raise CompilerError(self._why(self._process.returncode))

    def _why(self, status: int) -> str:
        """The line of the compiler's messages that says what is wrong."""
        text = ""
        with contextlib.suppress(OSError):
            text = (self._work / "errors").read_text(errors="replace").strip()
        lines = text.split("\n")
        line = next((line for line in lines if "error" in line.lower() or "No space" in line), lines[0])
        if status < 0:
            return f"the compiler was stopped by signal {-status}" + (f": {line}" if line else "")
        return line or f"the compiler failed with status {status}"

    def cancel(self) -> None:
        """Stop compiling, and leave nothing behind."""
        if self._process is not None:
            self._failure = self._failure or "compiling was given up"
        self._stop_compiler()

    def leave(self) -> None:
        """Nobody waits any more: a short compilation ends by itself, for whoever needs the same next, or is stopped."""
        with _LOCK:
            left = self._process is not None and self._owner == os.getpid() and len(self._source) <= SHORT
            if left := left and len(_LEFT) < MOST_LEFT and self._place not in _LEFT:
                _LEFT[self._place] = self
        if left:
            self.see_to(SECONDS_LEFT)
        else:
            self.cancel()

    def see_to(self, seconds: float = math.inf) -> None:
        """On a thread, keep what is compiled as soon as it is there, or stop the compiler when so many are over."""
        if self._process is not None:
            given = self._process, min(seconds, self._remaining())
            threading.Thread(target=self._kept, args=given, daemon=True, name="compiling").start()

    def _kept(self, process: "subprocess.Popen[bytes]", seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with _LOCK:
            if _LEFT.get(self._place) is self:
                del _LEFT[self._place]
        with self._lock:
            if self._process is process and process.poll() is None:
                self.cancel()
            elif self._process is process:
                with contextlib.suppress(CompilerError):
                    self.load()

    def _stop_compiler(self) -> None:
        self._end()
        self._end, self._process = _nothing, None


def linear_library(prefix: str) -> Build:
    """``linear.c`` for one type of numbers, which all programs share; one that failed is tried again.

    :param prefix: of its functions: ``"f"`` for single precision, ``"d"`` for double.
    """
    with _LOCK:
        if prefix not in _SHARED or _SHARED[prefix].has_failed:
            source = f"#define REAL {TYPES[prefix]}\n#define PREFIX {prefix}\n" + LINEAR.read_text()
            _SHARED[prefix] = Build(source, LINEAR_FLAGS)
            _SHARED[prefix].see_to()
        return _SHARED[prefix]


def _opened(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilerError(f"what was compiled cannot be loaded: {error}") from error


def _nothing() -> None:
    return None


def _stop(process: "subprocess.Popen[bytes]", work: Path, owner: int) -> None:
    """Stop a compiler and what it has started; in a forked process, they are another's."""
    if os.getpid() != owner:
        return
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(work, ignore_errors=True)
