r"""Recurrences over positions as compiled loops, which do not ask torch for each operation of each position.

Which run is the first by compiled code depends on how much was run before, and not on the clock, so that the same
program gives the same numbers.
"""

import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..checks import first_line
from ..nets.recurrence import Recurrence, run_by
from .compiling import Code, Compiling, compiles, memory_of
from .tape import Tape

#: Positions after which compiling pays: torch has then taken about as long as that does.
PAYS = 2000
#: Rows that compiled code takes side by side: what is kept of their past stays near the processor.
ROWS = 16
#: Ways to call a module that are followed; of others nothing is compiled.
MOST = 8
#: By how much compiled code may differ, in units of the largest number. Where rounding grows beyond that along the
#: positions, torch's own numbers are the ones to have.
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-10}


class CompiledRecurrence:
    """One recurrence, compiled when it has been run for so many positions that it pays.

    Results are those of :meth:`Recurrence.run` to rounding, and exactly those where no code can be had.
    """

    def __init__(self) -> None:
        self.num_positions = 0
        #: Why nothing is compiled; None as long as it may be.
        self.refused: str | None = None
        self._code: Code | None = None
        self._tape: Tape | None = None
        self._data: list[Tensor] = []
        self._lock = threading.Lock()

    def run(self, recurrence: Recurrence, given: Sequence[Tensor]) -> list[Tensor]:
        """As :meth:`Recurrence.run`."""
        self.num_positions += given[0].shape[-2]
        pays = self.refused is None and self.num_positions > PAYS
        if not pays or not self._lock.acquire(blocking=False):  # another thread's run has the code's memory
            return recurrence.run(given)
        try:
            if self._code is None or self._tape is None:
                return self._compiled(recurrence, given)
            return self._run(self._code, self._tape, recurrence, _Rows(given))
        finally:
            self._lock.release()

    def _run(self, code: Code, tape: Tape, recurrence: Recurrence, rows: "_Rows") -> list[Tensor]:
        data = _data(recurrence)
        if not all(map(torch.equal, data, self._data)):
            code = self._code = memory_of(code.scan, tape.bound(data))
            self._data = [tensor.clone() for tensor in data]
        return rows.run(code, recurrence.start(rows.example[0]))

    def _compiled(self, recurrence: Recurrence, given: Sequence[Tensor]) -> list[Tensor]:
        """Results without compiled code, with which that is compared before it is used."""
        right, rows, data = recurrence.run(given), _Rows(given), _data(recurrence)
        state = recurrence.start(rows.example[0])

        def step(*inputs: Tensor) -> list[Tensor]:
            before, each = list(inputs[: len(state)]), list(inputs[len(state) :])
            after, results = recurrence.step(recurrence.prepare(), before, each)
            return [*after, *results]

        try:
            self._tape = Tape(step, [*state, *rows.example], _tensors(recurrence))
        except Exception as error:
            self.refused = first_line(error)
            return right
        compiling = Compiling(self._tape, len(state), rows.example[0])
        compiling.start()
        self._code = compiling.take(lambda code: _difference(rows.run(code, state), right))
        self.refused, self._data = compiling.refused, [tensor.clone() for tensor in data]
        return right


class _Rows:
    """What each position is given, as blocks of so many rows; the last block has the first row again."""

    def __init__(self, given: Sequence[Tensor]):
        first = given[0]
        self.batch, self.length = first.shape[:-2], first.shape[-2]
        self.num = self.batch.numel()
        self.own = [part.dim() > 2 or part is first for part in given]
        self.given = [self._blocks(part) if own else part for part, own in zip(given, self.own)]
        #: What one position of one block is given.
        self.example = [part[0, 0] if own else part[0] for part, own in zip(self.given, self.own)]

    def _blocks(self, part: Tensor) -> Tensor:
        """``(..., T, n)`` to ``(blocks, T, rows, n)``."""
        rows = part.expand(*self.batch, *part.shape[-2:]).reshape(self.num, *part.shape[-2:])
        missing = -self.num % ROWS
        rows = torch.cat([rows, rows[:1].expand(missing, -1, -1)]) if missing else rows
        return rows.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()

    def run(self, code: Code, state: Sequence[Tensor]) -> list[Tensor]:
        """The results of all rows, each ``(..., T, n)``."""
        blocks = []
        for i in range(-(-self.num // ROWS)):
            streams = [part[i] if own else part for part, own in zip(self.given, self.own)]
            blocks.append(code.run(state, streams)[1])
        return [self._unblocked(torch.stack(parts)) for parts in zip(*blocks)]

    def _unblocked(self, results: Tensor) -> Tensor:
        rows = results.transpose(1, 2).flatten(0, 1)[: self.num]
        return rows.reshape(*self.batch, *rows.shape[1:])


def _tensors(recurrence: Recurrence) -> list[Tensor]:
    return [*recurrence.owner.parameters(), *recurrence.owner.buffers()]


def _data(recurrence: Recurrence) -> list[Tensor]:
    return [tensor.detach() for tensor in _tensors(recurrence)]


def _difference(found: Sequence[Tensor], right: Sequence[Tensor]) -> str | None:
    for part, expected in zip(found, right):
        furthest, scale = (part - expected).abs().max(), expected.abs().max().clamp(min=1.0)
        if not furthest <= CLOSE[expected.dtype] * scale:
            return f"it is off by {float(furthest):.2g} from numbers up to {float(scale):.2g}"
    return None


#: Of each module that is alive, by how it is called.
_found: "WeakKeyDictionary[nn.Module, dict[Any, CompiledRecurrence]]" = WeakKeyDictionary()


def run(recurrence: Recurrence, given: Sequence[Tensor]) -> list[Tensor]:
    """As :meth:`Recurrence.run`, compiled where that pays and nothing but the results is asked for."""
    if not (recurrence.is_steady and _is_plain(recurrence, given)):
        return recurrence.run(given)
    ways = _found.setdefault(recurrence.owner, {})
    key = recurrence.key, *((part.shape[-1], part.dim() > 2, part.dtype, part.device) for part in given)
    if key not in ways and len(ways) >= MOST:
        return recurrence.run(given)
    return ways.setdefault(key, CompiledRecurrence()).run(recurrence, given)


def _is_plain(recurrence: Recurrence, given: Sequence[Tensor]) -> bool:
    """Whether these are tensors with numbers, and neither a gradient nor a recording is made."""
    tensors = [*given, *_tensors(recurrence)]
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or not given[0].numel():
        return False
    if _get_current_dispatch_mode() is not None or torch.overrides._get_current_function_mode() is not None:
        return False
    if any(type(part) not in (Tensor, nn.Parameter) or _is_wrapped(part) for part in tensors):
        return False
    gradient = torch.is_grad_enabled() and any(part.requires_grad for part in tensors)
    return not gradient and compiles(given[0]) and torch.autograd.forward_ad._current_level < 0


def _is_wrapped(tensor: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


run_by(run)
