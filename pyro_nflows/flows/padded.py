"""Sequences of different lengths, padded at their end, as values of a flow."""

from typing import cast

import torch
from torch import Tensor

from ..layers.base import Layer


def inside(layer: Layer) -> Tensor | None:
    """Which coordinates of a flow's flat points count, ``(..., T D)``; None if it is not told of lengths.

    :raises ValueError: if a part of it would move what is behind the end of a sequence.

    Example::

        >>> from pyro_nflows import flows
        >>> inside(flows.up_to(flows.wavenet((3, 1), num_layers=1), torch.tensor([2, 3])))
        tensor([[ True,  True, False],
                [ True,  True,  True]])
    """
    told = [part for part in layer.modules() if part._buffers.get("lengths") is not None]
    if not told:
        return None
    knowing = {id(inner) for part in layer.modules() if "lengths" in part._buffers for inner in part.modules()}
    for part in layer.modules():
        if isinstance(part, Layer) and id(part) not in knowing and not _holds_layers(part):
            raise ValueError(
                f"{type(layer).__name__}: its {type(part).__name__} knows no lengths, and would move what is behind "
                "the end of a sequence; make the flow of layers over positions only"
            )
    lengths, num_positions = cast(Tensor, told[0].lengths), cast(int, told[0].num_positions)
    each = torch.arange(num_positions, device=lengths.device) < lengths[..., None]
    return each.repeat_interleave(layer.input_dim // num_positions, -1)


def _holds_layers(layer: Layer) -> bool:
    return any(isinstance(part, Layer) for part in layer.modules() if part is not layer)
