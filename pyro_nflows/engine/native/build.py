"""Finds a C compiler, compiles in a process of its own, and keeps what was compiled on disk.

The same source compiled by the same compiler for the same processor is found again by any process. The folder is
``$PYRO_NFLOWS_CACHE``, or ``pyro_nflows`` in the user's cache folder, or a temporary one where neither can be written.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

_FOLDER = Path(__file__).parent
_SUPPORT, _LINEAR = _FOLDER / "support.h", _FOLDER / "linear.c"
_FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -fno-signed-zeros -fopenmp-simd -fPIC -shared -w"
#: So many compiled files are kept; those that have not been used for longest go first.
MAX_FILES = 300


class CompilerError(RuntimeError):
    """No compiler, or one that fails."""


@functools.cache
def compiler() -> str | None:
    """The C compiler's path: ``$CC``, or the first of cc, gcc and clang."""
    if sys.platform == "win32":
        return None
    wanted = os.environ.get("CC")
    names = [shlex.split(wanted)[0]] if wanted else ["cc", "gcc", "clang"]
    return next((path for path in map(shutil.which, names) if path), None)


@functools.cache
def _identity() -> str:
    """Whatever else than the source decides what is compiled."""
    version = subprocess.run([str(compiler()), "--version"], capture_output=True, text=True, check=False).stdout
    processor = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return "\n".join([version, processor, _FLAGS, _SUPPORT.read_text()])


def cache_folder() -> Path:
    """Where compiled files are kept; made if it is not there."""
    named = os.environ.get("PYRO_NFLOWS_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else home / "pyro_nflows"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return _temporary()


@functools.cache
def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="pyro_nflows_"))


class Build:
    """A compilation under way, or found in the cache.

    :param source: C that includes ``support.h``.
    :raises CompilerError: if there is no compiler.
    """

    def __init__(self, source: str):
        path = compiler()
        if path is None:
            raise CompilerError("no C compiler was found (cc, gcc or clang; set CC to name another)")
        key = hashlib.sha256((source + _identity()).encode()).hexdigest()[:32]
        folder = cache_folder()
        self.target = folder / f"{key}.so"
        self._process: subprocess.Popen[bytes] | None = None
        self._library: ctypes.CDLL | None = None
        self.cached = self.target.exists()
        if self.cached:
            with contextlib.suppress(OSError):
                self.target.touch()
        else:
            self._start(path, folder, source)

    def _start(self, path: str, folder: Path, source: str) -> None:
        self._work = Path(tempfile.mkdtemp(prefix="build_", dir=folder))
        (self._work / "program.c").write_text(source)
        command = [path, *_FLAGS.split(), f"-I{_FOLDER}", "program.c", "-o", "program.so", "-lm"]
        # In a session of its own: a Ctrl-C is for us, not for the compiler.
        self._process = subprocess.Popen(
            command,
            cwd=self._work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _stop, self._process, self._work)

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`load` would not wait."""
        return self._process is None or self._process.poll() is not None

    def load(self) -> ctypes.CDLL:
        """The compiled library.

        :raises CompilerError: with the compiler's first line, if it failed.
        """
        if self._process is not None:
            _, errors = self._process.communicate()
            if self._process.returncode == 0:
                os.replace(self._work / "program.so", self.target)
                _prune(self.target.parent)
            self.cancel()
            if not self.target.exists():
                lines = errors.decode(errors="replace").strip().split("\n")
                raise CompilerError(
                    next((line for line in lines if "error" in line), lines[0]) or "the compiler failed"
                )
        self._library = self._library or ctypes.CDLL(str(self.target))
        return self._library

    def cancel(self) -> None:
        """Stop compiling, and leave nothing behind."""
        if self._process is not None:
            self._end()
            self._process = None


@functools.cache
def linear_library() -> Build:
    """``linear.c``, which all programs share."""
    return Build(_LINEAR.read_text())


def _stop(process: subprocess.Popen[bytes], work: Path) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stderr:
        process.stderr.close()
    shutil.rmtree(work, ignore_errors=True)


def _prune(folder: Path) -> None:
    with contextlib.suppress(OSError):
        files = sorted(folder.glob("*.so"), key=lambda file: file.stat().st_mtime)
        for file in files[: max(0, len(files) - MAX_FILES)]:
            file.unlink(missing_ok=True)
