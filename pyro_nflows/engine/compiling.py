r"""A recording on its way to compiled code: compiled in the background, and used only where it gives what it should.

On a CUDA device, a CUDA graph takes the place of compiled code.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import first_line
from ..system.cores import num_cores
from .graphs import Graph, GraphRun, scan_of
from .native import CompilerError, Run, Scan, linear_library
from .tape import Tape

#: What :class:`~.native.Scan` raises where there can be no compiled code.
FAILURES = (CompilerError, NotImplementedError, OSError)
#: Compiled code, or a CUDA graph, with memory of its own.
Code = Run | GraphRun
#: Why there is none elsewhere.
NEEDS = "it needs float32 or float64, and the CPU or a CUDA device"


class Compiling:
    r"""The one way from a recording to compiled code.

    The recording is replayed until the compiler is done. Compiled code is then handed out by :meth:`take`, which first
    compares what it gives with what is right; where it differs, or cannot be had, :attr:`refused` says why, for good.

    :param tape: the recording.
    :param num_carried: how many of its first results are the next step's first inputs.
    :param like: a tensor of the device and type that the recording computes on.

    Example::

        >>> tape = Tape(lambda x: (x.sin(),), [torch.ones(3)])
        >>> compiling = Compiling(tape, 0, torch.ones(3))
        >>> compiling.start()
        >>> x = torch.tensor([0.0, 0.5, 1.0])
        >>> def differs(run):
        ...     (found,), (right,) = run.run([], [x[None]])[1], tape.run([x])
        ...     return None if torch.allclose(found[0], right) else f"it gives {found[0]}, not {right}"
        ...
        >>> run = compiling.take(differs)
        >>> (run is None) == (compiling.refused is not None)
        True
    """

    def __init__(self, tape: Tape, num_carried: int, like: Tensor):
        self.tape, self.num_carried, self.like = tape, num_carried, like
        self.scan: Scan | Graph | None = None
        #: Why compiled code will not be used; None as long as it may be.
        self.refused = None if compiles(like) else NEEDS
        self._taken = False

    @property
    def is_started(self) -> bool:
        """Whether it was begun, or refused."""
        return self.scan is not None or self.refused is not None

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`take` need not wait."""
        return self.scan is not None and self.refused is None and self.scan.is_ready

    @property
    def is_under_way(self) -> bool:
        """Whether compiled code is still to come."""
        return self.scan is not None and self.refused is None and not self._taken

    def start(self) -> None:
        """Begin to compile, in the background; a second call does nothing."""
        if not self.is_started:
            try:
                self.scan = scan_of(self.tape, self.num_carried, self.like)
            except FAILURES as error:
                self.refused = first_line(error)

    def take(self, check: Callable[[Code], str | None]) -> Code | None:
        """Compiled code with memory of its own, if it gives what it should; waits for the compiler.

        :param check: compares what the code gives with what is right: None, or how they differ.
        """
        if self.scan is None or self.refused is not None:
            return None
        try:
            run = memory_of(self.scan)
            self.refused = check(run)
        except Exception as error:
            self.refused = first_line(error)
        self._taken = self.refused is None
        return run if self._taken else None

    def cancel(self) -> None:
        """Wait no more for what has not been used: what is compiled, or soon is, is on disk for another time."""
        if self.scan is not None and not self._taken and not self.scan.finish():
            self.scan = None


def compiles(like: Tensor) -> bool:
    """Whether compiled code could run at all: on the CPU or a CUDA device, in single or double precision."""
    return like.device.type in ("cpu", "cuda") and like.dtype in (torch.float32, torch.float64)


def foresee() -> None:
    """Begin to compile, in the background, what compiled code of any model needs; what fails is told when it is used.

    Example::

        >>> foresee()
    """
    with contextlib.suppress(*FAILURES):
        if compiles(torch.empty(0)):
            linear_library("d" if torch.get_default_dtype() is torch.float64 else "f")


def memory_of(scan: Scan | Graph, tape: Tape | None = None) -> Code:
    """Code with memory of its own.

    :param tape: that of the code, bound to other data.
    """
    return Run(scan, tape) if isinstance(scan, Scan) else GraphRun(scan, tape)


def compile_seconds(tape: Tape) -> float:
    """About how long a compiler takes for a recording, and twice that where it has no core for itself."""
    return (0.4 + 0.002 * len(tape)) * (1 if num_cores() > 1 else 2)
