r"""A recording as loops over buffers: what is computed where, before any C is written.

Elementwise operations with the same shape share one loop; a loop's own results stay in registers unless another loop
reads them. Views cost nothing. Matrix products, and operations that have no C of their own (called back in torch),
stand alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .constants import Origin, once
from .layout import LONG, Shape, in_order, laid_out, order_of, packed

#: Types that generated code computes with, and their names in C.
C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "u8",
}
#: Statements after which a loop is full: longer ones only spill registers.
MAX_STATEMENTS = 80
#: Rows of data, for each particle, from which on what a model makes of them lies particle by particle.
MANY_ROWS = 4
#: Points from which on a statement only joins a loop that makes what it reads, or the last one: of what is computed in
#: blocks, one block would otherwise wait in memory for the next.
LARGE = 2**18


@dataclass(eq=False)
class Buffer:
    """A piece of memory: an input, a constant, or what some steps write; ``apart`` if each of these another part."""

    dtype: torch.dtype
    numel: int
    constant: Tensor | None = None
    origin: Origin | None = None
    pinned: bool = False
    apart: bool = False
    idle: Tensor | None = None  # where nothing writes, and zeros are
    home: "Loop | None" = None
    writes: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    offset: int = -1
    alias: "Buffer | None" = None

    @property
    def needed(self) -> bool:
        """Whether another step reads it, or the caller does."""
        return self.pinned or any(read != self.writes[0] for read in self.reads) or len(self.writes) > 1


class Ref(NamedTuple):
    """A tensor: its shape and strides as a tensor without memory, on a buffer."""

    buffer: Buffer
    meta: Tensor


class Access(NamedTuple):
    """An element of a buffer at each point of a loop; ``indices`` add what is read elsewhere, times a stride.

    Of a loop over one block of particles, ``jump`` is how far apart the blocks are.
    """

    buffer: Buffer
    offset: int
    strides: Shape
    indices: tuple[tuple["Access", int, int], ...] = ()
    jump: int = 0


#: What a statement is given: memory, or C text.
Operand = Access | str


@dataclass(eq=False)
class Statement:
    """``kind`` is ``let`` (one value a point), ``store``, ``scatter``, ``running``, or a reduction's name."""

    kind: str
    template: str
    operands: list[Operand]
    out: Access
    dtype: torch.dtype


@dataclass(eq=False)
class Loop:
    """A nest of loops and what it does at each point."""

    shape: Shape
    statements: list[Statement] = field(default_factory=list)
    closed: bool = False

    def takes(self, shape: Shape) -> bool:
        """Whether there is room for another statement over this shape."""
        return self.shape == shape and not self.closed and len(self.statements) < MAX_STATEMENTS


@dataclass(eq=False)
class Product:
    """Matrix products ``c[i] = a[i] b[i]``."""

    a: Ref
    b: Ref
    c: Ref


@dataclass(eq=False)
class Solve:
    """``x`` in ``a x = b`` for a triangle ``a``."""

    a: Ref
    b: Ref
    x: Ref
    upper: bool
    unit: bool


@dataclass(eq=False)
class Cholesky:
    """The lower triangle ``l`` of ``a = l l'``, and in ``info`` whether there is none."""

    a: Ref
    l: Ref
    info: Ref


