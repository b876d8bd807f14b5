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

Shape = tuple[int, ...]
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
#: Inner loops are at least this long where the shape allows.
MIN_INNER = 8


@dataclass(eq=False)
class Buffer:
    """A piece of memory: an input, a constant, or what some steps write."""

    dtype: torch.dtype
    numel: int
    constant: Tensor | None = None
    pinned: bool = False
    home: "Loop | None" = None
    writes: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    offset: int = -1

    @property
    def needed(self) -> bool:
        """Whether another step reads it, or the caller does."""
        return self.pinned or any(read != self.writes[0] for read in self.reads) or len(self.writes) > 1


class Ref(NamedTuple):
    """A tensor: its shape and strides as a tensor without memory, on a buffer."""

    buffer: Buffer
    meta: Tensor


class Access(NamedTuple):
    """An element of a buffer at each point of a loop; ``indices`` add what is read elsewhere, times a stride."""

    buffer: Buffer
    offset: int
    strides: Shape
    indices: tuple[tuple["Access", int, int], ...] = ()


#: What a statement is given: memory, or C text.
Operand = Access | str


@dataclass(eq=False)
class Statement:
    """``kind`` is ``let`` (one value a point), ``store``, ``scatter``, or a reduction's ``sum``, ``max`` or ``min``."""

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


@dataclass(eq=False)
class Product:
    """Matrix products ``c[i] = a[i] b[i]``."""

    a: Ref
    b: Ref
    c: Ref


@dataclass(eq=False)
class Extern:
    """A call of torch itself; ``args`` hold :class:`Ref` s."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: list[Ref]
    is_list: bool


Step = Loop | Product | Extern


def order_of(shape: Sequence[int]) -> list[int]:
    """The dimensions to loop over, the innermost last: a long one, and none of a single element."""
    dims = [d for d, size in enumerate(shape) if size != 1]
    if dims and shape[dims[-1]] < MIN_INNER:
        longest = max(dims, key=lambda d: shape[d])
        if shape[longest] >= MIN_INNER:
            dims.remove(longest)
            dims.append(longest)
    return dims


class Plan:
    """Steps under construction, in the order in which they will run."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []

    def buffer(self, dtype: torch.dtype, numel: int, **kwargs: Any) -> Buffer:
        """New memory."""
        made = Buffer(dtype, max(1, numel), **kwargs)
        self.buffers.append(made)
        return made

    def ref(self, shape: Sequence[int], dtype: torch.dtype, **kwargs: Any) -> Ref:
        """A new contiguous tensor."""
        return Ref(self.buffer(dtype, math.prod(shape), **kwargs), torch.empty(tuple(shape), dtype=dtype, device="meta"))

    def constant(self, tensor: Tensor) -> Ref:
        """A tensor that the program holds."""
        return self.ref(tensor.shape, tensor.dtype, constant=tensor.contiguous())

    # ---- elementwise ----------------------------------------------------------------------------------------

    def access(self, ref: Ref, shape: Sequence[int]) -> Access:
        """A tensor as a loop over ``shape`` reads it, broadcast."""
        strides = ref.meta.expand(tuple(shape)).stride()
        return Access(ref.buffer, int(ref.meta.storage_offset()), tuple(strides[d] for d in order_of(shape)))

    def let(self, template: str, operands: list[Operand], shape: Sequence[int], dtype: torch.dtype) -> Ref:
        """An elementwise result; operands are made by :meth:`access` with the same shape."""
        order = order_of(shape)
        sizes = [shape[d] for d in order]
        packed = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        strides = [0] * len(shape)
        for dim, stride in zip(order, packed):
            strides[dim] = stride
        out = self.buffer(dtype, math.prod(shape))
        access = Access(out, 0, tuple(packed))
        out.home = self._join(tuple(sizes), Statement("let", template, operands, access, dtype))
        return Ref(out, torch.empty_strided(tuple(shape), strides, dtype=dtype, device="meta"))

    def store(self, value: Operand, out: Ref, template: str = "{0}") -> None:
        """Copy a value into a part of a buffer that exists."""
        shape = out.meta.shape
        statement = Statement("store", template, [value], self.access(out, shape), out.meta.dtype)
        self._join(tuple(shape[d] for d in order_of(shape)), statement)

    def scatter(self, value: Operand, out: Access, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Add values at indices."""
        sizes = tuple(shape[d] for d in order_of(shape))
        self._join(sizes, Statement("scatter", "{0}", [value], out, dtype))

    def reduce(self, kind: str, template: str, value: Ref, dims: Sequence[int], dtype: torch.dtype) -> Ref:
        """``value`` summed (or its greatest or least) over dimensions, which stay with size one."""
        shape = value.meta.shape
        kept = [1 if d in dims else size for d, size in enumerate(shape)]
        out = self.ref(kept, dtype)
        statement = Statement(kind, template, [self.access(value, shape)], self.access(out, shape), dtype)
        self._join(tuple(shape[d] for d in order_of(shape)), statement)
        return out

    def _join(self, shape: Shape, statement: Statement) -> Loop:
        """Put a statement into the first loop where all that it needs is there."""
        accesses = _accesses(statement.operands)
        earliest = max((self._after(a, shape) for a in accesses), default=0)
        if statement.kind != "let" and statement.out.buffer.writes:
            written = statement.out.buffer.writes[-1]
            earliest = max(earliest, written + (statement.kind == "scatter"))
        for position in range(earliest, len(self.steps)):
            step = self.steps[position]
            if isinstance(step, Loop) and step.shape == shape and len(step.statements) < MAX_STATEMENTS:
                break
        else:
            position, step = len(self.steps), Loop(shape)
            self.steps.append(step)
        step.statements.append(statement)
        self._note(position, [a.buffer for a in accesses + [i for a in [statement.out] for i in _indices(a)]])
        statement.out.buffer.writes.append(position)
        return step

    def _after(self, access: Access, shape: Shape) -> int:
        """The first step that can read this: the very loop that makes it, where the elements are the same."""
        buffer = access.buffer
        if not buffer.writes:
            return 0
        last = max(buffer.writes)
        home = buffer.home
        packed = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        same = home is not None and home.shape == shape and access.offset == 0 and access.strides == packed
        return last if same and not access.indices and len(buffer.writes) == 1 else last + 1

    def _note(self, position: int, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            buffer.reads.append(position)

    # ---- steps that stand alone -----------------------------------------------------------------------------

    def product(self, a: Ref, b: Ref) -> Ref:
        """``(batch, m, k)`` times ``(batch, k, n)``, or without the batch."""
        shape = (*a.meta.shape[:-1], b.meta.shape[-1])
        out = self.ref(shape, a.meta.dtype)
        self._append(Product(a, b, out), [a, b], [out])
        return out

    def extern(self, target: Any, args: Any, kwargs: Any, inputs: list[Ref], outs: list[Ref], is_list: bool) -> None:
        """Leave an operation to torch."""
        self._append(Extern(target, args, kwargs, outs, is_list), inputs, outs)

    def _append(self, step: Step, inputs: list[Ref], outs: list[Ref]) -> None:
        self.steps.append(step)
        self._note(len(self.steps) - 1, [ref.buffer for ref in inputs])
        for ref in outs:
            ref.buffer.writes.append(len(self.steps) - 1)


def _indices(access: Access) -> list[Access]:
    return [index for index, _, _ in access.indices]


def _accesses(operands: Sequence[Operand]) -> list[Access]:
    """All memory that operands read, indices included."""
    found = [operand for operand in operands if isinstance(operand, Access)]
    return found + [index for access in found for index in _indices(access)]
