r"""How a step's work can be divided among threads, and which memory each part of it touches.

A step is *cut*: each part of it has some of the indices of one dimension, in blocks of particles or in steps of
sixteen; or it is *whole*, for one thread. Every number is computed by the same operations in the same order however
many parts there are, so results do not depend on the number of threads: no sum is ever cut.

What a step touches of a buffer is *shared* with period :math:`p`, size :math:`N` and phase :math:`\phi` if part
:math:`c` touches only bytes :math:`b` with :math:`\lfloor (b - \phi) / p \rfloor \bmod N` in that range. Steps that
share a buffer alike need not wait for each other's other parts: 128 particles go through all layers of a flow in two
halves.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from .plan import Access, Buffer, Cholesky, Loop, Product, Ref, Solve, Statement, Step, refs_of
from .turns import seconds

#: Parts are multiples of so many indices, and so are never too few for a vector unit's code.
UNIT = 16
#: A product that is not cut along the particles is cut along its own rows or columns from so many seconds on.
LONG_PRODUCT = 2e-4
#: A loop alike.
LONG_LOOP = 2e-4


class Cut(NamedTuple):
    """A way to divide a step: along a loop's dimension, or a product's rows, columns or batch."""

    along: int | str
    size: int


class Share(NamedTuple):
    """How the bytes of a buffer are divided, counted from ``phase`` on."""

    period: int
    size: int
    phase: int = 0


class Touch(NamedTuple):
    """Bytes from ``first`` to before ``last`` of a buffer; not divided if ``share`` is None."""

    buffer: Buffer
    first: int
    last: int
    writes: bool
    share: Share | None


def cuts(step: Step, size: int) -> list[Cut]:
    """Ways to divide a step, the best first: along the particles, or along what is long where it is worth that.

    :param size: how many particles there are.
    """
    found = [cut for cut in _possible(step) if cut.size >= 2 * UNIT]
    best = [cut for cut in found if cut.size == size]
    if not best and seconds(step) > (LONG_LOOP if isinstance(step, Loop) else LONG_PRODUCT):
        best = sorted(found, key=lambda cut: -cut.size)[:1]
    return [cut for cut in best if all(t.share is not None for t in touches(step, cut) if t.writes)]


def _possible(step: Step) -> Iterator[Cut]:
    if isinstance(step, Loop):
        yield from (Cut(d, n) for d, n in enumerate(step.shape) if all(_is_apart(s, d) for s in step.statements))
    elif isinstance(step, Product):
        yield from _batch(step.c)
        if step.c.meta.dim() == 2:
            yield from (Cut("rows", step.c.meta.shape[0]), Cut("columns", step.c.meta.shape[1]))
    elif isinstance(step, Solve):
        yield from _batch(step.x)
        if step.x.meta.dim() == 2:
            yield Cut("columns", step.x.meta.shape[1])
    elif isinstance(step, Cholesky):
        yield from _batch(step.l)


def _batch(ref: Ref) -> Iterator[Cut]:
    if ref.meta.dim() == 3:
        yield Cut("batch", ref.meta.shape[0])


def _is_apart(statement: Statement, d: int) -> bool:
    """Whether a statement's results at different indices of a dimension are different numbers, each by itself."""
    return statement.out.strides[d] != 0 and not (statement.kind == "running" and d == 0)


def touches(step: Step, cut: Cut | None) -> list[Touch]:
    """All memory that a step reads and writes, but for constants."""
    if isinstance(step, Loop):
        found = [_by_access(a, step.shape, w, cut) for s in step.statements for a, w in _accesses(s)]
    else:
        reads, writes = refs_of(step)
        along = [None] * len(reads + writes) if cut is None else divided(step, cut)
        roles = zip([*reads, *writes], [False] * len(reads) + [True] * len(writes), along)
        found = [_by_ref(ref, w, d) for ref, w, d in roles]
    return [touch for touch in dict.fromkeys(found) if touch.buffer.constant is None]


def _accesses(statement: Statement) -> Iterator[tuple[Access, bool]]:
    for operand in [*statement.operands, statement.out]:
        if isinstance(operand, Access):
            yield operand, operand is statement.out
            yield from ((index, False) for index, _, _ in operand.indices)


def _by_access(access: Access, shape: tuple[int, ...], writes: bool, cut: Cut | None) -> Touch:
    dims = [*zip(access.strides, shape), *((stride, size) for _, stride, size in access.indices)]
    return _touch(access.buffer, access.offset, dims, writes, cut and int(cut.along))


def _by_ref(ref: Ref, writes: bool, along: int | None) -> Touch:
    dims = [*zip(ref.meta.stride(), ref.meta.shape)]
    return _touch(ref.buffer, int(ref.meta.storage_offset()), dims, writes, along)


def divided(step: Step, cut: Cut) -> list[int | None]:
    """Of each tensor that a step reads, and then writes, which dimension a cut divides."""
    reads, writes = refs_of(step)
    if cut.along == "batch":
        return [0 if ref.meta.dim() > 2 or ref.buffer.dtype is torch.int32 else None for ref in [*reads, *writes]]
    if isinstance(step, Product):
        return [-2, None, -2] if cut.along == "rows" else [None, -1, -1]
    return [None, -1, -1]


def _touch(buffer: Buffer, offset: int, dims: list[tuple[int, int]], writes: bool, along: int | None) -> Touch:
    width = buffer.dtype.itemsize
    low = offset + sum(min(0, s * (n - 1)) for s, n in dims)
    high = offset + sum(max(0, s * (n - 1)) for s, n in dims) + 1
    share = None if along is None else _share(offset, dims, along % len(dims))
    root = buffer.alias or buffer
    return Touch(
        root, low * width, high * width, writes, share and Share(share.period * width, share.size, share.phase * width)
    )


def _share(offset: int, dims: list[tuple[int, int]], along: int) -> Share | None:
    """How elements are divided along a dimension; None if not so that each part has a place of its own."""
    period, size = dims[along]
    if period <= 0:
        return None
    within, reach = offset % period, 0
    for d, (stride, num) in enumerate(dims):
        if d == along or num == 1 or stride == 0 or stride % (period * size) == 0:
            continue
        if stride < 0:
            return None
        reach += stride * (num - 1)
    if reach >= period:
        return None
    return Share(period, size, (offset - (within if within + reach < period else 0)) % (period * size))


def length_of(size: int) -> int:
    """How many particles a block has: near 32, since that is how wide a product is; 0 if there can be no blocks."""
    found = [n for n in range(UNIT, 4 * UNIT + 1) if size % n == 0 and size > n]
    return min(found, key=lambda n: abs(math.log2(n / (2 * UNIT))), default=0)
