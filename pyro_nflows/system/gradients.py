"""Products with Jacobians, without what torch imports for them.

At the first gradient that torch is given weights for, it imports a library of symbolic algebra, which takes a third of
a second: as long as some fits. The gradient of one number needs no weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

#: How torch runs a graph backward; it is no public function, and may be gone.
_engine_run_backward: Any = getattr(torch.autograd.graph, "_engine_run_backward", None)


def pullback(function: Callable[..., Any], *points: Tensor) -> tuple[Any, Callable[..., tuple[Tensor, ...]]]:
    """A function's value, and the map from a gradient there to the gradients at ``points``.

    :raises NotImplementedError: in a trace of ``torch.jit``, which would keep the gradients as constants.

    Example::

        >>> value, pull = pullback(torch.square, torch.tensor(3.0))
        >>> value.item(), pull(torch.tensor(1.0))
        (9.0, (tensor(6.0000),))
    """
    if torch.jit.is_tracing():
        raise NotImplementedError("torch.jit cannot trace gradients within what it traces")
    try:
        leaves = [point.detach().requires_grad_() for point in points]
    except RuntimeError:  # inside a torch.func transform, where only torch.func may differentiate
        value, pull, *_ = torch.func.vjp(function, *points)
        return value, pull
    with torch.enable_grad():
        value = function(*leaves)

    def pull_plainly(cotangent: Any) -> tuple[Tensor, ...]:
        pairs = [(v, c) for v, c in zip(tree_leaves(value), tree_leaves(cotangent)) if v.requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        given: Any = tuple(zip(*pairs))
        if not any(map(torch._C._functorch.is_functorch_wrapped_tensor, (*given[0], *given[1]))):
            with torch.enable_grad():
                given = _Weighted.apply(len(pairs), *given[0], *given[1]), None
        outputs, costs = given
        return torch.autograd.grad(outputs, leaves, costs, retain_graph=True, allow_unused=True, materialize_grads=True)

    return value, pull_plainly


def pulled(outputs: Tensor, inputs: Tensor, rows: Tensor) -> Tensor:
    """Rows times a Jacobian that torch has a graph of: in one batch, where every operation has a rule for that.

    Example::

        >>> x = torch.ones(2, requires_grad=True)
        >>> pulled(x * x, x, torch.eye(2))
        tensor([[2., 0.],
                [0., 2.]])
    """
    with torch.enable_grad():
        try:
            return torch.vmap(lambda row: _row(outputs, inputs, row))(rows)
        except (RuntimeError, TypeError):
            return torch.stack(
                [torch.autograd.grad((outputs * row).sum(), inputs, retain_graph=True)[0] for row in rows]
            )


def _row(outputs: Tensor, inputs: Tensor, row: Tensor) -> Tensor:
    """What ``torch.autograd.grad`` gives, without its way of checking weights, for which it imports that library."""
    if _engine_run_backward is None:
        return torch.autograd.grad(outputs, inputs, row, retain_graph=True)[0]
    (found,) = _engine_run_backward(
        (outputs,), (row,), True, False, (inputs,), allow_unreachable=False, accumulate_grad=False
    )
    return found


class _Weighted(torch.autograd.Function):
    """A number whose gradients, in some tensors, are the weights given with them."""

    @staticmethod
    def forward(ctx: Any, num: int, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts[num:])
        return parts[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weights = ctx.saved_tensors
        return None, *weights, *(None for _ in weights)
