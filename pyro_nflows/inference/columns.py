r"""Draws in a file: their columns, and the sites' values without what the flat draws hold already."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..objectives.draws import Draws

#: Of a site: its values, or where the flat draws hold them, and of what shape they are.
Column = Tensor | list[int]


def columns(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """What :class:`~pyro_nflows.objectives.draws.Draws` is made of again."""
    return draws.z, draws.log_p, draws.log_q


def compact(values: Mapping[str, Tensor], z: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Column]:
    """Every site's values; of one that ``z`` holds as they are, only where and of what shape.

    :param values: of the sites, a row a draw, in the order in which ``z`` has them.
    :param z: flat unconstrained draws.
    :param shapes: of the sites' unconstrained values.

    Example::

        >>> z = torch.randn(5, 3)
        >>> values = {"mu": z[:, :2], "sd": z[:, 2].exp()}
        >>> found = compact(values, z, {"mu": [2], "sd": []})
        >>> found["mu"]
        [0, 2]
        >>> all(torch.equal(value, values[name]) for name, value in expanded(found, z).items())
        True
    """
    found, start = dict[str, Column](), 0
    for name, value in values.items():
        size = math.prod(shapes[name])
        held = value.numel() == len(z) * size and torch.equal(value.reshape(len(z), -1), z[:, start : start + size])
        found[name] = [start, *value.shape[1:]] if held else value
        start += size
    return found


def expanded(found: Mapping[str, Column], z: Tensor) -> dict[str, Tensor]:
    """The values that :func:`compact` was given."""
    return {name: value if isinstance(value, Tensor) else _held(z, *value) for name, value in found.items()}


def _held(z: Tensor, start: int, *shape: int) -> Tensor:
    return z[:, start : start + math.prod(shape)].reshape(len(z), *shape)
