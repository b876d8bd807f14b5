"""A guide's flow over rows of a plate, with the density of each row by itself."""

from typing import NamedTuple

from torch import Tensor

from ..layers import PlateAffine, PlateCoupling, PlateFlow, PlateShear
from ..numerics import standard_normal_log_prob
from .upweighted import stages
from .whitened import Whitened


class ByRow(NamedTuple):
    """Draws ``(..., dim)`` with log densities: of what is outside of plates ``(...)``, and of each block's rows."""

    z: Tensor
    outside: Tensor
    rows: list[Tensor]


def draw_by_row(layer: Whitened, x: Tensor, noise: Tensor | None = None) -> ByRow:
    """Draws of a flow that follows plates, from points of its base.

    Example::

        >>> import torch
        >>> from pyro_nflows.flows import on_plates
        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> rows = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((3,), {"groups": 0})})
        >>> layer, x = Whitened(on_plates(rows), PlateAffine(rows)), torch.randn(5, 4)
        >>> draws = draw_by_row(layer, x)
        >>> log_q = standard_normal_log_prob(x) - layer(x)[1]
        >>> torch.allclose(draws.outside + draws.rows[0].sum(-1), log_q)
        True
    """
    end = layer.end
    if not isinstance(end, PlateAffine):
        raise TypeError(f"draw_by_row: expected a flow that follows plates, got one that ends in {type(end).__name__}")
    top, *parts = end.hierarchy.split(x)
    outside = standard_normal_log_prob(top)
    rows = [standard_normal_log_prob(part) for part in parts]
    for stage in stages(layer):
        if isinstance(stage, PlateAffine | PlateCoupling | PlateFlow | PlateShear):
            x, taken = stage.by_row(x)
            rows = [row - log_weight for row, log_weight in zip(rows, taken)]
        else:
            x, log_weight = stage(x, noise if stage.noise_dim else None)
            outside = outside - log_weight
    return ByRow(x, outside - end.log_scale[end.hierarchy.top].sum(), rows)