@dataclass(eq=False)
class Extern:
    """A call of torch itself; ``args`` hold :class:`Ref` s."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: list[Ref]
    is_list: bool


Step = Loop | Product | Solve | Cholesky | Extern


class Loops:
    """Steps under construction, in the order in which they will run."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []
        self.factors: dict[Any, Ref] = {}  # constant right factors, as products read them

    def buffer(self, dtype: torch.dtype, numel: int, **kwargs: Any) -> Buffer:
        """New memory."""
        made = Buffer(dtype, max(1, numel), **kwargs)
        self.buffers.append(made)
        return made

    def ref(self, shape: Sequence[int], dtype: torch.dtype, **kwargs: Any) -> Ref:
        """A new contiguous tensor."""
        return Ref(
            self.buffer(dtype, math.prod(shape), **kwargs), torch.empty(tuple(shape), dtype=dtype, device="meta")
        )

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Ref:
        """A new tensor that lies as loops like it."""
        return Ref(self.buffer(dtype, math.prod(shape)), laid_out(shape, dtype))

    def constant(self, tensor: Tensor, origin: Origin | None = None) -> Ref:
        """A tensor that the program holds, without its repetitions."""
        kept, made = once(tensor), None if origin is None else lambda values: once(origin(values))
        ref = self.ref(kept.shape, kept.dtype, constant=kept, origin=made)
        return Ref(ref.buffer, ref.meta.expand(tensor.shape))

    # ---- elementwise ----------------------------------------------------------------------------------------

    def access(self, ref: Ref, shape: Sequence[int]) -> Access:
        """A tensor as a loop over ``shape`` reads it, broadcast."""
        strides = ref.meta.expand(tuple(shape)).stride()
        return Access(ref.buffer, int(ref.meta.storage_offset()), in_order(strides, shape))

    def let(self, template: str, operands: list[Operand], shape: Sequence[int], dtype: torch.dtype) -> Ref:
        """An elementwise result; operands are made by :meth:`access` with the same shape."""
        out, sizes = self.room(shape, dtype), in_order(shape, shape)
        statement = Statement("let", template, operands, Access(out.buffer, 0, packed(sizes)), dtype)
        out.buffer.home = self._join(sizes, statement)
        return out

    def store(self, value: Operand, out: Ref, template: str = "{0}") -> None:
        """Copy a value into a part of a buffer that exists."""
        shape = out.meta.shape
        statement = Statement("store", template, [value], self.access(out, shape), out.meta.dtype)
        self._join(in_order(shape, shape), statement)

    def scatter(self, value: Operand, out: Access, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Add values at indices."""
        self._join(in_order(shape, shape), Statement("scatter", "{0}", [value], out, dtype))

    def reduce(self, kind: str, template: str, value: Ref, dims: Sequence[int], dtype: torch.dtype) -> Ref:
        """``value`` summed (or its greatest or least) over dimensions, which stay with size one."""
        shape = value.meta.shape
        kept = [1 if d in dims else size for d, size in enumerate(shape)]
        out = self.room(kept, dtype)
        statement = Statement(kind, template, [self.access(value, shape)], self.access(out, shape), dtype)
        self._join(in_order(shape, shape), statement)
        return out

    def _join(self, shape: Shape, statement: Statement) -> Loop:
        """Put a statement into the first loop where all that it needs is there."""
        reads, within = accesses(statement.operands), _indices(statement.out)
        inner = within + [i for a in reads for i in _indices(a)]  # read from memory, so made by an earlier loop
        earliest = max((self._after(a, None if a in inner else shape) for a in reads + within), default=0)
        if statement.kind != "let" and statement.out.buffer.writes:
            earliest = max(earliest, statement.out.buffer.writes[-1] + (statement.kind == "scatter"))
        homes = {a.buffer.writes[-1] for a in reads if a.buffer.writes} | {len(self.steps) - 1}
        for position in range(earliest, len(self.steps)):
            step = self.steps[position]
            if isinstance(step, Loop) and step.takes(shape) and (position in homes or math.prod(shape) < LARGE):
                break
        else:
            position, step = len(self.steps), Loop(shape)
            self.steps.append(step)
        step.statements.append(statement)
        for access in reads + within:
            access.buffer.reads.append(position)
        statement.out.buffer.writes.append(position)
        return step

    def _after(self, access: Access, shape: Shape | None) -> int:
        """The first step that can read this: the very loop that makes it, where the elements are the same."""
        buffer = access.buffer
        if not buffer.writes:
            return 0
        last = max(buffer.writes)
        home = buffer.home
        same = home is not None and home.shape == shape and access.offset == 0 and access.strides == packed(shape)
        return last if same and not access.indices and len(buffer.writes) == 1 else last + 1

    # ---- steps that stand alone -----------------------------------------------------------------------------

    def product(self, a: Ref, b: Ref) -> Ref:
        """``(batch, m, k)`` times ``(batch, k, n)``, or without the batch."""
        *batch, m, n = (*a.meta.shape[:-1], b.meta.shape[-1])
        is_given = a.buffer.constant is not None or a.buffer.pinned  # rows of data, over which loops will run
        turned = m > n and (n < LONG or (is_given and m >= MANY_ROWS * n))
        out = self.ref((*batch, n, m) if turned else (*batch, m, n), a.meta.dtype)
        if turned:
            out = Ref(out.buffer, out.meta.transpose(-1, -2))
        self._append(Product(a, b, out), [a, b], [out])
        return out

    def solve(self, a: Ref, b: Ref, upper: bool, unit: bool) -> Ref:
        """``a x = b``, one for each of a batch."""
        out = self.room(b.meta.shape, b.meta.dtype)
        self._append(Solve(a, b, out, upper, unit), [a, b], [out])
        return out

    def cholesky(self, a: Ref) -> tuple[Ref, Ref]:
        """The factor, and whether it failed."""
        out, info = self.ref(a.meta.shape, a.meta.dtype), self.ref(a.meta.shape[:-2], torch.int32)
        self._append(Cholesky(a, out, info), [a], [out, info])
        return out, info

    def running(self, x: Ref, dim: int) -> Ref:
        """The running sum along a dimension."""
        shape = x.meta.shape
        out = self.room(shape, x.meta.dtype)
        order = order_of(shape)
        order = [dim, *(d for d in order if d != dim)] if dim in order else order
        accesses = [
            Access(r.buffer, int(r.meta.storage_offset()), tuple(r.meta.stride(d) for d in order)) for r in (x, out)
        ]
        loop = Loop(
            tuple(shape[d] for d in order),
            [Statement("running", "{0}", [accesses[0]], accesses[1], x.meta.dtype)],
            closed=True,
        )
        self._append(loop, [x], [out])
        return out

    def extern(self, target: Any, args: Any, kwargs: Any, inputs: list[Ref], outs: list[Ref], is_list: bool) -> None:
        """Leave an operation to torch."""
        self._append(Extern(target, args, kwargs, outs, is_list), inputs, outs)

    def _append(self, step: Step, inputs: list[Ref], outs: list[Ref]) -> None:
        self.steps.append(step)
        for ref in inputs:
            ref.buffer.reads.append(len(self.steps) - 1)
        for ref in outs:
            ref.buffer.writes.append(len(self.steps) - 1)


def refs_of(step: Step) -> tuple[list[Ref], list[Ref]]:
    """What a step that is no loop reads and writes."""
    if isinstance(step, Product):
        return [step.a, step.b], [step.c]
    if isinstance(step, Solve):
        return [step.a, step.b], [step.x]
    if isinstance(step, Cholesky):
        return [step.a], [step.l, step.info]
    if isinstance(step, Extern):
        leaves = tree_flatten((step.args, step.kwargs), is_leaf=lambda leaf: isinstance(leaf, Ref))[0]
        return [leaf for leaf in leaves if isinstance(leaf, Ref)], step.outs
    return [], []


def _indices(access: Access) -> list[Access]:
    return [index for index, _, _ in access.indices]


def accesses(operands: Sequence[Operand]) -> list[Access]:
    """All memory that operands read, indices included."""
    found = [operand for operand in operands if isinstance(operand, Access)]
    return found + [index for access in found for index in _indices(access)]
