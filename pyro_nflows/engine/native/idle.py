r"""Numbers that stay as they are step after step, such as weights that a mask leaves out: they are not gone through.

Where a long vector is put together of parts, some of which are zeros, those are written once, since nothing else writes
there. A loop over that vector then leaves numbers alone where it would not change them: a weight whose gradient is
zero, if Adam's moments of it are zero too. Whether these are is looked up when a run begins; if not, all numbers take
part.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .parts import renumber
from .plan import LARGE, Access, Buffer, Loop, Loops, Operand, Statement, refs_of

#: Numbers take part or not by so many at a time.
UNIT = 16


class Idle(NamedTuple):
    """A loop that leaves some of its numbers alone.

    :ivar runs: where those lie that take part, as :func:`runs` gives it.
    :ivar zeros: vectors that must be zero elsewhere.
    :ivar read: all vectors that are read.
    """

    runs: Tensor
    zeros: tuple[Buffer, ...]
    read: tuple[Buffer, ...]


def write_once(plan: Loops) -> None:
    """Leave out what writes zeros into a part of a long vector, whose memory is zero from the start."""
    for buffer in plan.buffers:
        if buffer.apart and not buffer.pinned and buffer.constant is None and buffer.numel >= LARGE:
            _write_once(plan, buffer)
    plan.steps = [step for step in plan.steps if not (isinstance(step, Loop) and not step.statements)]
    renumber(plan)


def _write_once(plan: Loops, buffer: Buffer) -> None:
    places, fills = [torch.zeros(buffer.numel, dtype=torch.bool) for _ in range(2)], list[tuple[Loop, Statement]]()
    for step in plan.steps:
        if not isinstance(step, Loop):
            for meta in (ref.meta for ref in refs_of(step)[1] if ref.buffer is buffer):
                places[0].as_strided(meta.shape, meta.stride(), int(meta.storage_offset())).fill_(True)
            continue
        for s in (s for s in step.statements if s.out.buffer is buffer):
            if s.out.indices or min(s.out.strides, default=0) < 0:
                return
            places[_is_zeros(s)].as_strided(step.shape, s.out.strides, s.out.offset).fill_(True)
            fills += [(step, s)] * _is_zeros(s)
    written, zero = places
    if not fills or (written & zero).any():
        return
    for loop, s in fills:
        loop.statements.remove(s)
    buffer.pinned, buffer.idle = True, zero


def _is_zeros(statement: Statement) -> bool:
    value = statement.operands[0]
    if statement.kind != "store" or statement.template != "{0}" or not isinstance(value, Access):
        return False
    return _is_zero(value.buffer)


def _is_zero(buffer: Buffer) -> bool:
    """Whether a buffer holds zeros, whatever the data."""
    return buffer.constant is not None and buffer.origin is None and not buffer.constant.any()


def idle_of(loop: Loop) -> Idle | None:
    """What a loop over one long vector leaves alone, if there is anything."""
    every = [o for s in loop.statements for o in s.operands if isinstance(o, Access)]
    read = dict.fromkeys(o.buffer for o in every if o.strides == (1,) and o.buffer not in _written(loop))
    found = [(b, b.idle) for b in read if b.idle is not None]
    if len(found) != 1 or not _is_plain(loop, found[0][0]):
        return None
    (vector, places), *_ = found
    carried = list(dict.fromkeys(s.out.buffer.alias for s in loop.statements if s.out.buffer.alias is not None))
    for zeros in (zeros for num in range(len(carried) + 1) for zeros in combinations(carried, num)):
        if _stays(loop, vector, zeros):
            return Idle(runs(~places), zeros, tuple(read))
    return None


def runs(taken: Tensor) -> Tensor:
    """Where those lie that are taken, and their neighbours: rows of a beginning, an end, and how many come before.

    Example::

        >>> taken = torch.zeros(100, dtype=torch.bool)
        >>> taken[20], taken[90:] = True, True
        >>> runs(taken)
        tensor([[ 16,  32,   0],
                [ 80, 100,  16]])
    """
    units = torch.nn.functional.pad(taken, (0, -len(taken) % UNIT)).view(-1, UNIT).any(1).long()
    edges = torch.nn.functional.pad(units, (1, 1)).diff()
    first, last = (UNIT * (edges == way).nonzero()[:, 0] for way in (1, -1))
    last = last.clamp(max=len(taken))
    return torch.stack([first, last, (last - first).cumsum(0) - (last - first)], 1)


def _is_plain(loop: Loop, vector: Buffer) -> bool:
    """Whether each number of a vector is one point of a loop, which writes nothing else than that point's numbers."""
    every = [o for s in loop.statements for o in [*s.operands, s.out] if isinstance(o, Access)]
    once = all(a.strides in ((0,), (1,)) and not a.indices for a in every)
    here = all(a.strides == (1,) and a.offset == 0 for a in every if a.buffer in (vector, *_written(loop)))
    return once and here and loop.shape == (vector.numel,) and all(s.kind in ("let", "store") for s in loop.statements)


def _written(loop: Loop) -> list[Buffer]:
    return [s.out.buffer for s in loop.statements]


def _stays(loop: Loop, vector: Buffer, zeros: Sequence[Buffer]) -> bool:
    """Whether all that a loop writes is there already, where a vector and others are zero."""
    known: dict[Buffer, str | Buffer] = {vector: "0", **dict.fromkeys(zeros, "0")}
    for s in loop.statements:
        value = _value(s.template, [_known(o, known) for o in s.operands])
        known[s.out.buffer] = s.out.buffer if value is None else value
        place = s.out.buffer.alias
        if s.out.buffer.needed and not (place is not None and value == ("0" if place in zeros else place)):
            return False
    return True


def _known(operand: Operand, known: Mapping[Buffer, str | Buffer]) -> str | Buffer:
    if not isinstance(operand, Access):
        return operand
    return "0" if _is_zero(operand.buffer) else known.get(operand.buffer, operand.buffer)


def _value(template: str, operands: Sequence[str | Buffer]) -> str | Buffer | None:
    """What a statement gives: zero, the same as an operand, or None if that is not known."""
    zero = [o == "0" for o in operands]
    if template == "{0}" or (template in ("{0} + {1}", "{0} - {1}") and zero[1]):
        return operands[0]
    if template == "{0} + {1}" and zero[0]:
        return operands[1]
    if template == "{0} ? ({T}){1} : ({T}){2}" and operands[1] == operands[2]:
        return operands[1]
    through = ("{0} * {0}", "({T}){0} / ({T}){1}", "({T}){sqrt}({0})")
    return "0" if (template in through and zero[0]) or (template == "{0} * {1}" and any(zero)) else None
