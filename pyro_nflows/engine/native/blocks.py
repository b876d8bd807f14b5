r"""Blocks of particles: one after the other, each goes through all steps of a segment in a thread's own memory.

Where matrices are large, a thread's blocks go through each step together instead: each matrix comes from memory once.

The particles are the innermost dimension of most buffers, ``(D, K)``: such a buffer lies in memory block after block,
``(K / B, D, B)``. A loop, or a product, that is cut along the particles then runs over one block as if there were no
others. What sums over all particles goes through the blocks in their order.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

from torch import Tensor

from .plan import Access, Buffer, Loop, Loops, Operand, Product, Ref, Statement, accesses, refs_of
from .segments import Part, Segment
from .shares import divided

#: Bytes of matrices that all particles meet from which on blocks take each step together: each is fetched once then.
MANY_BYTES = 2**24
Dims = Sequence[tuple[int, int]]
Move = Callable[[Access], Access]


class Place(NamedTuple):
    """A matrix as C is given it, and how far apart those of different blocks are."""

    buffer: Buffer
    offset: int
    strides: tuple[int, ...]
    jump: int


class Blocks:
    """How the particles of a program are divided.

    :param plan: the program, in its last order.
    :param segments: the same in segments.
    :param size: :math:`K`.
    :param length: :math:`B`.
    """

    def __init__(self, plan: Loops, segments: Sequence[Segment], size: int, length: int):
        self.size, self.length, self.num = size, length, size // max(1, length)
        #: Buffers that lie in memory block after block.
        self.within = {b for b in plan.buffers if b.constant is None and not b.pinned and b.numel % max(1, size) == 0}
        parts = [part for segment in segments for part in segment.parts]
        while bad := {buffer for part in parts for buffer in self._unfit(part)} & self.within:
            self.within -= bad
        #: Buffers of which each thread has the blocks that it is at in memory of its own.
        num = Counter(buffer for segment in segments for buffer in segment.touched)
        self.own = {buffer for segment in segments for buffer in self._own(segment) if num[buffer] == 1}
        #: Whether a thread takes all of its blocks through a step before the next step, and has memory for all of them.
        self.together = sum(map(self._common, parts)) >= MANY_BYTES

    def _own(self, segment: Segment) -> Iterator[Buffer]:
        for buffer, share in segment.local().items():
            whole = share.period * share.size == buffer.numel * buffer.dtype.itemsize
            if share.size == self.size and not buffer.pinned and (buffer in self.within or whole):
                yield buffer

    def _common(self, part: Part) -> int:
        """Bytes of matrices that each block of a product's particles is multiplied with."""
        if not isinstance(part.step, Product) or not self.cuts(part):
            return 0
        found = zip(_refs(part), self._dimensions(part))
        return sum(ref.meta.numel() * ref.buffer.dtype.itemsize for ref, along in found if along is None)

    def cuts(self, part: Part) -> bool:
        """Whether a step is done block by block."""
        return part.cut is not None and part.cut.size == self.size

    # ---- what can lie block after block -------------------------------------------------------------------------

    def _unfit(self, part: Part) -> Iterator[Buffer]:
        """Buffers of a step that it could not reach if they lay block after block."""
        step = part.step
        if isinstance(step, Loop):
            along = self.along(part)
            for access in _all(step.statements):
                if access.buffer in self.within and not self._fits(access, step.shape, along):
                    yield access.buffer
            return
        for ref, along in zip(_refs(part), self._dimensions(part)):
            dims = [*zip(ref.meta.stride(), ref.meta.shape)]
            if along is None or not self._lies(int(ref.meta.storage_offset()), dims, along % max(1, len(dims))):
                yield ref.buffer

    def along(self, part: Part) -> int | None:
        """The dimension of a loop that is the particles: the one that most of its buffers need."""
        step, cut = part.step, part.cut
        if not isinstance(step, Loop) or self.cuts(part):
            return int(cut.along) if cut is not None else None
        taken = None if cut is None else int(cut.along)
        found = [d for d, n in enumerate(step.shape) if n == self.size and d != taken and not (step.closed and d == 0)]
        inside = [a for a in _all(step.statements) if a.buffer in self.within]
        return max(found, key=lambda d: sum(self._fits(a, step.shape, d) for a in inside), default=None)

    def _fits(self, access: Access, shape: Sequence[int], along: int | None) -> bool:
        dims = [*zip(access.strides, shape), *((stride, size) for _, stride, size in access.indices)]
        return along is not None and self._lies(access.offset, dims, along)

    def _lies(self, offset: int, dims: Dims, along: int) -> bool:
        rest = [stride for d, (stride, size) in enumerate(dims) if d != along and size != 1]
        here = along < len(dims) and dims[along] == (1, self.size)
        return here and offset % self.size == 0 and all(stride % self.size == 0 for stride in rest)

    def _dimensions(self, part: Part) -> list[int | None]:
        """Of each matrix of a step, the dimension that is the particles; None if it has none that is reached so."""
        step = part.step
        refs = _refs(part)
        if self.cuts(part) and part.cut is not None:
            return divided(step, part.cut)
        if isinstance(step, Product) and step.c.meta.dim() == 2 and step.a.meta.shape[1] == self.size:
            return [-1, -2, None]
        return [None] * len(refs)

    # ---- one block, and all of them -----------------------------------------------------------------------------

    def one(self, part: Part) -> Loop:
        """A loop over one block of its particles."""
        step, along = cast(Loop, part.step), cast(int, self.along(part))
        shape = tuple(self.length if d == along else n for d, n in enumerate(step.shape))

        def move(access: Access) -> Access:
            inner = tuple((move(index), self._stride(access, s), n) for index, s, n in access.indices)
            offset, strides, jump = self._moved(access.buffer, access.offset, access.strides, along)
            return Access(access.buffer, offset, strides, inner, jump)

        return _changed(step, shape, move)

    def every(self, part: Part) -> tuple[Loop, int | None]:
        """A loop over all particles, and the dimension along which it is cut, where some buffers lie in blocks."""
        step, along = cast(Loop, part.step), self.along(part)
        cut = None if part.cut is None else int(part.cut.along)
        if along is None or not any(a.buffer in self.within for a in _all(step.statements)):
            return step, cut
        at = int(step.closed)
        rest = tuple(self.length if d == along else n for d, n in enumerate(step.shape))
        shape = (*rest[:at], self.num, *rest[at:])

        def move(access: Access) -> Access:
            inner = tuple((move(index), self._stride(access, s), n) for index, s, n in access.indices)
            offset, strides, jump = self._moved(access.buffer, access.offset, access.strides, along)
            return Access(access.buffer, offset, (*strides[:at], jump, *strides[at:]), inner)

        return _changed(step, shape, move), cut if cut is None else cut + (cut >= at)

    def _stride(self, access: Access, stride: int) -> int:
        return stride // self.size * self.length if access.buffer in self.within else stride

    def _moved(
        self, buffer: Buffer, offset: int, strides: Sequence[int], along: int
    ) -> tuple[int, tuple[int, ...], int]:
        """Where one block's elements are, and how far it is from one block to the next."""
        jump = self.length * strides[along]
        if buffer in self.within:
            strides = [1 if d == along else s // self.size * self.length for d, s in enumerate(strides)]
            offset, jump = offset // self.size * self.length, buffer.numel // self.num
        return offset, tuple(strides), 0 if self._is_alone(buffer) else jump

    def matrices(self, part: Part) -> list[Place]:
        """A step's matrices, of one block where they are divided."""
        refs = _refs(part)
        dims = self._dimensions(part) if self.cuts(part) or self.sums(part) else [None] * len(refs)
        return [self._matrix(ref, along) for ref, along in zip(refs, dims)]

    def _matrix(self, ref: Ref, along: int | None) -> Place:
        meta = _flat(ref.meta)
        offset, strides = int(meta.storage_offset()), tuple(int(s) for s in meta.stride())
        if along is None:
            return Place(ref.buffer, offset, strides, 0)
        return Place(ref.buffer, *self._moved(ref.buffer, offset, strides, along % len(strides)))

    def sums(self, part: Part) -> bool:
        """Whether a product sums over particles that lie in blocks."""
        refs = _refs(part)
        return not self.cuts(part) and any(
            along is not None and ref.buffer in self.within for ref, along in zip(refs, self._dimensions(part))
        )

    def _is_alone(self, buffer: Buffer) -> bool:
        """Whether there is memory for one block, and not for all."""
        return buffer in self.own and not self.together

    def bytes_of(self, buffer: Buffer) -> int:
        """What a buffer takes."""
        return buffer.numel * buffer.dtype.itemsize // (self.num if self._is_alone(buffer) else 1)


def _flat(meta: Tensor) -> Tensor:
    return meta.flatten(0, -3) if meta.dim() > 3 else meta


def _refs(part: Part) -> list[Ref]:
    reads, writes = refs_of(part.step)
    return [*reads, *writes]


def _all(statements: Sequence[Statement]) -> Iterator[Access]:
    for statement in statements:
        yield from accesses([*statement.operands, statement.out])


def _changed(step: Loop, shape: tuple[int, ...], move: Move) -> Loop:
    """A loop with other accesses."""

    def operand(given: Operand) -> Operand:
        return move(given) if isinstance(given, Access) else given

    statements = [
        Statement(s.kind, s.template, [operand(o) for o in s.operands], move(s.out), s.dtype) for s in step.statements
    ]
    return Loop(shape, statements, step.closed)


def plain(part: Part) -> list[Place]:
    """A step's matrices, as they are."""
    metas = [(ref.buffer, _flat(ref.meta)) for ref in _refs(part)]
    return [Place(b, int(meta.storage_offset()), tuple(int(s) for s in meta.stride()), 0) for b, meta in metas]
