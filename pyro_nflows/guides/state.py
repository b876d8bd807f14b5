"""Plain values in a guide's state, which holds tensors only."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..model.latents import Latents


def encoded(**values: Any) -> Tensor:
    """Plain values as bytes in a tensor, so that a state dict holds tensors only.

    Example::

        >>> decoded(encoded(modes=None))
        {'modes': None}
    """
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def decoded(state: Tensor) -> dict[str, Any]:
    """What :func:`encoded` was given."""
    return dict(json.loads(bytes(state.tolist()).decode()))


def listed(centering: Any, latents: Latents | None) -> Any:
    """A guide's centering as plain values: that of its sites, as far as they are known, or else what was asked for."""
    if latents is not None and centering != "auto" and centering is not None:
        centering = latents.centering
    if not isinstance(centering, Mapping):
        return centering
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in centering.items()}


def unlisted(centering: Any) -> Any:
    """What :func:`listed` was given.

    Example::

        >>> unlisted(listed({"z": torch.tensor([0.0, 1.0])}, None))
        {'z': tensor([0., 1.])}
    """
    if not isinstance(centering, Mapping):
        return centering
    return {name: torch.tensor(value) for name, value in centering.items()}
