"""Plain values in a guide's state, which holds tensors only."""

import json
from typing import Any

import torch
from torch import Tensor


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
