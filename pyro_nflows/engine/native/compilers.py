"""The C compiler, how it is called, and what the environment says of it.

``$PYRO_NFLOWS_CFLAGS`` is added to its arguments: ``-march=x86-64`` makes code that any x86-64 processor runs.
"""

import contextlib
import functools
import math
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
SUPPORT, LINEAR = FOLDER / "support.h", FOLDER / "linear.c"
_FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -fno-signed-zeros -fopenmp-simd -fPIC -shared -w"
#: For ``linear.c``, whose loops are written as vectors: as fast as by ``-O3``, and compiled in half the time.
LINEAR_FLAGS = "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic"


class CompilerError(RuntimeError):
    """No compiler, or one that fails."""


def positive(name: str, default: float) -> float:
    """A number above zero from the environment.

    :raises CompilerError: if it is something else.

    Example::

        >>> positive("PYRO_NFLOWS_NO_SUCH_SETTING", 2.0)
        2.0
    """
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise CompilerError(f"{name} must be a number above zero, got {text!r}")
    return value


def _named() -> list[str]:
    """``$CC``, in words."""
    text = os.environ.get("CC", "")
    try:
        return shlex.split(text)
    except ValueError:
        return [text]


@functools.cache
def compiler() -> str | None:
    """The C compiler's path: ``$CC``, or the first of cc, gcc and clang."""
    if sys.platform == "win32":
        return None
    names = _named()[:1] or ["cc", "gcc", "clang"]
    return next((path for path in map(shutil.which, names) if path), None)


def command(path: str, flags: Sequence[str] = ()) -> list[str]:
    """A compiler and its arguments but for the files.

    :param flags: more of them, before the environment's.

    :raises CompilerError: if ``$PYRO_NFLOWS_CFLAGS`` is no list of arguments.
    """
    try:
        more = shlex.split(os.environ.get("PYRO_NFLOWS_CFLAGS", ""))
    except ValueError as error:
        raise CompilerError(f"PYRO_NFLOWS_CFLAGS cannot be split into arguments: {error}") from error
    return [path, *_named()[1:], *_FLAGS.split(), *flags, *more, f"-I{FOLDER}"]


def identity(words: list[str]) -> str:
    """Whatever else than the source decides what is compiled; no compiler is run for it, since that might hang."""
    parts = [*words, _machine(), SUPPORT.read_text()]
    with contextlib.suppress(OSError):
        info = os.stat(words[0])
        parts += [os.path.realpath(words[0]), str(info.st_size), str(info.st_mtime_ns)]
    return "\n".join(parts)


@functools.cache
def _machine() -> str:
    """The processor, and the C library."""
    parts = [platform.machine(), platform.processor(), *platform.libc_ver()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        parts += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return "\n".join(parts)
