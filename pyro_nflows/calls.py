"""What layers are made and called with: sizes and shapes, checked, and points spread over the rows of a context."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .nets import check_sizes

#: A dimension, or the shape ``(C, H, W)`` of an image, whose coordinates are in that order.
Size = int | tuple[int, int, int]


def channels(name: str, size: Size) -> tuple[int, int]:
    """Number of channels, and of coordinates in each: for a plain dimension, each coordinate is a channel.

    :raises ValueError: if it is neither a positive integer nor three of them.

    Example::

        >>> channels("ActNorm", 6), channels("ActNorm", (3, 4, 4))
        ((6, 1), (3, 16))
        >>> channels("ActNorm", (3, 4))
        Traceback (most recent call last):
        ValueError: ActNorm: expected the shape (C, H, W) of an image, three positive integers, got (3, 4)
    """
    if not isinstance(size, tuple | list):
        check_sizes(name, input_dim=size)
        return size, 1
    num_channels, height, width = image_shape(name, size)
    return num_channels, height * width


def image_shape(name: str, shape: Any) -> tuple[int, int, int]:
    """The shape of an image, checked.

    :raises ValueError: if it is not three positive integers.
    """
    sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{name}: expected the shape (C, H, W) of an image, three positive integers, got {shape}")
    return sizes


def checked(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's ``forward`` or ``inverse`` with its arguments' shapes checked."""
    point = "x" if name == "forward" else "y"

    @functools.wraps(method)
    def wrapped(self: Any, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        dim = self.input_dim if name == "forward" else self.output_dim
        noise_dim = self.noise_dim if name == "forward" else self.inverse_noise_dim
        if x.shape[-1:] != (dim,):
            raise ValueError(
                f"{type(self).__name__}.{name}: expected {point} of shape (..., {dim}), got {tuple(x.shape)}"
            )
        if self.batch_shape:
            x, noise = _spread(self, name, x, noise)
        if noise is None and noise_dim and name == "inverse":
            noise = torch.randn(*x.shape[:-1], noise_dim, dtype=x.dtype, device=x.device)
        if noise_dim and (noise is None or noise.shape[-1] != noise_dim):
            got = "None" if noise is None else tuple(noise.shape)
            raise ValueError(
                f"{type(self).__name__}.{name}: expected noise of shape (..., {noise_dim}), got {got}; "
                f"pass torch.randn(*{point}.shape[:-1], {noise_dim})"
            )
        return method(self, x, noise) if noise_dim else method(self, x)

    return wrapped


def _spread(layer: Any, name: str, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A point and its noise in the batch that they and the layer's context have together."""
    try:
        batch_shape = torch.broadcast_shapes(x.shape[:-1], layer.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"{type(layer).__name__}.{name}: got a point of batch shape {tuple(x.shape[:-1])}, which does not "
            f"broadcast with the context's, {tuple(layer.batch_shape)}"
        ) from None
    spread = x.expand(*batch_shape, -1)
    return spread, noise if noise is None else noise.expand(*batch_shape, -1)
