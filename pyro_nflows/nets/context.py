r"""Contexts: what a conditional flow is told beside the point.

A part of a layer that takes a context (a network that reads it beside its input, or a
:class:`~pyro_nflows.layers.Conditional` layer) says so with :func:`take_context`. :func:`bind` then gives a *view* of
the whole: the same parameters under the same names, with the context in every part that takes one. Nothing is changed
in the module itself, so one module can be bound to many contexts at once.
"""

import functools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .views import told

_M = TypeVar("_M", bound=nn.Module)


def take_context(module: nn.Module, context_dim: int) -> None:
    """Declare that a module takes a context of that size; 0 for none.

    :raises ValueError: if ``context_dim`` is not an integer, or negative.
    """
    if isinstance(context_dim, bool) or not isinstance(context_dim, int) or context_dim < 0:
        raise ValueError(f"{type(module).__name__}: context_dim must be 0 or a positive integer, got {context_dim!r}")
    module.context_dim = context_dim  # type: ignore[assignment]
    if context_dim:
        module.register_buffer("context", None, persistent=False)


def context_of(module: nn.Module) -> Tensor:
    """The context that a module is bound to.

    :raises ValueError: if there is none yet.
    """
    context = module._buffers["context"]
    if context is None:
        raise ValueError(
            f"{type(module).__name__}: expected a context of shape (..., {module.context_dim}), got none; "
            "use layer.at(context)"
        )
    return context


def join_context(module: nn.Module, x: Tensor) -> Tensor:
    """``x`` with the module's context, if it takes one, behind the last coordinate."""
    if not module.context_dim:
        return x
    return torch.cat([x, context_of(module).expand(*x.shape[:-1], -1)], -1)


def bind(module: _M, context: Tensor) -> _M:
    """A view of a module, of the same parameters, in which every part that takes a context has this one.

    :param context: ``(..., context_dim)``; its leading dimensions become the view's ``batch_shape``. Integers, such
        as labels, become the parameters' dtype.
    :raises TypeError: if it is no tensor.
    :raises ValueError: if no part takes a context, or one takes a context of another size.

    Example::

        >>> from pyro_nflows.nets import MLP
        >>> net = MLP(2, 3, (8,), context_dim=4)
        >>> bind(net, torch.randn(5, 4))(torch.randn(5, 2)).shape
        torch.Size([5, 3])
    """
    context = _as_numbers(module, context)
    check = functools.partial(_check, context=context)
    view = told(module, "context", context, lambda _: context.shape[:-1], check)
    if view is module:
        raise ValueError(
            f"{type(module).__name__} takes no context; make its networks with context_dim=, or wrap it: "
            f"Conditional({type(module).__name__}(...), context_dim)"
        )
    return view


def _as_numbers(module: nn.Module, context: Any) -> Tensor:
    if not isinstance(context, Tensor):
        name, kind = type(module).__name__, type(context).__name__
        raise TypeError(f"{name}: expected a context that is a tensor, got {kind}; torch.as_tensor(it)")
    like = next(module.parameters(), None)
    is_whole = not (context.is_floating_point() or context.is_complex())
    return context.to(like.dtype) if is_whole and like is not None else context


def _check(module: nn.Module, context: Tensor) -> None:
    if context.shape[-1:] != torch.Size([module.context_dim]):  # type: ignore[list-item]
        raise ValueError(
            f"{type(module).__name__}: expected a context of shape (..., {module.context_dim}), "
            f"got {tuple(context.shape)}"
        )


def flat_context(module: _M, batch_shape: torch.Size) -> _M:
    """The module for rows in one batch: its context, if it takes one, expanded to a batch and flattened."""
    if not module.context_dim:
        return module
    context = context_of(module)
    return bind(module, context.expand(*batch_shape, -1).reshape(-1, context.shape[-1]))


class Methods(nn.Module):
    """Any method of a module as another one's ``forward``, which is what ``functional_call`` calls.

    :param layer: the module, whose parameters are then named ``layer...``.

    Example::

        >>> from pyro_nflows.layers import LocScale
        >>> y, log_weight = Methods(LocScale(2))("inverse", torch.ones(2))
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, method: str, *args: Any) -> Any:
        return getattr(self.layer, method)(*args)
