r"""What is put together of parts, and which steps write it: a part is written where it belongs at once.

A concatenation is a buffer of which each part is a copy. Where a part is made for that alone, the step that makes it
writes into the buffer itself: gradients of all weights become one vector without being copied.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch

from .layout import Shape
from .plan import Access, Buffer, Loop, Loops, Product, Ref, Statement, Step, accesses, refs_of

#: What writes a buffer: a loop's statement, or a product.
Writer = tuple[Loop, Statement] | Product


def put_together(plan: Loops) -> None:
    """Leave out the copies of a plan's parts where that is possible."""
    writers, num = _writers(plan), _num_reads(plan)
    for step in plan.steps:
        if isinstance(step, Loop):
            step.statements = [s for s in step.statements if not _moved(step.shape, s, writers, num)]
    plan.steps = [step for step in plan.steps if not (isinstance(step, Loop) and not step.statements)]
    renumber(plan)


def renumber(plan: Loops) -> None:
    """Note anew which steps read and write each buffer."""
    for buffer in plan.buffers:
        buffer.reads, buffer.writes = [], []
    for i, step in enumerate(plan.steps):
        reads, writes = _buffers(step)
        for buffer in reads:
            buffer.reads.append(i)
        for buffer in writes:
            buffer.writes.append(i)


def _buffers(step: Step) -> tuple[list[Buffer], list[Buffer]]:
    """What a step reads and writes, as often as it does."""
    if isinstance(step, Loop):
        read = [a.buffer for s in step.statements for a in [*accesses(s.operands), *(i for i, _, _ in s.out.indices)]]
        return read, [s.out.buffer for s in step.statements]
    reads, writes = refs_of(step)
    return [ref.buffer for ref in reads], [ref.buffer for ref in writes]


def _num_reads(plan: Loops) -> dict[Buffer, int]:
    found = defaultdict[Buffer, int](int)
    for step in plan.steps:
        for buffer in _buffers(step)[0]:
            found[buffer] += 1
    return found


def _writers(plan: Loops) -> dict[Buffer, list[Writer | None]]:
    """What writes each buffer; None for what cannot write elsewhere."""
    found = defaultdict[Buffer, list[Writer | None]](list)
    for step in plan.steps:
        if isinstance(step, Loop):
            for s in step.statements:
                found[s.out.buffer].append((step, s) if s.kind in ("let", "store") and not s.out.indices else None)
        else:
            for ref in refs_of(step)[1]:
                found[ref.buffer].append(step if isinstance(step, Product) else None)
    return found


def _moved(shape: Shape, copy: Statement, writers: dict[Buffer, list[Writer | None]], num: dict[Buffer, int]) -> bool:
    """Have all that writes a part write to where a copy puts it, if nothing else reads the part."""
    out, given = copy.out, copy.operands[0]
    if copy.kind != "store" or copy.template != "{0}" or not isinstance(given, Access) or given.indices:
        return False
    part = given.buffer
    alone = num[part] == 1 and part.constant is None and not part.pinned and part.dtype == out.buffer.dtype
    several = len(writers[part]) > 1 and not part.apart  # of which one writes over what another one did
    if not out.buffer.apart or not alone or several or not _is_all(given, shape):
        return False
    made = [writer and _elsewhere(writer, given, out, shape) for writer in writers[part]]
    if not made or None in made:
        return False
    for writer, access in zip(cast(list[Writer], writers[part]), cast(list[Access], made)):
        _redirect(writer, access)
    others = [w for w in writers[out.buffer] if not (isinstance(w, tuple) and w[1] is copy)]
    writers[out.buffer] = others + writers.pop(part)
    return True


def _is_all(access: Access, shape: Shape) -> bool:
    """Whether each element of a buffer is read once."""
    dims, size = sorted((s, n) for s, n in zip(access.strides, shape) if n > 1), 1
    for stride, num in dims:
        if stride != size:
            return False
        size *= num
    return access.offset == 0 and size == access.buffer.numel


def _elsewhere(writer: Writer, given: Access, out: Access, shape: Shape) -> Access | None:
    """Where a writer of a part writes, if ``given`` is copied to ``out``; None if strides cannot say so."""
    dims = sorted(((s, n, to) for s, n, to in zip(given.strides, shape, out.strides) if n > 1), reverse=True)
    offset, sizes = _extent(writer)
    last, start = [offset // s % n for s, n, _ in dims], out.offset
    start += sum(at * to for at, (_, _, to) in zip(last, dims))
    strides = list[int]()
    for stride, size in sizes:
        d = next((d for d, (s, n, _) in enumerate(dims) if s <= stride < s * n and stride % s == 0), None)
        if size > 1 and d is None:
            return None
        strides.append(stride // dims[d][0] * dims[d][2] if size > 1 and d is not None else 0)
        if size > 1 and d is not None:
            last[d] += stride // dims[d][0] * (size - 1)
    fits = all(at < n for at, (_, n, _) in zip(last, dims))
    return Access(out.buffer, start, tuple(strides)) if fits else None


def _extent(writer: Writer) -> tuple[int, Sequence[tuple[int, int]]]:
    """Where a writer begins, and its strides and sizes."""
    if isinstance(writer, Product):
        meta = writer.c.meta
        return int(meta.storage_offset()), [*zip(meta.stride(), meta.shape)]
    loop, statement = writer
    return statement.out.offset, [*zip(statement.out.strides, loop.shape)]


def _redirect(writer: Writer, access: Access) -> None:
    if isinstance(writer, Product):
        room = torch.empty(access.buffer.numel, dtype=access.buffer.dtype, device="meta")
        writer.c = Ref(access.buffer, room.as_strided(writer.c.meta.shape, access.strides, access.offset))
    else:
        writer[1].out, writer[1].kind = access, "store"
