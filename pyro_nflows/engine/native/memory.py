"""Where each buffer lies: memory is used again once what it held has been read for the last time."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from .blocks import Blocks
from .layout import packed
from .plan import Buffer, Loops, Ref, accesses
from .segments import Segment

#: Buffers start at multiples of this many bytes.
ALIGNMENT = 64


class _Span(NamedTuple):
    """So many bytes from one step to another."""

    buffer: Buffer
    begins: int
    ends: int
    size: int


def share(plan: Loops, new: Ref, old: Ref, segments: Sequence[Segment] | None = None) -> None:
    """Let a step's result overwrite the input whose place it takes, if the loop that makes it reads that input last.

    :param segments: the plan's, if threads share it: then no other step of the loop's segment may read the input.
    """
    home, buffer, was = new.buffer.home, new.buffer, old.buffer
    taken = any(b.alias is was for b in plan.buffers)
    if home is None or taken or buffer.alias or buffer.dtype != was.dtype or buffer.numel != was.numel or was.writes:
        return
    position = buffer.writes[0]
    if len(buffer.writes) > 1 or max(was.reads, default=-1) > position:
        return
    begins = position if segments is None else _bounds(segments)[position][0]
    if any(begins <= read < position for read in was.reads):
        return
    made = next(i for i, s in enumerate(home.statements) if s.out.buffer is buffer)
    reads = [(i, a) for i, s in enumerate(home.statements) for a in accesses(s.operands) if a.buffer is was]
    before = not reads or reads[0][0] <= made  # what is read once is kept: later statements do not read it again
    if before and all(a.offset == 0 and a.strides == packed(home.shape) and not a.indices for _, a in reads):
        buffer.alias = was


def place(plan: Loops) -> int:
    """Give every buffer its offset; how many bytes there are in all."""
    offsets, end = _fit([_Span(buffer, *_life(plan, buffer), _rounded(_bytes(buffer))) for buffer in _stored(plan)])
    _settle(plan, offsets)
    return end


def place_shared(plan: Loops, segments: Sequence[Segment], blocks: Blocks) -> tuple[int, int]:
    """The same for a plan whose steps threads share; how many bytes there are in all, and for each thread by itself.

    Memory is used again from one segment to the next, but for what each thread has for itself within one.
    """
    bounds, spans, own = _bounds(segments), list[_Span](), defaultdict[tuple[int, int], list[_Span]](list)
    for buffer in _stored(plan):
        begins, ends = _life(plan, buffer)
        size = _rounded(blocks.bytes_of(buffer))
        if buffer in blocks.own:
            own[bounds[begins]].append(_Span(buffer, begins, ends, size))
        else:
            first, last = (begins, ends) if buffer.pinned else (bounds[begins][0], bounds[ends][1])
            spans.append(_Span(buffer, first, last, size))
    offsets, end = _fit(spans)
    most = 0
    for found in own.values():
        places, size = _fit(found)
        offsets, most = offsets | places, max(most, size)
    _settle(plan, offsets)
    return end, most


def _stored(plan: Loops) -> list[Buffer]:
    return [
        b
        for b in plan.buffers
        if b.constant is None and b.alias is None and (b.pinned or (b.writes and (b.home is None or b.needed)))
    ]


def _life(plan: Loops, buffer: Buffer) -> tuple[int, int]:
    """The steps from which and to which a buffer is needed."""
    if buffer.pinned:
        return -1, len(plan.steps)
    return min(buffer.writes), max([*buffer.reads, *buffer.writes])


def _bytes(buffer: Buffer) -> int:
    return buffer.numel * buffer.dtype.itemsize


def _settle(plan: Loops, offsets: dict[Buffer, int]) -> None:
    for buffer in plan.buffers:
        buffer.offset = offsets.get(buffer.alias or buffer, -1)


def _bounds(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """Of each step, the first and the last of its segment."""
    found = list[tuple[int, int]]()
    for segment in segments:
        first = len(found)
        found += [(first, first + len(segment.parts) - 1)] * len(segment.parts)
    return found


def _fit(spans: Sequence[_Span]) -> tuple[dict[Buffer, int], int]:
    """Where each span lies, first come, first fit; and where all end."""
    free: list[tuple[int, int]] = []
    end, now = 0, None
    alive: list[_Span] = []
    found: dict[Buffer, int] = {}

    def take(size: int) -> int:
        nonlocal end
        for i, (start, room) in enumerate(free):
            if room >= size:
                free[i : i + 1] = [(start + size, room - size)] if room > size else []
                return start
        end += size
        return end - size

    def release(before: int) -> None:
        for span in [span for span in alive if span.ends < before]:
            alive.remove(span)
            free.append((found[span.buffer], span.size))
        free.sort()
        for i in range(len(free) - 1, 0, -1):
            if sum(free[i - 1]) == free[i][0]:
                free[i - 1 : i + 1] = [(free[i - 1][0], free[i - 1][1] + free[i][1])]

    for span in sorted(spans, key=lambda span: span.begins):
        if now is None or span.begins > now:
            now = span.begins
            release(now)
        found[span.buffer] = take(span.size)
        alive.append(span)
    return found, end


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
