"""Rules for copies, indices and triangles of tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .builder import Builder, Meta, known, rule
from .layout import in_order
from .plan import Access, Ref

_aten = torch.ops.aten


@rule("to_copy")
def _to_copy(build: Builder, meta: Meta, x: Ref, dtype: torch.dtype | None = None, **kwargs: Any) -> Ref | None:
    if meta[1] == x.meta.dtype:
        return x
    fine = known(meta[1], x.meta.dtype)
    return build.map("({T}){0}" if meta[1] is not torch.bool else "{0} != 0", [x], *meta) if fine else None


@rule("bitwise_not")
def _bitwise_not(build: Builder, meta: Meta, x: Ref) -> Ref | None:
    return build.map("{0} == 0" if meta[1] is torch.bool else "~{0}", [x], *meta) if known(meta[1]) else None


@rule("cat")
def _cat(build: Builder, meta: Meta, parts: list[Ref], dim: int = 0) -> Ref | None:
    parts = [p for p in parts if p.meta.numel()]
    out, start = build.plan.room(*meta), 0
    if not known(meta[1]) or not known(*(p.meta.dtype for p in parts)):
        return None
    out.buffer.apart = True
    for part in parts:
        size = part.meta.shape[dim]
        view = Ref(out.buffer, out.meta.narrow(dim, start, size))
        build.plan.store(build.plan.access(part, part.meta.shape), view)
        start += size
    return out


@rule("stack")
def _stack(build: Builder, meta: Meta, parts: list[Ref], dim: int = 0) -> Ref | None:
    return _cat(build, meta, [Ref(p.buffer, p.meta.unsqueeze(dim)) for p in parts], dim)


@rule("slice_backward")
def _slice_backward(
    build: Builder, meta: Meta, grad: Ref, sizes: Any, dim: int, start: int, end: int, step: int
) -> Any:
    return build.placed(meta, grad, lambda m: _aten.slice(m, dim, start, end, step))


@rule("select_backward")
def _select_backward(build: Builder, meta: Meta, grad: Ref, sizes: Any, dim: int, index: int) -> Any:
    return build.placed(meta, grad, lambda m: m.select(dim, index))


@rule("diagonal_backward")
def _diagonal_backward(build: Builder, meta: Meta, grad: Ref, sizes: Any, offset: int, dim1: int, dim2: int) -> Any:
    return build.placed(meta, grad, lambda m: m.diagonal(offset, dim1, dim2))


@rule("diag_embed")
def _diag_embed(build: Builder, meta: Meta, x: Ref, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    return build.placed(meta, x, lambda m: m.diagonal(offset, dim1, dim2))


@rule("constant_pad_nd")
def _constant_pad_nd(build: Builder, meta: Meta, x: Ref, pad: list[int], value: Any = 0) -> Any:
    for i, cut in enumerate(pad):
        if cut < 0:
            dim = -1 - i // 2
            size = x.meta.shape[dim] + cut
            x = Ref(x.buffer, x.meta.narrow(dim, -cut if i % 2 == 0 else 0, size))

    def place(m: Tensor) -> Tensor:
        for i, before in enumerate(pad[::2]):
            m = m.narrow(-1 - i, max(0, before), x.meta.shape[-1 - i])
        return m

    return build.placed(meta, x, place, value)


@rule("flip")
def _flip(build: Builder, meta: Meta, x: Ref, dims: list[int]) -> Ref | None:
    shape, strides = x.meta.shape, list(x.meta.stride())
    offset = int(x.meta.storage_offset())
    for dim in dims:
        offset += (shape[dim] - 1) * strides[dim]
        strides[dim] *= -1
    access = Access(x.buffer, offset, in_order(strides, shape))
    return build.plan.let("{0}", [access], shape, meta[1]) if known(meta[1]) else None


@rule("tril")
def _tril(build: Builder, meta: Meta, x: Ref, diagonal: int = 0) -> Ref | None:
    return _triangle(build, meta, x, diagonal, lower=True)


@rule("triu")
def _triu(build: Builder, meta: Meta, x: Ref, diagonal: int = 0) -> Ref | None:
    return _triangle(build, meta, x, diagonal, lower=False)


def _triangle(build: Builder, meta: Meta, x: Ref, diagonal: int, lower: bool) -> Ref | None:
    ones = torch.ones(x.meta.shape[-2:], dtype=torch.bool)
    mask = build.plan.constant(ones.tril(diagonal) if lower else ones.triu(diagonal))
    return build.map("{1} ? {0} : 0", [x, mask], *meta) if known(meta[1]) else None


# ---- indices ----------------------------------------------------------------------------------------------------


def _indirect(build: Builder, x: Ref, dim: int, index: Ref, shape: Sequence[int], spread: Sequence[int]) -> Access:
    """``x`` at ``index`` along a dimension; ``spread`` are the strides over ``shape`` along the others."""
    at = (build.plan.access(index, shape), int(x.meta.stride(dim)), int(x.meta.shape[dim]))
    return Access(x.buffer, int(x.meta.storage_offset()), in_order(spread, shape), (at,))


def _picked(build: Builder, x: Ref, indices: list[Ref | None], shape: Sequence[int]) -> Access | None:
    """Where ``x[indices]`` lies, for one index tensor of integers, or None."""
    given = [(d, index) for d, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][1].meta.dtype is not torch.int64:
        return None
    dim, index = given[0]
    after = x.meta.dim() - dim - 1
    wide = Ref(index.buffer, index.meta[(..., *(None,) * after)])
    strides = x.meta.stride()
    spread = [*strides[:dim], *(0,) * index.meta.dim(), *strides[dim + 1 :]]
    return _indirect(build, x, dim, wide, shape, spread)


@rule("index")
def _index(build: Builder, meta: Meta, x: Ref, indices: list[Ref | None]) -> Ref | None:
    access = _picked(build, x, indices, meta[0]) if known(meta[1]) else None
    return None if access is None else build.plan.let("{0}", [access], *meta)


@rule("index_select")
def _index_select(build: Builder, meta: Meta, x: Ref, dim: int, index: Ref) -> Ref | None:
    return _index(build, meta, x, [None] * (dim % max(1, x.meta.dim())) + [index]) if x.meta.dim() else None


@rule("index_put")
def _index_put(
    build: Builder, meta: Meta, x: Ref, indices: list[Ref | None], value: Ref, accumulate: bool = False
) -> Any:
    if not accumulate or not known(meta[1]):
        return None
    out = build.plan.ref(*meta)
    index = next(i for i in indices if i is not None)
    dims = [d for d, i in enumerate(indices) if i is not None]
    if len(dims) != 1:
        return None
    shape = [*x.meta.shape[: dims[0]], *index.meta.shape, *x.meta.shape[dims[0] + 1 :]]
    access = _picked(build, out, indices, shape)
    if access is None:
        return None
    build.plan.store(build.plan.access(x, x.meta.shape), out)
    build.plan.scatter(build.plan.access(value, shape), access, shape, meta[1])
    return out


@rule("gather")
def _gather(build: Builder, meta: Meta, x: Ref, dim: int, index: Ref, sparse_grad: bool = False) -> Ref | None:
    if not known(meta[1]) or not x.meta.dim():
        return None
    spread = [0 if d == dim % x.meta.dim() else s for d, s in enumerate(x.meta.stride())]
    return build.plan.let("{0}", [_indirect(build, x, dim, index, index.meta.shape, spread)], *meta)


@rule("scatter_add")
def _scatter_add(build: Builder, meta: Meta, x: Ref, dim: int, index: Ref, value: Ref) -> Ref | None:
    shape = index.meta.shape
    if not known(meta[1]) or not x.meta.dim():
        return None
    out = build.plan.ref(*meta)
    build.plan.store(build.plan.access(x, x.meta.shape), out)
    spread = [0 if d == dim % x.meta.dim() else s for d, s in enumerate(out.meta.stride())]
    part = Ref(value.buffer, value.meta[tuple(slice(0, size) for size in shape)])
    build.plan.scatter(build.plan.access(part, shape), _indirect(build, out, dim, index, shape, spread), shape, meta[1])
    return out


@rule("index_add")
def _index_add(build: Builder, meta: Meta, x: Ref, dim: int, index: Ref, value: Ref, alpha: Any = 1) -> Ref | None:
    if not x.meta.dim() or alpha != 1:
        return None
    dim %= x.meta.dim()
    return _index_put(build, meta, x, [None] * dim + [index], value, accumulate=True)
