"""Flows of sequences and of images cut into patches: autoregressive over positions, in both directions in turn.

Points are flat: ``(..., T D)``, a position's coordinates side by side, or ``(..., C H W)``.
:class:`~pyro_nflows.FlowDistribution` takes ``event_shape=(T, D)``.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..checks import check_sizes, check_widths, image_shape
from ..layers import Autoregressive, Permutation, SequenceAutoregressive
from ..layers.base import Chain, Inverse, Layer
from ..nets import CausalConvNet, CausalNet, CausalTransformer
from ..transformers import Affine, Transformer


def wavenet(
    size: int | tuple[int, int],
    num_layers: int = 2,
    width: int = 16,
    dilations: Sequence[int] = (1, 2, 4),
    transformer: Transformer = Affine(),
    context_dim: int = 0,
    *,
    per_position: bool | None = None,
    inverted: bool = False,
) -> Chain:
    """Autoregressive over positions, by gated dilated convolutions that read some positions before each.

    Layers read from the first position to the last and from the last to the first in turn. A draw is one pass, and the
    density of a given point goes position by position: the direction for guides, whose latents are in order of time.
    ``inverted`` turns each layer around: the direction to train on data. Its draws go position by position, at a
    cost of one step of each layer; after some 2,000 positions that loop is compiled, and takes a tenth of the time or
    less. What is compiled differs by rounding.

    :param size: positions and coordinates of each, ``(T, D)``; a plain number of positions is ``(T, 1)``, and its
        positions differ, as those of a guide do.
    :param num_layers: how many layers, each with a network of its own.
    :param width: channels of the networks.
    :param dilations: one for each layer of a network, which reads 1 plus their sum positions before its own; those
        that are not less than ``T`` are left out. Dilations up to 64 suit long series; in guides, path gradients cost a
        pass back for each position that is read.
    :param transformer: what each coordinate goes through. Splines are the identity beyond their bound: for data, put an
        affine layer at their end, ``Chain(*wavenet(size, 1, transformer=splines, inverted=True),
        *wavenet(size, 1, inverted=True))``, so that the splines see each position in its own units, given the past.
    :param context_dim: numbers in the context of a position, of which ``flow.at`` takes all, ``(..., T context_dim)``.
    :param per_position: whether networks have biases for each position; without, all positions are alike.

    Example::

        >>> len(wavenet(50, num_layers=2))
        2
        >>> type(wavenet((50, 2), num_layers=2, inverted=True)[0]).__name__
        'Inverse'
    """
    check_sizes("wavenet", num_layers=num_layers)
    check_widths("wavenet", dilations, what="dilations")
    num_positions, dim, differ = _positions("wavenet", size)
    used = [dilation for dilation in dilations if dilation < num_positions] or [1]
    net = functools.partial(
        CausalConvNet, width=width, dilations=used, per_position=differ if per_position is None else per_position
    )
    return Chain(*_in_turn((num_positions, dim), num_layers, net, transformer, context_dim, inverted))


def tarflow(
    size: int | tuple[int, int] | tuple[int, int, int],
    num_layers: int = 4,
    width: int = 32,
    num_blocks: int = 2,
    num_heads: int = 2,
    transformer: Transformer = Affine(),
    context_dim: int = 0,
    *,
    patch: int | tuple[int, int] = 1,
    per_position: bool = True,
    inverted: bool = False,
) -> Chain:
    """Autoregressive over positions or patches by causal transformers (TarFlow), in both directions in turn.

    As :func:`wavenet`, but each network reads all positions before its own, at a cost that grows with their square.

    :param size: positions and coordinates, ``(T, D)``, a number of positions, or an image's ``(C, H, W)``.
    :param num_layers: how many layers, each with a transformer of its own.
    :param width: of the transformers, a multiple of ``2 num_heads``.
    :param num_blocks: blocks of each.
    :param num_heads: of attention.
    :param context_dim: numbers in the context of a patch, of which ``flow.at`` takes all.
    :param patch: how many positions, or rows and columns of an image, are one position of the networks.
    :param per_position: whether networks have biases for each position; without, all positions are alike.
    :param inverted: the direction to train on data: densities are one pass, draws go position by position.
    :raises ValueError: if the sequence, or the image, is no whole number of patches.

    Example::

        >>> flow = tarflow((1, 8, 8), num_layers=2, patch=(4, 4), inverted=True)
        >>> images, log_weight = flow(torch.randn(3, 64))
    """
    check_sizes("tarflow", num_layers=num_layers)
    order: Tensor | None = None
    if isinstance(size, tuple) and len(size) == 3:
        num_positions, dim, order = _patches(size, patch)
    else:
        num_positions, dim, _ = _positions("tarflow", size)
        if not isinstance(patch, int) or patch < 1 or num_positions % patch:
            raise ValueError(f"tarflow: patch must be a number that divides the {num_positions} positions, got {patch}")
        num_positions, dim = num_positions // patch, dim * patch
    net = functools.partial(
        CausalTransformer, width=width, num_blocks=num_blocks, num_heads=num_heads, per_position=per_position
    )
    layers = _in_turn((num_positions, dim), num_layers, net, transformer, context_dim, inverted)
    return Chain(*layers) if order is None else Chain(Permutation(order), *layers, Permutation(order.argsort()))


def _in_turn(
    size: tuple[int, int],
    num_layers: int,
    net: Callable[..., CausalNet],
    transformer: Transformer,
    context_dim: int,
    inverted: bool,
) -> list[Layer]:
    """Layers over positions that read forwards and backwards in turn; of one position, over its coordinates."""
    make: Callable[..., Layer] = functools.partial(SequenceAutoregressive, size, transformer, net=net)
    if size[0] == 1:
        make = functools.partial(Autoregressive, size[1], transformer)
    layers = [make(reverse=bool(i % 2), context_dim=context_dim) for i in range(num_layers)]
    return [Inverse(layer) for layer in layers] if inverted else layers


def _positions(name: str, size: object) -> tuple[int, int, bool]:
    """Positions, coordinates, and whether they were given as a plain number."""
    sizes = (size, 1) if isinstance(size, int) else size
    if not (isinstance(sizes, tuple) and len(sizes) == 2):
        raise ValueError(f"{name}: expected a number of positions, or positions and coordinates (T, D), got {size}")
    check_sizes(name, num_positions=sizes[0], coordinates=sizes[1])
    return sizes[0], sizes[1], isinstance(size, int)


def _patches(size: tuple[int, int, int], patch: int | tuple[int, int]) -> tuple[int, int, Tensor]:
    """Of an image: how many patches, their coordinates, and the order that puts those of each patch side by side."""
    num_channels, height, width = image_shape("tarflow", size)
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    check_sizes("tarflow", patch_rows=rows, patch_columns=columns)
    if height % rows or width % columns:
        raise ValueError(f"tarflow: an image of {height} x {width} is no whole number of patches of {rows} x {columns}")
    pixels = torch.arange(num_channels * height * width).reshape(size)
    cut = pixels.unflatten(1, (-1, rows)).unflatten(3, (-1, columns)).permute(1, 3, 0, 2, 4)
    order = cut.reshape(-1)
    return (height // rows) * (width // columns), num_channels * rows * columns, order
