r"""A recording that is replayed, and becomes compiled code where it is asked for so often that compiling pays.

A replay is one call of torch for each operation, of which one costs some microseconds however few its numbers are.
Ascents, particles and chains ask for the same gradient thousands of times; how often a fit will is not known
beforehand. So a compiler begins once replays have taken about as long as it will: whatever comes, that is no worse than
twice the least that could have been spent. When is counted, not timed, so that a seed gives the same draws on a
busy machine.
"""

import contextlib
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .budget import Budget
from .compiling import Code, Compiling, compile_seconds
from .graphs import Graph, GraphRun
from .tape import Tape

#: Replays of a recording after which a CUDA graph of it pays, and the fewest after which compiled code does.
PAYS = 20
#: Seconds that a replay takes for each operation, and for each number that these give, about.
PER_CALL, PER_NUMBER = 1e-5, 1e-9
#: Compiled code is waited for once replays have taken so many times as long as a compiler was to.
PATIENCE = 2
#: Seconds of a compiler that are too many.
LONGEST = 60.0
#: The share of the time left that a compiler may take.
MOST = 0.3
#: How far compiled code may be off, as a share of the largest number.
TOLERANCE = 1e-3


class Replayed:
    """A recording with :class:`~.tape.Tape`'s interface, which is compiled once it has been run often enough.

    On a CUDA device, a CUDA graph takes the place of compiled code. Where compiled code cannot be had, or is not right,
    the recording is replayed as before.

    :param tape: what is run.
    :param device: where.
    :param compile: whether it may be compiled.
    :param budget: the time of the run; where that has a limit, compiled code is not waited for.

    Example::

        >>> replayed = Replayed(Tape(lambda x: [x.sin()], [torch.zeros(())]), torch.device("cpu"))
        >>> replayed.run([torch.tensor(1.0)])
        [tensor(0.8415)]
    """

    def __init__(self, tape: Tape, device: torch.device, compile: bool = True, budget: Budget | None = None):
        self.tape, self.device, self.compile, self._num_runs = tape, device, compile, 0
        self.budget = budget or Budget()
        self._pays, self._lock = runs_that_pay(tape) if compile else None, threading.Lock()
        self._compiling: Compiling | None = None
        self._code: Code | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Replayed, (self.tape, self.device, self.compile)

    @property
    def is_random(self) -> bool:
        """As of the recording."""
        return self.tape.is_random

    @property
    def is_compiled(self) -> bool:
        """Whether compiled code, or a CUDA graph, runs in place of the recording."""
        return self._code is not None

    def bound(self, data: Sequence[Tensor]) -> "Replayed":
        """That of the recording with other data."""
        return Replayed(self.tape.bound(data), self.device, self.compile, self.budget)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Replay on other inputs."""
        if not self._lock.acquire(blocking=False):  # code has memory for one at a time
            return self.tape.run(inputs)
        try:
            self._num_runs += 1
            if self._code is None:
                self._prepare(inputs)
            return self.tape.run(inputs) if self._code is None else _given(self._code, inputs)
        finally:
            self._lock.release()

    def _prepare(self, inputs: Sequence[Tensor]) -> None:
        """Begin to compile, or take what is compiled, if it is time for that."""
        if self.device.type == "cuda":
            if self._num_runs == PAYS:
                with contextlib.suppress(RuntimeError, NotImplementedError):
                    self._code = GraphRun(Graph(self.tape, 0, self.device))
        elif self._pays is not None and self._num_runs == self._pays:
            if compile_seconds(self.tape) > MOST * self.budget.time_for_piece:
                return
            self._compiling = Compiling(self.tape, 0, inputs[0])
            self._compiling.start()
        elif self._compiling is not None and self._pays and self._num_runs >= PATIENCE * self._pays:
            if self.budget.is_limited and self._compiling.is_under_way and not self._compiling.is_ready:
                return
            self._code = self._compiling.take(lambda code: _differs(_given(code, inputs), self.tape.run(inputs)))
            self._compiling = None


def runs_that_pay(tape: Tape) -> int | None:
    """Replays that take about as long as a compiler will; None where it would take too long.

    Example::

        >>> runs_that_pay(Tape(lambda x: [x.sin()], [torch.zeros(())])) > 1000
        True
        >>> runs_that_pay(Tape(lambda x: [x.sin() + x.cos()], [torch.zeros(10**6)])) < 500
        True
    """
    seconds, numbers = compile_seconds(tape), sum(math.prod(meta[0]) for meta in tape.metas.values() if meta)
    each = PER_CALL * len(tape) + PER_NUMBER * numbers
    return None if seconds > LONGEST else max(PAYS, math.ceil(seconds / max(each, PER_CALL)))


def _given(code: Code, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What one run of the code gives."""
    return [part[0] for part in code.run([], [tensor[None] for tensor in inputs])[1]]


def _differs(found: Sequence[Tensor], right: Sequence[Tensor]) -> str | None:
    """Why code is not to be used, if it is not."""
    for part, expected in zip(found, right):
        size = float(expected.abs().nan_to_num(posinf=0.0).max()) if expected.numel() else 0.0
        if not torch.allclose(part, expected, rtol=TOLERANCE, atol=TOLERANCE * size, equal_nan=True):
            return "it gives other numbers than the recording"
    return None
