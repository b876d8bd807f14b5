r"""What rules are made of: elementwise results, copies and reductions on a plan."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...system.shapes import broadcast_shapes
from .ops import literal
from .plan import C_TYPES, Loops, Operand, Ref

#: A rule turns an operation, given its result's shape and type and its arguments, into steps; None if it cannot.
Rule = Callable[..., "Ref | list[Ref] | None"]
R = TypeVar("R", bound=Rule)
#: Rules by the name of the operation, without its overload.
RULES: dict[str, Rule] = {}
Meta = tuple[Sequence[int], torch.dtype]


def rule(*names: str) -> Callable[[R], R]:
    """Register a rule for operations."""

    def register(made: R) -> R:
        RULES.update(dict.fromkeys(names, made))
        return made

    return register


def known(*dtypes: torch.dtype) -> bool:
    """Whether generated code computes with all of these types."""
    return all(dtype in C_TYPES for dtype in dtypes)


class Builder:
    """Builds a plan from recorded operations."""

    def __init__(self) -> None:
        self.plan = Loops()

    def operand(self, value: Any, shape: Sequence[int]) -> Operand:
        """A tensor, broadcast, or a number, as a statement takes it."""
        return self.plan.access(value, shape) if isinstance(value, Ref) else literal(value)

    def map(self, template: str, args: Sequence[Any], shape: Sequence[int], dtype: torch.dtype) -> Ref:
        """An elementwise result."""
        return self.plan.let(template, [self.operand(a, shape) for a in args], shape, dtype)

    def like(self, template: str, *args: Any) -> Ref:
        """An elementwise result with the arguments' common shape and the first one's type."""
        shape = broadcast_shapes(*(a.meta.shape for a in args if isinstance(a, Ref)))
        return self.map(template, args, shape, args[0].meta.dtype)

    def filled(self, shape: Sequence[int], dtype: torch.dtype, value: Any = 0) -> Ref:
        """The same number everywhere."""
        out = self.plan.room(shape, dtype)
        self.plan.store(literal(value), out)
        return out

    def packed(self, ref: Ref) -> Ref:
        """A contiguous copy."""
        out = self.plan.ref(ref.meta.shape, ref.meta.dtype)
        self.plan.store(self.plan.access(ref, ref.meta.shape), out)
        return out

    def placed(self, meta: Meta, part: Ref, place: Callable[[Tensor], Tensor], fill: Any = 0) -> Ref | None:
        """One number everywhere but in a view, which takes ``part``."""
        if not known(meta[1], part.meta.dtype):
            return None
        out = self.filled(*meta, fill)
        self.plan.store(self.plan.access(part, part.meta.shape), Ref(out.buffer, place(out.meta)))
        return out

    def reduced(self, kind: str, x: Ref, dims: Any, keepdim: bool, template: str = "{0}") -> Ref:
        """A sum, or the greatest or least, over some dimensions or all."""
        rank = x.meta.dim()
        over = sorted({d % rank for d in dims}) if dims else list(range(rank))
        out = self.plan.reduce(kind, template, x, over, x.meta.dtype)
        return out if keepdim else Ref(out.buffer, out.meta.squeeze(tuple(over)))
