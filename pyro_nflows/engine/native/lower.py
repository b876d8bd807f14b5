r"""From a recording to a :class:`~.plan.Plan`: which operation becomes which loop."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..tape import Call, Tape, _is_value, Value
from .ops import NEED_FLOAT, expression, literal
from .plan import C_TYPES, Access, Operand, Plan, Ref, order_of

_aten = torch.ops.aten
#: Whose result is its argument; what lies where in memory is ours to say.
_SAME = {_aten.clone.default, _aten.contiguous.default, _aten.detach.default, _aten.alias.default, _aten.lift_fresh.default}
#: Views whose schema does not say so.
_VIEWS = {_aten._unsafe_view.default, _aten._reshape_alias.default}
#: Multiplications and additions from which a call of torch's matrix product is worth its way.
MAX_PRODUCT = 4e9


class Lowering:
    """Reads a tape's calls in order into a plan.

    :param tape: a recording without changes in place.
    """

    def __init__(self, tape: Tape):
        self.plan = Plan()
        self.refs: dict[int, Ref] = {}
        for number, (shape, dtype) in enumerate(tape.inputs):
            self.refs[number] = self.plan.ref(shape, dtype, pinned=True)
        self.inputs = [self.refs[i] for i in range(tape.num_inputs)]
        for number, tensor in tape.constants.items():
            self.refs[number] = self.plan.constant(tensor)
        for call in tape.calls:
            self._call(call, tape)
        self.results = [self._whole(self.refs[number]) for number in tape.results]
        for ref in self.results:
            ref.buffer.pinned = True

    def _call(self, call: Call, tape: Tape) -> None:
        args, kwargs = tree_map(lambda a: self.refs[a.number] if isinstance(a, Value) else a, (call.args, call.kwargs), is_leaf=_is_value)
        metas = [tape.metas.get(number) for number in call.results]
        results = self._lower(call, args, kwargs, metas)
        for number, ref in zip(call.results, results):
            if ref is not None:
                self.refs[number] = ref

    def _lower(self, call: Call, args: Any, kwargs: Any, metas: list[Any]) -> list[Ref | None]:
        target = call.target
        if target in _SAME:
            return [args[0]]
        if _is_view(target):
            views = self._view(target, args, kwargs)
            return views if isinstance(views, list) else [views]
        name = target._schema.name.split("::")[1]
        if name == "linalg_cholesky_ex" and metas[0][1] in C_TYPES and not kwargs.get("upper") and len(args) < 2:
            return list(self.plan.cholesky(args[0]))
        special = getattr(self, f"_{name.strip('_')}_op", None)
        if special is not None and not call.is_list:
            result = special(metas[0], *args, **kwargs)
            if result is not None:
                return [result]
        if not call.is_list and metas[0] is not None:
            found = self._elementwise(name, args, kwargs, *metas[0])
            if found is not None:
                return [found]
        return self._extern(call, args, kwargs, metas)

    # ---- building blocks ------------------------------------------------------------------------------------

    def _view(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A view of a buffer, or of a copy where our layout does not allow it."""
        ref = args[0]
        rest = tree_map(lambda a: a.meta if isinstance(a, Ref) else a, (args[1:], kwargs), is_leaf=_is_ref)
        try:
            made = target(ref.meta, *rest[0], **rest[1])
        except RuntimeError:
            ref = self._packed(ref)
            made = target(ref.meta, *rest[0], **rest[1])
        return [Ref(ref.buffer, m) for m in made] if isinstance(made, list | tuple) else Ref(ref.buffer, made)

    def _packed(self, ref: Ref) -> Ref:
        """A contiguous copy."""
        out = self.plan.ref(ref.meta.shape, ref.meta.dtype)
        self.plan.store(self.plan.access(ref, ref.meta.shape), out)
        return out

    def _whole(self, ref: Ref) -> Ref:
        """A tensor that has its buffer for itself."""
        own = ref.meta.is_contiguous() and ref.buffer.numel == max(1, ref.meta.numel())
        return ref if own and ref.buffer.constant is None and ref.buffer.writes else self._packed(ref)

    def _operand(self, value: Any, shape: Sequence[int]) -> Operand:
        return self.plan.access(value, shape) if isinstance(value, Ref) else literal(value)

    def _map(self, template: str, args: Sequence[Any], shape: Sequence[int], dtype: torch.dtype) -> Ref:
        return self.plan.let(template, [self._operand(a, shape) for a in args], shape, dtype)

    def _like(self, template: str, *args: Any) -> Ref:
        """An elementwise result with the arguments' common shape and the first one's type."""
        shape = torch.broadcast_shapes(*(a.meta.shape for a in args if isinstance(a, Ref)))
        return self._map(template, args, shape, args[0].meta.dtype)

    def _filled(self, shape: Sequence[int], dtype: torch.dtype, value: Any = 0) -> Ref:
        out = self.plan.room(shape, dtype)
        self.plan.store(literal(value), out)
        return out

    def _elementwise(self, name: str, args: Any, kwargs: Any, shape: Any, dtype: torch.dtype) -> Ref | None:
        found = expression(name, args, kwargs)
        if found is None or dtype not in C_TYPES:
            return None
        template, values = found
        refs = [a for a in values if isinstance(a, Ref)]
        if any(ref.meta.dtype not in C_TYPES for ref in refs) or not all(_is_plain(a) for a in values):
            return None
        if any(mark in template for mark in NEED_FLOAT) and not dtype.is_floating_point:
            return None
        return self._map(template, values, shape, dtype)

    def _extern(self, call: Call, args: Any, kwargs: Any, metas: list[Any]) -> list[Ref | None]:
        inputs: list[Ref] = []
        tree_map(lambda a: inputs.append(a) if isinstance(a, Ref) else None, (args, kwargs), is_leaf=_is_ref)
        outs = [self.plan.ref(*meta) for meta in metas if meta is not None]
        if len(outs) != len(metas):
            raise NotImplementedError(f"{call.target} returns something other than tensors")
        self.plan.extern(call.target, args, kwargs, inputs, outs, call.is_list)
        return list(outs)

    # ---- copies ---------------------------------------------------------------------------------------------

    def _to_copy_op(self, meta: Any, x: Ref, dtype: torch.dtype | None = None, **kwargs: Any) -> Ref | None:
        if meta[1] == x.meta.dtype:
            return x
        known = meta[1] in C_TYPES and x.meta.dtype in C_TYPES
        return self._map("({T}){0}" if meta[1] is not torch.bool else "{0} != 0", [x], *meta) if known else None

    def _cat_op(self, meta: Any, parts: list[Ref], dim: int = 0) -> Ref | None:
        parts = [p for p in parts if p.meta.numel()]
        out, start = self.plan.room(*meta), 0
        if meta[1] not in C_TYPES or any(p.meta.dtype not in C_TYPES for p in parts):
            return None
        for part in parts:
            size = part.meta.shape[dim]
            view = Ref(out.buffer, out.meta.narrow(dim, start, size))
            self.plan.store(self.plan.access(part, part.meta.shape), view)
            start += size
        return out

    def _stack_op(self, meta: Any, parts: list[Ref], dim: int = 0) -> Ref | None:
        return self._cat_op(meta, [Ref(p.buffer, p.meta.unsqueeze(dim)) for p in parts], dim)

    def _placed(self, meta: Any, part: Ref, place: Callable[[Tensor], Tensor], fill: Any = 0) -> Ref | None:
        """Zeros but for a view, which takes ``part``."""
        if meta[1] not in C_TYPES:
            return None
        out = self._filled(*meta, fill)
        self.plan.store(self.plan.access(part, part.meta.shape), Ref(out.buffer, place(out.meta)))
        return out

    def _slice_backward_op(self, meta: Any, grad: Ref, sizes: Any, dim: int, start: int, end: int, step: int) -> Any:
        return self._placed(meta, grad, lambda m: _aten.slice(m, dim, start, end, step))

    def _select_backward_op(self, meta: Any, grad: Ref, sizes: Any, dim: int, index: int) -> Any:
        return self._placed(meta, grad, lambda m: m.select(dim, index))

    def _diagonal_backward_op(self, meta: Any, grad: Ref, sizes: Any, offset: int, dim1: int, dim2: int) -> Any:
        return self._placed(meta, grad, lambda m: m.diagonal(offset, dim1, dim2))

    def _diag_embed_op(self, meta: Any, x: Ref, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
        return self._placed(meta, x, lambda m: m.diagonal(offset, dim1, dim2))

    def _constant_pad_nd_op(self, meta: Any, x: Ref, pad: list[int], value: Any = 0) -> Any:
        for i, cut in enumerate(pad):
            if cut < 0:
                dim = -1 - i // 2
                size = x.meta.shape[dim] + cut
                x = Ref(x.buffer, x.meta.narrow(dim, -cut if i % 2 == 0 else 0, size))

        def place(m: Tensor) -> Tensor:
            for i, before in enumerate(pad[::2]):
                m = m.narrow(-1 - i, max(0, before), x.meta.shape[-1 - i])
            return m

        return self._placed(meta, x, place, value)

    def _flip_op(self, meta: Any, x: Ref, dims: list[int]) -> Ref | None:
        shape, strides = x.meta.shape, list(x.meta.stride())
        offset = int(x.meta.storage_offset())
        for dim in dims:
            offset += (shape[dim] - 1) * strides[dim]
            strides[dim] *= -1
        access = Access(x.buffer, offset, tuple(strides[d] for d in order_of(shape)))
        return self.plan.let("{0}", [access], shape, meta[1]) if meta[1] in C_TYPES else None

    def _tril_op(self, meta: Any, x: Ref, diagonal: int = 0) -> Ref | None:
        return self._triangle(meta, x, diagonal, lower=True)

    def _triu_op(self, meta: Any, x: Ref, diagonal: int = 0) -> Ref | None:
        return self._triangle(meta, x, diagonal, lower=False)

    def _triangle(self, meta: Any, x: Ref, diagonal: int, lower: bool) -> Ref | None:
        ones = torch.ones(x.meta.shape[-2:], dtype=torch.bool)
        mask = self.plan.constant(ones.tril(diagonal) if lower else ones.triu(diagonal))
        return self._map("{1} ? {0} : 0", [x, mask], *meta) if meta[1] in C_TYPES else None

    # ---- indices --------------------------------------------------------------------------------------------

    def _indirect(self, x: Ref, dim: int, index: Ref, shape: Sequence[int], spread: Sequence[int]) -> Access:
        """``x`` at ``index`` along a dimension; ``spread`` are the strides over ``shape`` along the others."""
        order = order_of(shape)
        at = (self.plan.access(index, shape), int(x.meta.stride(dim)), int(x.meta.shape[dim]))
        return Access(x.buffer, int(x.meta.storage_offset()), tuple(spread[d] for d in order), (at,))

    def _picked(self, x: Ref, indices: list[Ref | None], shape: Sequence[int]) -> Access | None:
        """Where ``x[indices]`` lies, for one index tensor of integers, or None."""
        dims = [d for d, index in enumerate(indices) if index is not None]
        if len(dims) != 1 or indices[dims[0]].meta.dtype is not torch.int64:  # type: ignore[union-attr]
            return None
        (dim,), index = dims, indices[dims[0]]
        assert index is not None
        after = x.meta.dim() - dim - 1
        wide = Ref(index.buffer, index.meta[(..., *(None,) * after)])
        strides = x.meta.stride()
        spread = [*strides[:dim], *(0,) * index.meta.dim(), *strides[dim + 1 :]]
        return self._indirect(x, dim, wide, shape, spread)

    def _index_op(self, meta: Any, x: Ref, indices: list[Ref | None]) -> Ref | None:
        access = self._picked(x, indices, meta[0]) if meta[1] in C_TYPES else None
        return None if access is None else self.plan.let("{0}", [access], *meta)

    def _index_select_op(self, meta: Any, x: Ref, dim: int, index: Ref) -> Ref | None:
        return self._index_op(meta, x, [None] * (dim % max(1, x.meta.dim())) + [index]) if x.meta.dim() else None

    def _index_put_op(self, meta: Any, x: Ref, indices: list[Ref | None], value: Ref, accumulate: bool = False) -> Any:
        if not accumulate or meta[1] not in C_TYPES:
            return None
        out = self.plan.ref(*meta)
        index = next(i for i in indices if i is not None)
        dims = [d for d, i in enumerate(indices) if i is not None]
        if len(dims) != 1:
            return None
        shape = [*x.meta.shape[: dims[0]], *index.meta.shape, *x.meta.shape[dims[0] + 1 :]]
        access = self._picked(out, indices, shape)
        if access is None:
            return None
        self.plan.store(self.plan.access(x, x.meta.shape), out)
        self.plan.scatter(self.plan.access(value, shape), access, shape, meta[1])
        return out

    def _gather_op(self, meta: Any, x: Ref, dim: int, index: Ref, sparse_grad: bool = False) -> Ref | None:
        if meta[1] not in C_TYPES or not x.meta.dim():
            return None
        spread = [0 if d == dim % x.meta.dim() else s for d, s in enumerate(x.meta.stride())]
        return self.plan.let("{0}", [self._indirect(x, dim, index, index.meta.shape, spread)], *meta)

    def _scatter_add_op(self, meta: Any, x: Ref, dim: int, index: Ref, value: Ref) -> Ref | None:
        shape = index.meta.shape
        if meta[1] not in C_TYPES or not x.meta.dim():
            return None
        out = self.plan.ref(*meta)
        self.plan.store(self.plan.access(x, x.meta.shape), out)
        spread = [0 if d == dim % x.meta.dim() else s for d, s in enumerate(out.meta.stride())]
        part = Ref(value.buffer, value.meta[tuple(slice(0, size) for size in shape)])
        self.plan.scatter(self.plan.access(part, shape), self._indirect(out, dim, index, shape, spread), shape, meta[1])
        return out

    # ---- reductions -----------------------------------------------------------------------------------------

    def _reduced(self, kind: str, x: Ref, dims: Any, keepdim: bool, template: str = "{0}") -> Ref:
        rank = x.meta.dim()
        over = sorted({d % rank for d in dims}) if dims else list(range(rank))
        out = self.plan.reduce(kind, template, x, over, x.meta.dtype)
        return out if keepdim else Ref(out.buffer, out.meta.squeeze(tuple(over)))

    def _sum_op(self, meta: Any, x: Ref, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Ref | None:
        if x.meta.dtype != meta[1]:
            if x.meta.dtype not in C_TYPES or meta[1] not in C_TYPES:
                return None
            x = self._map("({T}){0}", [x], x.meta.shape, meta[1])
        return self._reduced("sum", x, dims, keepdim) if meta[1] in C_TYPES else None

    def _mean_op(self, meta: Any, x: Ref, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Ref | None:
        if meta[1] not in C_TYPES or x.meta.dtype != meta[1]:
            return None
        total = self._reduced("sum", x, dims, keepdim)
        count = x.meta.numel() // max(1, total.meta.numel())
        return self._like(f"{{0}} / {count}", total)

    def _amax_op(self, meta: Any, x: Ref, dims: Any = (), keepdim: bool = False) -> Ref | None:
        return self._reduced("max", x, dims, keepdim) if meta[1].is_floating_point and meta[1] in C_TYPES else None

    def _amin_op(self, meta: Any, x: Ref, dims: Any = (), keepdim: bool = False) -> Ref | None:
        return self._reduced("min", x, dims, keepdim) if meta[1].is_floating_point and meta[1] in C_TYPES else None

    def _linalg_vector_norm_op(self, meta: Any, x: Ref, order: Any = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
        if order != 2 or meta[1] not in C_TYPES or x.meta.dtype != meta[1]:
            return None
        return self._like("({T}){sqrt}({0})", self._reduced("sum", x, dims, keepdim, "{0} * {0}"))

    def _logsumexp_op(self, meta: Any, x: Ref, dims: Any, keepdim: bool = False) -> Ref | None:
        if meta[1] not in C_TYPES or x.meta.dtype != meta[1]:
            return None
        top = self._like("{0} - {0} == 0 ? {0} : 0", self._reduced("max", x, dims, True))
        rest = self._reduced("sum", self._like("{p}exp({0} - {1})", x, top), dims, True)
        out = self._like("{p}log({0}) + {1}", rest, top)
        return out if keepdim else Ref(out.buffer, out.meta.squeeze(tuple(dims)))

    def _softmax_op(self, meta: Any, x: Ref, dim: int, half: bool) -> Ref | None:
        if meta[1] not in C_TYPES or not x.meta.dim():
            return None
        powers = self._like("{p}exp({0} - {1})", x, self._reduced("max", x, [dim], True))
        return self._like("{0} / {1}", powers, self._reduced("sum", powers, [dim], True))

    def _log_softmax_op(self, meta: Any, x: Ref, dim: int, half: bool) -> Ref | None:
        if meta[1] not in C_TYPES or not x.meta.dim():
            return None
        shifted = self._like("{0} - {1}", x, self._reduced("max", x, [dim], True))
        return self._like("{0} - {p}log({1})", shifted, self._reduced("sum", self._like("{p}exp({0})", shifted), [dim], True))

    def _softmax_backward_data_op(self, meta: Any, grad: Ref, out: Ref, dim: int, dtype: Any) -> Ref | None:
        if meta[1] not in C_TYPES or not out.meta.dim():
            return None
        both = self._like("{0} * {1}", grad, out)
        return self._like("{0} - {1} * {2}", both, out, self._reduced("sum", both, [dim], True))

    def _log_softmax_backward_data_op(self, meta: Any, grad: Ref, out: Ref, dim: int, dtype: Any) -> Ref | None:
        if meta[1] not in C_TYPES or not out.meta.dim():
            return None
        return self._like("{0} - {p}exp({1}) * {2}", grad, out, self._reduced("sum", grad, [dim], True))

    # ---- matrix products ------------------------------------------------------------------------------------

    def _mm_op(self, meta: Any, a: Ref, b: Ref) -> Ref | None:
        *batch, m, k = a.meta.shape
        size = math.prod(batch) * m * k * b.meta.shape[-1]
        if not meta[1].is_floating_point or meta[1] not in C_TYPES or not 0 < size < MAX_PRODUCT:
            return None
        return self.plan.product(a, self._convenient(b) if b.meta.dim() == 2 else b)

    def _convenient(self, b: Ref) -> Ref:
        """A constant right factor with the dimension on which the product runs fastest as the innermost."""
        if b.buffer.constant is None or b.buffer.numel != b.meta.numel():
            return b
        k, n = b.meta.shape
        whole = b.buffer.constant.reshape(-1).as_strided(b.meta.shape, b.meta.stride(), int(b.meta.storage_offset()))
        if n <= 64 < k:
            ref = self.plan.constant(whole.t().contiguous())
            return Ref(ref.buffer, ref.meta.t())
        return self.plan.constant(whole.contiguous())

    def _bmm_op(self, meta: Any, a: Ref, b: Ref) -> Ref | None:
        """One product of matrices, where a batch of vectors meets one matrix."""
        if a.meta.stride(0) == 0 and b.meta.shape[2] == 1:
            flat = self._mm_op(meta, Ref(b.buffer, b.meta[:, :, 0]), Ref(a.buffer, a.meta[0].t()))
            return None if flat is None else Ref(flat.buffer, flat.meta.unsqueeze(2))
        if b.meta.stride(0) == 0 and a.meta.shape[1] == 1:
            flat = self._mm_op(meta, Ref(a.buffer, a.meta[:, 0]), Ref(b.buffer, b.meta[0]))
            return None if flat is None else Ref(flat.buffer, flat.meta.unsqueeze(1))
        return self._mm_op(meta, a, b)

    def _mv_op(self, meta: Any, a: Ref, b: Ref) -> Ref | None:
        out = self._mm_op(meta, a, Ref(b.buffer, b.meta.unsqueeze(-1)))
        return None if out is None else Ref(out.buffer, out.meta.squeeze(-1))

    def _dot_op(self, meta: Any, a: Ref, b: Ref) -> Ref | None:
        return self._reduced("sum", self._like("{0} * {1}", a, b), None, False) if meta[1] in C_TYPES else None

    def _addmm_op(self, meta: Any, bias: Ref, a: Ref, b: Ref, beta: Any = 1, alpha: Any = 1) -> Ref | None:
        product = self._mm_op(meta, a, b) if beta == 1 and alpha == 1 else None
        return None if product is None else self._map("{0} + {1}", [product, bias], *meta)

    def _baddbmm_op(self, meta: Any, bias: Ref, a: Ref, b: Ref, beta: Any = 1, alpha: Any = 1) -> Ref | None:
        product = self._bmm_op(meta, a, b) if beta == 1 and alpha == 1 else None
        return None if product is None else self._map("{0} + {1}", [product, bias], *meta)

    # ---- triangles ------------------------------------------------------------------------------------------

    def _linalg_solve_triangular_op(self, meta: Any, a: Ref, b: Ref, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
        if meta[1] not in C_TYPES:
            return None
        if left and a.meta.dim() == 2 and b.meta.dim() == 3 and b.meta.shape[2] == 1:  # one triangle, many vectors
            out = self.plan.solve(a, Ref(b.buffer, b.meta[..., 0].t()), upper, unitriangular)
            return Ref(out.buffer, out.meta.t().unsqueeze(2))
        if a.meta.shape[:-2] != b.meta.shape[:-2]:
            return None
        if left:
            return self.plan.solve(a, b, upper, unitriangular)
        a, b = (Ref(r.buffer, r.meta.transpose(-1, -2)) for r in (a, b))
        out = self.plan.solve(a, b, not upper, unitriangular)
        return Ref(out.buffer, out.meta.transpose(-1, -2))

    def _cumsum_op(self, meta: Any, x: Ref, dim: int, dtype: Any = None) -> Ref | None:
        if meta[1] not in C_TYPES or x.meta.dtype != meta[1]:
            return None
        alone = not x.meta.dim() or x.meta.shape[dim] == 1
        return x if alone else self.plan.running(x, dim % x.meta.dim())


def _is_ref(leaf: Any) -> bool:
    return isinstance(leaf, Ref)


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, Value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Ref | int | float)


def _is_view(target: Any) -> bool:
    returns = target._schema.returns
    named = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
    return named or target in _VIEWS
