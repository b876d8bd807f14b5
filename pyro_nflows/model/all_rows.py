"""The latents of a model whose plates are subsampled: all rows, and those of one run.

A run of such a model has some rows of a plate only, other ones each time. A guide is over all of them:
:func:`all_rows` makes its latents from those of one run, and :func:`on_rows` makes those that a run with given rows
has.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistribution
from torch import Tensor

from . import supports
from .latents import Latent, Latents, OneRun


class OtherRows(ExpandedDistribution):
    """A site's distribution in one run, in the shape that it has with another number of rows.

    Its support is that of one run, and it cannot be drawn from.

    :param base_dist: the distribution in one run.
    :param batch_shape: with the other number of rows.
    """

    def __init__(self, base_dist: Any, batch_shape: torch.Size):
        self.base_dist = base_dist
        TorchDistribution.__init__(self, batch_shape, base_dist.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OtherRows":
        return OtherRows(self.base_dist, torch.Size(batch_shape))


def all_rows(latents: Latents) -> Latents:
    """The latents of all rows, from those of one run; the same where no latent is in a subsampled plate.

    Where a support in such a plate has bounds, which may be the row's own, values are found by running the model, as
    where it moves.
    """
    chosen, moving = dict[str, Tensor](), set(latents.moving)
    for name, latent in latents.sites.items():
        for frame in latent.plates:
            if frame.name in latent.subsampled:
                chosen[frame.name] = torch.arange(frame.full_size) % frame.size
        if latent.subsampled and supports.has_bounds(latent.site["fn"]):
            moving.add(name)
    if not chosen:
        return latents
    taken = torch.cat(
        [columns(at.shape, at.axes, chosen, at.columns.start).reshape(-1) for at in latents.sites.values()]
    )
    return Latents(latents.owner, _taken(latents, chosen), frozenset(moving), latents.filled, OneRun(latents, taken))


def on_rows(latents: Latents, chosen: Mapping[str, Tensor]) -> Latents:
    """The latents that a run with given rows has, from those of all rows.

    :param chosen: the rows' numbers, by plate; other plates have all of theirs.
    """
    one_run = latents.one_run
    if one_run is not None:
        one_run = one_run._replace(columns=one_run.columns[_columns(latents, chosen)])
    return replace(latents, sites=_taken(latents, chosen), one_run=one_run)


def _columns(latents: Latents, chosen: Mapping[str, Tensor]) -> Tensor:
    """Where a flat vector holds chosen rows."""
    sites = latents.sites.values()
    return torch.cat([columns(at.shape, at.axes, chosen, at.columns.start).reshape(-1) for at in sites])


def _taken(latents: Latents, chosen: Mapping[str, Tensor]) -> dict[str, Latent]:
    """Sites with the rows that are taken of plates, in vectors of their own."""
    sites, start = dict[str, Latent](), 0
    for name, latent in latents.sites.items():
        sites[name] = taken = _with_rows(latent, chosen, start)
        start = taken.columns.stop
    return sites


def _with_rows(latent: Latent, chosen: Mapping[str, Tensor], start: int) -> Latent:
    shape, value, centering = list(latent.shape), latent.site["value"], latent.centering
    fn = latent.site["fn"]
    batch_shape = list(fn.batch_shape)
    for plate, axis in latent.axes.items():
        if plate in chosen:
            rows = chosen[plate]
            shape[axis] = batch_shape[axis] = len(rows)
            value = value.index_select(axis, rows.to(value.device))
            if centering is not None:
                centering = _of_rows(centering, axis - len(shape), rows)
    inner, mask = fn.base_dist if isinstance(fn, OtherRows) else fn, torch.tensor(True) if latent.is_masked else None
    site = {**latent.site, "fn": OtherRows(inner, torch.Size(batch_shape)), "value": value, "mask": mask}
    columns = slice(start, start + math.prod(shape))
    return replace(latent, site=site, shape=torch.Size(shape), columns=columns, centering=centering)


def _of_rows(centering: Tensor, axis: int, rows: Tensor) -> Tensor:
    """A site's centering for some rows, where it is not the same for all."""
    if centering.dim() < -axis or centering.shape[axis] == 1:
        return centering
    return centering.index_select(axis, rows.to(centering.device))


def columns(shape: torch.Size, axes: Mapping[str, int], chosen: Mapping[str, Tensor], start: int) -> Tensor:
    """Where a flat vector holds chosen rows of a site, in their shape; it costs as much as there are of them.

    :param shape: of the site with all its rows.
    :param axes: the axis of each of its plates.
    :param chosen: the rows' numbers, by plate; of others, all.
    :param start: where the vector holds the first entry.

    Example::

        >>> columns(torch.Size([3, 2]), {"groups": 0}, {"groups": torch.tensor([2, 0])}, 10).tolist()
        [[14, 15], [10, 11]]
    """
    plates = {axis: plate for plate, axis in axes.items()}
    found, stride = torch.tensor(start), math.prod(shape)
    for axis, size in enumerate(shape):
        stride //= max(1, size)
        rows = chosen.get(plates.get(axis, ""))
        index = torch.arange(size) if rows is None else rows.cpu()
        found = found[..., None] + stride * index
    return found
