"""Sequences of different lengths in one batch: how a layer is told where each of them ends.

Shorter sequences are padded at their end. A layer over positions says that it can be told (:func:`take_lengths`);
:func:`up_to` then gives a view of a whole flow in which every such layer has the lengths, as
:func:`~pyro_nflows.nets.context.bind` does for contexts.
"""

import functools
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from ..system.shapes import broadcast_shapes
from .views import told

_M = TypeVar("_M", bound=nn.Module)


def take_lengths(module: nn.Module, num_positions: int) -> None:
    """Declare that a module is over so many positions, and can be told how many of them count."""
    module.num_positions = num_positions  # type: ignore[assignment]
    module.register_buffer("lengths", None, persistent=False)


def up_to(module: _M, lengths: Tensor) -> _M:
    """A view of a module, of the same parameters, for sequences that end where ``lengths`` says.

    What is behind a sequence's end is left as it is, and read by nothing.

    :param lengths: whole numbers from 1 to the number of positions, of the shape of the batch.
    :raises ValueError: if a length is not such a number, or no part of the module is over positions.

    Example::

        >>> from pyro_nflows import flows
        >>> flow = up_to(flows.wavenet((5, 1), num_layers=1), torch.tensor([2, 5]))
        >>> flow(torch.randn(2, 5))[1].shape
        torch.Size([2])
    """
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"up_to: expected lengths that are whole numbers (torch.long), got {lengths.dtype}")
    view = told(
        module,
        "lengths",
        lengths,
        functools.partial(_batch_shape, lengths=lengths),
        functools.partial(_check, lengths=lengths),
    )
    if view is module:
        raise ValueError(
            f"{type(module).__name__} has no part that is over positions, so lengths mean nothing to it; "
            "make the flow by flows.wavenet or flows.tarflow"
        )
    return view


def _check(module: nn.Module, lengths: Tensor) -> None:
    most = cast(int, module.num_positions)
    if not ((lengths >= 1) & (lengths <= most)).all():
        raise ValueError(
            f"{type(module).__name__}: expected lengths from 1 to {most}, "
            f"got {int(lengths.min())} to {int(lengths.max())}"
        )


def _batch_shape(module: nn.Module, lengths: Tensor) -> torch.Size:
    """Of a flow that may be bound to a context already."""
    return broadcast_shapes(getattr(module, "batch_shape", ()), lengths.shape)
