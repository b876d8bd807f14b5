r"""From a recording to a :class:`~.plan.Loops`: which operation becomes which loop."""

from operator import itemgetter
from typing import Any

import torch
from torch.utils._pytree import tree_map

from ...system.recorder import Call, Value, is_value
from ..tape import Tape
from . import copies, linear  # noqa: F401  (their rules register themselves)
from .builder import RULES, Builder, known
from .few_written import of_few_numbers
from .idle import write_once
from .layout import as_they_come
from .ops import NEED_FLOAT, expression
from .parts import put_together
from .plan import Ref

_aten = torch.ops.aten
#: Operations that return their argument: no-ops here, since the plan decides the memory layout.
_SAME = {
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.detach.default,
    _aten.alias.default,
    _aten.lift_fresh.default,
}
#: Views whose schema does not say so.
_VIEWS = {_aten._unsafe_view.default, _aten._reshape_alias.default}


class Lowering(Builder):
    """Reads a tape's calls in order into a plan.

    :param tape: a recording without changes in place.
    """

    def __init__(self, tape: Tape):
        super().__init__()
        tape, self._apart = of_few_numbers(tape)
        self.refs: dict[int, Ref] = {}
        for number, (shape, dtype) in enumerate(tape.inputs):
            self.refs[number] = self.plan.ref(shape, dtype, pinned=True)
        self.inputs = [self.refs[i] for i in range(tape.num_inputs)]
        of_data = tape.of_data
        for number, tensor in tape.constants.items():
            self.refs[number] = self.plan.constant(tensor, itemgetter(number) if number in of_data else None)
        for call in tape.calls:
            with as_they_come(not self._apart.isdisjoint(call.results)):
                self._call(call, tape)
        self.results = [self._whole(self.refs[number]) for number in tape.results]
        for ref in self.results:
            ref.buffer.pinned = True
        put_together(self.plan)
        write_once(self.plan)

    def _call(self, call: Call, tape: Tape) -> None:
        apart = not self._apart.isdisjoint(call.results) and not _is_view(call.target)

        def given(leaf: Any) -> Any:
            ref = self.refs[leaf.number] if isinstance(leaf, Value) else leaf
            return self._near(ref) if apart and isinstance(leaf, Value) else ref

        args, kwargs = tree_map(given, (call.args, call.kwargs), is_leaf=is_value)
        metas = [tape.metas.get(number) for number in call.results]
        results = self._lower(call, args, kwargs, metas)
        if results is None:
            results = self._extern(call, tape, metas)
        for number, ref in zip(call.results, results):
            if ref is not None:
                self.refs[number] = ref

    def _lower(self, call: Call, args: Any, kwargs: Any, metas: list[Any]) -> list[Ref | None] | None:
        target = call.target
        if target in _SAME:
            return [args[0]]
        if _is_view(target):
            views = self._view(target, args, kwargs)
            return views if isinstance(views, list) else [views]
        name = target._schema.name.split("::")[1]
        if name.strip("_") in RULES:
            made = RULES[name.strip("_")](self, metas[0], *args, **kwargs)
            if made is not None:
                return [*made] if isinstance(made, list) else [made]
        if not call.is_list and metas[0] is not None:
            found = self._elementwise(name, args, kwargs, *metas[0])
            if found is not None:
                return [found]
        return None

    def _view(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A view of a buffer, or of a copy where our layout does not allow it."""
        ref = args[0]
        rest = tree_map(lambda a: a.meta if isinstance(a, Ref) else a, (args[1:], kwargs), is_leaf=_is_ref)
        try:
            made = target(ref.meta, *rest[0], **rest[1])
        except RuntimeError:
            ref = self.packed(ref)
            made = target(ref.meta, *rest[0], **rest[1])
        return [Ref(ref.buffer, m) for m in made] if isinstance(made, list | tuple) else Ref(ref.buffer, made)

    def _near(self, ref: Ref) -> Ref:
        """A tensor whose last dimension lies in one piece."""
        far = ref.meta.dim() and ref.meta.stride(-1) > 1 and ref.meta.shape[-1] > 1
        return self.packed(ref) if far else ref

    def _whole(self, ref: Ref) -> Ref:
        """A tensor that has its buffer for itself."""
        own = ref.meta.is_contiguous() and ref.buffer.numel == max(1, ref.meta.numel())
        return ref if own and ref.buffer.constant is None and ref.buffer.writes else self.packed(ref)

    def _elementwise(self, name: str, args: Any, kwargs: Any, shape: Any, dtype: torch.dtype) -> Ref | None:
        found = expression(name, args, kwargs)
        if found is None or not known(dtype):
            return None
        template, values = found
        refs = [a for a in values if isinstance(a, Ref)]
        if not known(*(ref.meta.dtype for ref in refs)) or not all(_is_plain(a) for a in values):
            return None
        if any(mark in template for mark in NEED_FLOAT) and not dtype.is_floating_point:
            return None
        return self.map(template, values, shape, dtype)

    def _extern(self, call: Call, tape: Tape, metas: list[Any]) -> list[Ref | None]:
        inputs: list[Ref] = []

        def laid(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            inputs.append(self._laid(self.refs[leaf.number], tape.strides[leaf.number]))
            return inputs[-1]

        args, kwargs = tree_map(laid, (call.args, call.kwargs), is_leaf=is_value)
        outs = [self.plan.ref(*meta) for meta in metas if meta is not None]
        if len(outs) != len(metas):
            raise NotImplementedError(f"{call.target} returns something other than tensors")
        self.plan.extern(call.target, args, kwargs, inputs, outs, call.is_list)
        return list(outs)

    def _laid(self, ref: Ref, strides: tuple[int, ...]) -> Ref:
        """A tensor in memory in the order in which it was recorded: what ``slogdet`` factors depends on that."""
        order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
        meta = ref.meta.permute(order)
        if meta.is_contiguous() or 0 in meta.stride() or not known(meta.dtype):
            return ref
        packed = self.packed(Ref(ref.buffer, meta))
        return Ref(packed.buffer, packed.meta.permute(sorted(range(len(order)), key=order.__getitem__)))


def _is_ref(leaf: Any) -> bool:
    return isinstance(leaf, Ref)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Ref | int | float)


def _is_view(target: Any) -> bool:
    returns = target._schema.returns
    named = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
    return named or target in _VIEWS
