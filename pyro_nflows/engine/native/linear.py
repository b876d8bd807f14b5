"""Rules for reductions, products of matrices, and triangular systems."""

import math
from typing import Any

import torch
from torch import Tensor

from ...system.shapes import broadcast_shapes
from .builder import Builder, Meta, known, rule
from .constants import whole
from .plan import LARGE, Ref

#: Multiplications from which a call of torch's own product is worth its way.
MAX_PRODUCT = 4e9
#: A long vector's norm is that of so many pieces, whatever the number of threads.
PIECES = 64


@rule("sum")
def _sum(build: Builder, meta: Meta, x: Ref, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Ref | None:
    if x.meta.dtype != meta[1]:
        if not known(x.meta.dtype, meta[1]):
            return None
        x = build.map("({T}){0}", [x], x.meta.shape, meta[1])
    return build.reduced("sum", x, dims, keepdim) if known(meta[1]) else None


@rule("mean")
def _mean(build: Builder, meta: Meta, x: Ref, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Ref | None:
    if not known(meta[1]) or x.meta.dtype != meta[1]:
        return None
    total = build.reduced("sum", x, dims, keepdim)
    count = x.meta.numel() // max(1, total.meta.numel())
    return build.like(f"{{0}} / {count}", total)


@rule("amax")
def _amax(build: Builder, meta: Meta, x: Ref, dims: Any = (), keepdim: bool = False) -> Ref | None:
    return build.reduced("max", x, dims, keepdim) if meta[1].is_floating_point and known(meta[1]) else None


@rule("amin")
def _amin(build: Builder, meta: Meta, x: Ref, dims: Any = (), keepdim: bool = False) -> Ref | None:
    return build.reduced("min", x, dims, keepdim) if meta[1].is_floating_point and known(meta[1]) else None


@rule("all")
def _all(build: Builder, meta: Meta, x: Ref, dims: Any = None, keepdim: bool = False) -> Ref | None:
    return _counted(build, meta, x, dims, keepdim, "{0} == 0", "{0} == 0")


@rule("any")
def _any(build: Builder, meta: Meta, x: Ref, dims: Any = None, keepdim: bool = False) -> Ref | None:
    return _counted(build, meta, x, dims, keepdim, "{0} != 0", "{0} != 0")


def _counted(build: Builder, meta: Meta, x: Ref, dims: Any, keepdim: bool, what: str, number: str) -> Ref | None:
    """Whether the number of elements of which something is true is what it should be."""
    if meta[1] is not torch.bool or not known(x.meta.dtype):
        return None
    over = [dims] if isinstance(dims, int) else dims
    found = build.map(what, [x], x.meta.shape, torch.bool)
    num = build.reduced("sum", build.map("({T}){0}", [found], x.meta.shape, torch.int64), over, keepdim)
    return build.map(number, [num], num.meta.shape, torch.bool)


@rule("linalg_vector_norm")
def _linalg_vector_norm(
    build: Builder, meta: Meta, x: Ref, order: Any = 2, dims: Any = None, keepdim: bool = False, **_: Any
) -> Any:
    if order != 2 or not known(meta[1]) or x.meta.dtype != meta[1]:
        return None
    if x.meta.numel() >= LARGE and x.meta.dim() == 1 and x.meta.is_contiguous() and x.buffer.home is None:
        return build.like("({T}){sqrt}({0})", _in_pieces(build, x, keepdim))
    return build.like("({T}){sqrt}({0})", build.reduced("sum", x, dims, keepdim, "{0} * {0}"))


def _in_pieces(build: Builder, x: Ref, keepdim: bool) -> Ref:
    """The sum of squares of a long vector that lies in memory: pieces, of which threads may have some each."""
    length = x.meta.numel() // PIECES
    whole = Ref(x.buffer, x.meta[: PIECES * length].view(PIECES, length))
    total = build.reduced("sum", build.reduced("sum", whole, [1], False, "{0} * {0}"), None, keepdim)
    if x.meta.numel() == PIECES * length:
        return total
    rest = build.reduced("sum", Ref(x.buffer, x.meta[PIECES * length :]), None, keepdim, "{0} * {0}")
    return build.like("{0} + {1}", total, rest)


@rule("logsumexp")
def _logsumexp(build: Builder, meta: Meta, x: Ref, dims: Any, keepdim: bool = False) -> Ref | None:
    if not known(meta[1]) or x.meta.dtype != meta[1]:
        return None
    top = build.like("{0} - {0} == 0 ? {0} : 0", build.reduced("max", x, dims, True))
    rest = build.reduced("sum", build.like("{p}exp({0} - {1})", x, top), dims, True)
    out = build.like("{p}log({0}) + {1}", rest, top)
    return out if keepdim else Ref(out.buffer, out.meta.squeeze(tuple(dims)))


@rule("softmax")
def _softmax(build: Builder, meta: Meta, x: Ref, dim: int, half: bool) -> Ref | None:
    if not known(meta[1]) or not x.meta.dim():
        return None
    powers = build.like("{p}exp({0} - {1})", x, build.reduced("max", x, [dim], True))
    return build.like("{0} / {1}", powers, build.reduced("sum", powers, [dim], True))


@rule("log_softmax")
def _log_softmax(build: Builder, meta: Meta, x: Ref, dim: int, half: bool) -> Ref | None:
    if not known(meta[1]) or not x.meta.dim():
        return None
    shifted = build.like("{0} - {1}", x, build.reduced("max", x, [dim], True))
    return build.like(
        "{0} - {p}log({1})", shifted, build.reduced("sum", build.like("{p}exp({0})", shifted), [dim], True)
    )


@rule("softmax_backward_data")
def _softmax_backward_data(build: Builder, meta: Meta, grad: Ref, out: Ref, dim: int, dtype: Any) -> Ref | None:
    if not known(meta[1]) or not out.meta.dim():
        return None
    both = build.like("{0} * {1}", grad, out)
    return build.like("{0} - {1} * {2}", both, out, build.reduced("sum", both, [dim], True))


@rule("log_softmax_backward_data")
def _log_softmax_backward_data(build: Builder, meta: Meta, grad: Ref, out: Ref, dim: int, dtype: Any) -> Ref | None:
    if not known(meta[1]) or not out.meta.dim():
        return None
    return build.like("{0} - {p}exp({1}) * {2}", grad, out, build.reduced("sum", grad, [dim], True))


# ---- products and triangles --------------------------------------------------------------------------------


@rule("mm")
def _mm(build: Builder, meta: Meta, a: Ref, b: Ref) -> Ref | None:
    *batch, m, k = a.meta.shape
    size = math.prod(batch) * m * k * b.meta.shape[-1]
    if not meta[1].is_floating_point or not known(meta[1]) or not 0 < size < MAX_PRODUCT:
        return None
    return build.plan.product(a, _convenient(build, b) if b.meta.dim() == 2 else b)


def _convenient(build: Builder, b: Ref) -> Ref:
    """A constant right factor with the dimension on which the product runs fastest as the innermost."""
    if b.buffer.constant is None or b.buffer.numel != b.meta.numel():
        return b
    k, n = b.meta.shape
    turned, origin = n <= 64 < k, b.buffer.origin

    def made(flat: Tensor) -> Tensor:
        matrix = whole(flat, b.meta)
        return matrix.t().contiguous() if turned else matrix.contiguous()

    factors, key = build.plan.factors, (b.buffer, b.meta.shape, b.meta.stride(), b.meta.storage_offset())
    if key not in factors:
        factors[key] = build.plan.constant(made(b.buffer.constant), origin and (lambda values: made(origin(values))))
    ref = factors[key]
    return Ref(ref.buffer, ref.meta.t()) if turned else ref


@rule("bmm")
def _bmm(build: Builder, meta: Meta, a: Ref, b: Ref) -> Ref | None:
    """One product of matrices, where a batch of vectors meets one matrix."""
    if a.meta.stride(0) == 0 and b.meta.shape[2] == 1:
        flat = _mm(build, meta, Ref(b.buffer, b.meta[:, :, 0]), Ref(a.buffer, a.meta[0].t()))
        return None if flat is None else Ref(flat.buffer, flat.meta.unsqueeze(2))
    if b.meta.stride(0) == 0 and a.meta.shape[1] == 1:
        flat = _mm(build, meta, Ref(a.buffer, a.meta[:, 0]), Ref(b.buffer, b.meta[0]))
        return None if flat is None else Ref(flat.buffer, flat.meta.unsqueeze(1))
    return _mm(build, meta, a, b)


@rule("mv")
def _mv(build: Builder, meta: Meta, a: Ref, b: Ref) -> Ref | None:
    out = _mm(build, meta, a, Ref(b.buffer, b.meta.unsqueeze(-1)))
    return None if out is None else Ref(out.buffer, out.meta.squeeze(-1))


@rule("dot")
def _dot(build: Builder, meta: Meta, a: Ref, b: Ref) -> Ref | None:
    return build.reduced("sum", build.like("{0} * {1}", a, b), None, False) if known(meta[1]) else None


@rule("addmm")
def _addmm(build: Builder, meta: Meta, bias: Ref, a: Ref, b: Ref, beta: Any = 1, alpha: Any = 1) -> Ref | None:
    product = _mm(build, meta, a, b) if beta == 1 and alpha == 1 else None
    return None if product is None else build.map("{0} + {1}", [product, bias], *meta)


@rule("baddbmm")
def _baddbmm(build: Builder, meta: Meta, bias: Ref, a: Ref, b: Ref, beta: Any = 1, alpha: Any = 1) -> Ref | None:
    product = _bmm(build, meta, a, b) if beta == 1 and alpha == 1 else None
    return None if product is None else build.map("{0} + {1}", [product, bias], *meta)


@rule("linalg_solve_triangular")
def _linalg_solve_triangular(
    build: Builder, meta: Meta, a: Ref, b: Ref, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    if not known(meta[1]):
        return None
    batch = broadcast_shapes(a.meta.shape[:-2], b.meta.shape[:-2])
    if left and a.meta.numel() == a.meta.shape[-1] ** 2 and b.meta.shape[-1] == 1 and batch.numel() > 1:
        rows = _as_rows(b.meta[..., 0])
        if rows is not None:  # one triangle, many vectors
            one = Ref(a.buffer, a.meta[(0,) * (a.meta.dim() - 2)])
            out = build.plan.solve(one, Ref(b.buffer, rows.t()), upper, unitriangular)
            return Ref(out.buffer, out.meta.t().unflatten(0, batch).unsqueeze(-1))
    if len(batch) > 1 and a.meta.shape[:-2] != b.meta.shape[:-2]:
        return None
    a, b = (Ref(r.buffer, r.meta.expand(*batch, *r.meta.shape[-2:])) for r in (a, b))
    if left:
        return build.plan.solve(a, b, upper, unitriangular)
    a, b = (Ref(r.buffer, r.meta.transpose(-1, -2)) for r in (a, b))
    out = build.plan.solve(a, b, not upper, unitriangular)
    return Ref(out.buffer, out.meta.transpose(-1, -2))


def _as_rows(x: Tensor) -> Tensor | None:
    """With one dimension in front of the last, where memory allows that without a copy."""
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError:
        return None


@rule("cumsum")
def _cumsum(build: Builder, meta: Meta, x: Ref, dim: int, dtype: Any = None) -> Ref | None:
    if not known(meta[1]) or x.meta.dtype != meta[1]:
        return None
    alone = not x.meta.dim() or x.meta.shape[dim] == 1
    return x if alone else build.plan.running(x, dim % x.meta.dim())


@rule("linalg_cholesky_ex")
def _cholesky(build: Builder, meta: Meta, a: Ref, *, upper: bool = False, **_: Any) -> list[Ref] | None:
    return list(build.plan.cholesky(a)) if known(meta[1]) and not upper else None
