"""Flows of one size: the baseline of a comparison, made as wide as the other side is large."""

from collections.abc import Callable

from torch import nn

from ..checks import check_functions, check_sizes
from ..layers.base import Layer

#: A baseline wider than this is a mistake.
WIDEST = 4096


def num_params(layer: nn.Module) -> int:
    """Trainable numbers of a flow.

    :param layer: a layer, or any other torch module.
    :raises TypeError: if it is none.

    Example::

        >>> from pyro_nflows.layers import LocScale
        >>> num_params(LocScale(3))
        6
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"num_params: expected layer to be a layer or another torch module, got {layer!r}")
    return sum(p.numel() for p in layer.parameters() if p.requires_grad)


def widened(build: Callable[[int], Layer], at_least: int, step: int = 1) -> Layer:
    """The narrowest flow of a family with no fewer parameters than another: an equal-parameter baseline.

    :param build: the width of the networks to a flow.
    :param at_least: parameters of the other flow; see :func:`num_params`.
    :param step: widths that are tried are multiples of it.
    :raises ValueError: if a size is not a positive integer, or networks of 4,096 units have too few parameters still.

    Example::

        >>> from pyro_nflows import flows
        >>> cif = flows.cif(2)
        >>> baseline = widened(lambda width: flows.realnvp(2, hidden_dims=(width, width)), num_params(cif))
        >>> num_params(baseline) >= num_params(cif) > num_params(flows.realnvp(2))
        True
    """
    check_sizes("widened", at_least=at_least, step=step)
    check_functions("widened", build=build)
    for width in range(step, WIDEST + 1, step):
        layer = build(width)
        if num_params(layer) >= at_least:
            return layer
    raise ValueError(
        f"widened: expected build(width) to reach {at_least} parameters, got {num_params(layer)} at width {width}; "
        "use the width in build"
    )
