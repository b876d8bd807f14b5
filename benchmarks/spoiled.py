"""Trained guides made bad: widths, places, and what rows know of the rest."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_nflows import AutoFlow
from pyro_nflows.flows.whitened import Whitened
from pyro_nflows.layers import PlateAffine
from pyro_nflows.nets.table import Table

#: Changes a layer of a guide in place.
Spoil = Callable[[AutoFlow, Whitened], None]


def scaled(number: int, factor: float) -> Spoil:
    """The width of one latent outside of plates."""

    def spoil(guide: AutoFlow, layer: Whitened) -> None:
        layer.end.log_scale[_outside(layer)[number]] += math.log(factor)

    return spoil


def rows_scaled(names: Sequence[str], factor: float) -> Spoil:
    """The widths of all rows of some sites."""

    def spoil(guide: AutoFlow, layer: Whitened) -> None:
        for name in names:
            layer.end.log_scale[guide.latents.sites[name].columns] += math.log(factor)

    return spoil


def one_row(name: str, row: int, shift: float, factor: float) -> Spoil:
    """A row's place, in its standard deviations, and its width."""

    def spoil(guide: AutoFlow, layer: Whitened) -> None:
        column, end = guide.latents.sites[name].columns.start + row, layer.end
        end.loc[column] += shift * end.log_scale[column].exp()
        end.log_scale[column] += math.log(factor)

    return spoil


def moved(shift: float) -> Spoil:
    """Where what is outside of plates is, by a part of its standard deviations."""

    def spoil(guide: AutoFlow, layer: Whitened) -> None:
        columns = _outside(layer)
        layer.end.loc[columns] += shift * layer.end.log_scale[columns].exp()

    return spoil


def cut(guide: AutoFlow, layer: Whitened) -> None:
    """Rows that do not follow what is outside of their plate."""
    for part in layer.modules():
        if isinstance(part, Table) and part.reads_above:
            for parameter in part.parameters():
                parameter.zero_()


def _outside(layer: Whitened) -> Tensor:
    return layer.end.hierarchy.top if isinstance(layer.end, PlateAffine) else torch.arange(len(layer.end.loc))


def idle(guide: AutoFlow) -> AutoFlow:
    """A guide whose encoder tells rows nothing of their data."""
    return _with_head(guide, lambda head: head.weight.zero_())


def confused(guide: AutoFlow) -> AutoFlow:
    """A guide whose encoder takes half of what its data say."""
    return _with_head(guide, lambda head: head.weight.mul_(0.5))


def _with_head(guide: AutoFlow, change: Callable[[Any], Any]) -> AutoFlow:
    new: Any = copy.deepcopy(guide)
    with torch.no_grad():
        for part in new.amortizer.blocks.values():
            change(part.head)
    return new


class Blind(nn.Module):
    """An encoder that does not look."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.ones(4))

    def forward(self, y: Tensor) -> Tensor:
        """The same for all rows."""
        return self.features.expand(len(y), -1)


class _DataScaled(Messenger):
    """Multiplies the log density of what is observed."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["scale"] = self.scale * msg["scale"]


def with_data_scaled(model: Callable[..., Any], scale: float) -> Callable[..., Any]:
    """A model whose log likelihood is multiplied by a number."""

    def scaled_model(*args: Any) -> Any:
        with _DataScaled(scale):
            return model(*args)

    return scaled_model
