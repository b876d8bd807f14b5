"""Where each buffer lies: memory is used again once what it held has been read for the last time."""

from .layout import packed
from .plan import Buffer, Loops, Ref, accesses

#: Buffers start at multiples of this many bytes.
ALIGNMENT = 64


def share(plan: Loops, new: Ref, old: Ref) -> None:
    """Let a step's result overwrite the input whose place it takes, if the loop that makes it reads that input last."""
    home, buffer, was = new.buffer.home, new.buffer, old.buffer
    taken = any(b.alias is was for b in plan.buffers)
    if home is None or taken or buffer.alias or buffer.dtype != was.dtype or buffer.numel != was.numel or was.writes:
        return
    position = buffer.writes[0]
    if len(buffer.writes) > 1 or max(was.reads, default=-1) > position:
        return
    reads = [a for s in home.statements for a in accesses(s.operands) if a.buffer is was]
    if all(a.offset == 0 and a.strides == packed(home.shape) for a in reads):
        buffer.alias = was


def place(plan: Loops) -> int:
    """Give every buffer its offset; memory is used again once what it held has been read for the last time."""
    free: list[tuple[int, int]] = []
    end, now = 0, 0
    alive: list[tuple[int, int, int]] = []  # last use, offset, size
    dead_at = len(plan.steps)

    def take(size: int) -> int:
        nonlocal end
        for i, (start, room) in enumerate(free):
            if room >= size:
                free[i : i + 1] = [(start + size, room - size)] if room > size else []
                return start
        end += size
        return end - size

    def release(before: int) -> None:
        for last, start, size in [a for a in alive if a[0] < before]:
            alive.remove((last, start, size))
            free.append((start, size))
        free.sort()
        for i in range(len(free) - 1, 0, -1):
            if sum(free[i - 1]) == free[i][0]:
                free[i - 1 : i + 1] = [(free[i - 1][0], free[i - 1][1] + free[i][1])]

    memory = [
        b for b in plan.buffers if b.constant is None and b.alias is None and (b.pinned or (b.writes and _is_stored(b)))
    ]
    for buffer in sorted(memory, key=lambda b: -1 if b.pinned else min(b.writes)):
        begins = -1 if buffer.pinned else min(buffer.writes)
        if begins > now:
            now = begins
            release(now)
        size = -(-buffer.numel * buffer.dtype.itemsize // ALIGNMENT) * ALIGNMENT
        buffer.offset = take(size)
        last = dead_at if buffer.pinned else max([*buffer.reads, *buffer.writes])
        alive.append((last, buffer.offset, size))
    for buffer in plan.buffers:
        buffer.offset = buffer.alias.offset if buffer.alias else buffer.offset
    return end


def _is_stored(buffer: Buffer) -> bool:
    return buffer.home is None or buffer.needed
