"""Flows of images, which are flat vectors ``(..., C H W)``."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from ..checks import check_functions, check_sizes
from ..layers import ActNorm, Coupling, Indexed, LogDet, Residual, Split, Squeeze
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

    :param shape: an image's ``(C, H, W)``; ``H`` and ``W`` are halved ``num_levels`` times.
    :param num_levels: how many scales.

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


def residual_image(
    shape: tuple[int, int, int],
    num_levels: int = 2,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (32, 32),
    lipschitz: float = 0.9,
    log_det: LogDet | str = LogDet.ROULETTE,
    context_dim: int = 0,
    *,
    num_terms: int = 4,
    inverted: bool = False,
) -> Chain:
    """A residual flow of images, at several scales: convolutional residual layers, :class:`ActNorm`, and squeezes.

    A level squeezes the image and has ``num_layers`` layers; all of its channels go on to the next, smaller level. It
    starts at a permutation of the coordinates. Points are flat, ``(..., C H W)``.

    :param shape: an image's ``(C, H, W)``; ``H`` and ``W`` are halved ``num_levels`` times.
    :param num_levels: how many scales.
    :param lipschitz: bound of each contraction's Lipschitz constant, in (0, 1).
    :param log_det: :class:`~pyro_nflows.layers.LogDet` or its value. Log-determinants of images are dear: by default
        they are right on average, for training; give a flow with ``log_det="exact"`` its state to weigh or to test.
    :param num_terms: of their series, that are always taken.
    :param inverted: turn each layer around, so that densities are one pass: the way to train on data.

    Example::

        >>> import torch
        >>> flow = residual_image((1, 8, 8), num_levels=2, num_layers=1, inverted=True)
        >>> images, noise = torch.randn(10, 64), torch.randn(10, flow.inverse_noise_dim)
        >>> x, log_weight = flow.inverse(images, noise)
    """
    check_sizes("residual_image", num_levels=num_levels, num_layers=num_layers)
    squeeze = Squeeze(shape)
    image = squeeze.output_shape
    options: dict[str, Any] = {"lipschitz": lipschitz, "log_det": log_det, "num_terms": num_terms}
    layers: list[Layer] = []
    if num_levels > 1:
        deeper = (num_levels - 1, num_layers, hidden_dims, lipschitz, log_det, context_dim)
        layers.extend(residual_image(image, *deeper, num_terms=num_terms, inverted=inverted))
    for _ in range(num_layers):
        layer = Residual(image, hidden_dims=hidden_dims, context_dim=context_dim, **options)
        layers += [Inverse(layer) if inverted else layer, ActNorm(image)]
    return Chain(*layers, Inverse(squeeze))


def cif_image(
    shape: tuple[int, int, int],
    inner: Callable[[tuple[int, int, int]], Layer] = glow_image,
    index_channels: int = 1,
    hidden_dims: Sequence[int] = (16,),
    transformer: Transformer | None = None,
    *,
    skip: bool = True,
) -> Layer:
    """Each coupling or residual layer of a flow of images continuously indexed, by an image of indices.

    The index of a layer has ``index_channels`` channels and the size of what the layer moves, and its networks are
    convolutional: parameters do not grow with the number of pixels. ``flow.initialize(batch)`` starts them from data,
    as for :func:`~pyro_nflows.flows.cif`.

    :param shape: an image's ``(C, H, W)``.
    :param inner: the shape to a flow, such as :func:`glow_image` and :func:`residual_image`.
    :param index_channels: channels of each index.
    :param hidden_dims: channels of the networks' hidden layers.
    :param transformer: makes the indices' distributions other than Gaussian; see
        :class:`~pyro_nflows.layers.Indexed`.
    :param skip: whether networks have a linear part, from which an index starts on data.
    :raises ValueError: if the flow has no layer of images to index.

    Example::

        >>> flow = cif_image((1, 4, 4), lambda shape: glow_image(shape, 1, 2, (8,)))
        >>> flow.exactness.name, flow.noise_dim
        ('PROPER', 8)
    """
    check_sizes("cif_image", index_channels=index_channels)
    check_functions("cif_image", inner=inner)
    options = {"hidden_dims": hidden_dims, "transformer": transformer, "skip": skip}
    flow = inner(shape)
    indexed = _indexed(flow, index_channels, options)
    if not any(isinstance(part, Indexed) for part in indexed.modules()):
        raise ValueError(
            f"cif_image: expected a flow with couplings or residual layers of images, got {type(flow).__name__}; "
            "for vectors, use cif"
        )
    return indexed


def _indexed(layer: Layer, index_channels: int, options: dict[str, Any]) -> Layer:
    """The layer with all layers of images in it indexed."""
    if isinstance(layer, Chain):
        return Chain(*(_indexed(part, index_channels, options) for part in layer))
    if isinstance(layer, Split):
        return Split(_indexed(layer.layer, index_channels, options), layer.input_dim)
    moved = layer.layer if isinstance(layer, Inverse) else layer
    shape = moved.shape if isinstance(moved, Coupling | Residual) else None
    if shape is None:
        return layer
    return Indexed(layer, index_channels, shape=cast(tuple[int, int, int], shape), **options)
