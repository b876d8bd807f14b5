"""Flows of images, which are flat vectors ``(..., C H W)``."""

from collections.abc import Sequence

from ..checks import check_sizes
from ..layers import Coupling, Split, Squeeze
from ..layers.base import Chain, Inverse, Layer
from ..transformers import Affine, Transformer
from .vectors import glow_steps


def glow_image(
    shape: tuple[int, int, int],
    num_levels: int = 2,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (32, 32),
    transformer: Transformer = Affine(),
    context_dim: int = 0,
) -> Chain:
    """Glow for images, at several scales: convolutional couplings, 1x1 convolutions, :class:`ActNorm`, and squeezes.

    A level squeezes the image and has ``num_layers`` steps; half of its channels come from the next, smaller level, and
    the others from the base, by a coupling that makes their distribution depend on the first half. It starts at a
    permutation of the coordinates. Points are flat, ``(..., C H W)``.

    Example::

        >>> import torch
        >>> flow = glow_image((1, 8, 8), num_levels=2, num_layers=2)
        >>> images, log_weight = flow(torch.randn(10, 64))
    """
    check_sizes("glow_image", num_levels=num_levels, num_layers=num_layers)
    squeeze = Squeeze(shape)
    small = (squeeze.output_shape[0] // 2, *squeeze.output_shape[1:])
    layers: list[Layer] = []
    options = (num_layers, hidden_dims, transformer, context_dim)
    if num_levels > 1:
        layers = [Split(glow_image(small, num_levels - 1, *options), squeeze.output_dim)]
        layers.append(Coupling(squeeze.output_shape, transformer, hidden_dims=hidden_dims, context_dim=context_dim))
    return Chain(*layers, *glow_steps(squeeze.output_shape, *options), Inverse(squeeze))
