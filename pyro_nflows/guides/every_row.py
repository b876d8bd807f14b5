"""Values of all rows of subsampled plates, where the model has to be run to know them: minibatch after minibatch."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ..model.all_rows import columns, on_rows
from ..model.bound import BoundModel
from ..model.hierarchy import Hierarchy
from ..model.latents import Latent, Latents
from ..model.log_joint import LogJoint
from ..model.placed import Lifted
from ..model.rows import Rows
from ..model.subsample import Chosen, is_given, look, subsample_sites
from ..model.values import constrained, mapped
from ..system.randomness import forked
from ..system.shapes import broadcast_shapes
from . import row_checks


class Part(NamedTuple):
    """A run of the model with some rows.

    :param joint: its log joint.
    :param rows: their numbers, by plate.
    :param names: the sites whose values are to be read from it.
    """

    joint: LogJoint
    rows: dict[str, Tensor]
    names: list[str]

    def places(self, latent: Latent, shape: torch.Size) -> Tensor:
        """Where something of a site, with all rows, holds these rows."""
        return columns(shape, latent.axes, self.rows, 0).reshape(-1)


def parts(bound: BoundModel, latents: Latents) -> Iterator[Part]:
    """Runs of a model that have all rows of each site between them.

    :param bound: the model at some arguments.
    :param latents: of all rows.
    :raises ValueError: if the model's rows are given by its arguments, and are not all.
    """
    sizes = _sizes(bound, latents)
    groups: dict[frozenset[str], list[str]] = {}
    for name, latent in latents.sites.items():
        groups.setdefault(frozenset(latent.subsampled), []).append(name)
    first = {plate: torch.arange(size) for plate, (size, _) in sizes.items()}
    joint = None
    for plates, names in groups.items():
        for chosen in itertools.product(*(_minibatches(plate, *sizes[plate]) for plate in plates)):
            rows = {**first, **dict(chosen)}
            run = BoundModel(Chosen(latents.owner, rows)(bound.model), bound.args, bound.kwargs)
            if joint is None:
                joint = LogJoint(run, on_rows(latents, rows))
                with poutine.block(), forked():
                    joint.look()
            joint = joint.on(run)
            joint.latents = on_rows(latents, rows)
            yield Part(joint, rows, names)


def _sizes(bound: BoundModel, latents: Latents) -> dict[str, tuple[int, int]]:
    """For each subsampled plate, how many rows a run has, and how many there are."""
    sizes = {frame.name: frame.full_size for at in latents.sites.values() for frame in at.plates}
    trace = look(bound, {name: latent.site for name, latent in latents.sites.items()})
    found = {}
    for plate, site in subsample_sites(trace).items():
        if any(plate in latent.subsampled for latent in latents.sites.values()):
            size = len(site["value"])
            if is_given(site) and size < sizes[plate]:
                raise row_checks.rows_given(latents.owner, plate, sorted(latents.moving)[0])
            found[plate] = size, sizes[plate]
    return found


def _minibatches(plate: str, size: int, num_rows: int) -> list[tuple[str, Tensor]]:
    """All rows of a plate, as many at once as a run has; the last ones may have been there before."""
    starts = [*range(0, num_rows - size, size), num_rows - size]
    return [(plate, torch.arange(start, start + size)) for start in starts]


def constrained_rows(bound: BoundModel, latents: Latents, z: Tensor) -> dict[str, Tensor]:
    """Flat latents of all rows, ``(num, latent_dim)``, as values of the sites.

    :param bound: the model at some arguments.
    :param latents: of all rows.
    :param z: the flat latents.
    """
    hierarchy, shapes = Hierarchy.of(latents), latents.value_shapes
    found = {name: z.new_empty(len(z), shape.numel()) for name, shape in shapes.items()}
    for part in parts(bound, latents):
        values = constrained(part.joint, z[:, Rows.of(hierarchy, part.rows).columns.to(z.device)])
        for name in part.names:
            found[name][:, part.places(latents.sites[name], shapes[name])] = values[name].reshape(len(z), -1).to(z)
    return {name: value.reshape(len(z), *shapes[name]) for name, value in found.items()}


def unconstrained_rows(bound: BoundModel, latents: Latents, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The other way: values with leading dimensions to flat latents of all rows, and the log-determinants."""
    shapes = latents.value_shapes
    batch = broadcast_shapes(*(values[n].shape[: values[n].dim() - len(shape)] for n, shape in shapes.items()))
    rows = {name: values[name].expand(batch + shape).reshape(-1, shape.numel()) for name, shape in shapes.items()}
    num, like = batch.numel(), next(iter(rows.values()))
    flat = {name: like.new_empty(num, shape.numel()) for name, shape in latents.shapes.items()}
    log_dets = {name: like.new_zeros(num, _batch_shape(at).numel()) for name, at in latents.sites.items()}
    for part in parts(bound, latents):
        sites = part.joint.latents.sites
        given = {
            name: rows[name][:, part.places(at, shapes[name])].reshape(num, *sites[name].value_shape)
            for name, at in latents.sites.items()
        }
        lifted = mapped(functools.partial(_lifted, part.joint), given)
        for name in part.names:
            at = latents.sites[name]
            flat[name][:, part.places(at, at.shape)] = lifted[name].reshape(num, -1)
            log_dets[name][:, part.places(at, _batch_shape(at))] = lifted[f"{name} log_det"].reshape(num, -1)
    z = torch.cat([flat[name] for name in latents.sites], -1)
    return z.reshape(*batch, -1), sum(step.sum(-1) for step in log_dets.values()).reshape(batch)  # type: ignore[union-attr]


def _batch_shape(latent: Latent) -> torch.Size:
    return latent.value_shape[: len(latent.value_shape) - latent.event_dim]


def _lifted(joint: LogJoint, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each site's unconstrained value, and the log-determinants in its batch shape."""
    lifted, found = Lifted(values, joint.latents.centers), dict[str, Any]()
    joint.visit(lifted)
    for name, latent in joint.latents.sites.items():
        shape, log_det = _batch_shape(latent), lifted.log_dets[name]
        found[name] = lifted.parts[name]
        found[f"{name} log_det"] = log_det.reshape(*shape, -1).sum(-1) if log_det.shape != shape else log_det
    return found
