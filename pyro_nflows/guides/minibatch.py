r"""A guide's draw where plates are subsampled: the rows of this call, each in its plates.

What is outside of plates is one auxiliary site, and the rows of each block are one in their plates. So Pyro's own
machinery scales the log densities of a minibatch's rows by :math:`N / B`, in the guide as in the model, and the mean of
the ELBO over minibatches is that of all rows.

Where there are several particles, what is outside of plates is drawn in pairs from base points :math:`x` and
:math:`-x`. A minibatch of :math:`B` of :math:`N` rows moves the gradient of :math:`\log p - \log q` at all draws by
about the same :math:`\epsilon`, of the size :math:`\sqrt{N / B - 1}` in units of the posterior's width, so that the
gradient of a scale, the mean of :math:`x \epsilon`, has noise of that size, which is left in the scale after training:
:math:`\sqrt{(N / B - 1) / (4 n)}` of it after :math:`n` steps of one particle. In a pair it cancels.
"""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import get_plates
from torch import Tensor

from ..flows.distribution import FlowDistribution
from ..flows.rows import RowDistribution, RowFlow, as_rows
from ..flows.whitened import Whitened
from ..layers.base import Layer
from ..model.bound import BoundModel
from ..model.hierarchy import Hierarchy
from ..model.latents import Latents
from ..model.subsample import Chosen, look, subsample_sites
from ..nets.views import with_parameters
from ..system.randomness import forked
from ..system.shapes import broadcast_shapes
from . import row_checks

Plates = dict[str, Any]


def plates_of_call(
    name: str,
    bound: BoundModel,
    latents: Latents,
    frames: Mapping[str, Any],
    created: Iterable[Any],
    is_fixed: bool = True,
) -> Plates:
    """The plates of one call, with the rows that the model has in it.

    :param name: of the guide's class, for errors.
    :param bound: the model at the arguments of the call. It is run, to see which rows it has, unless all its
        subsampled plates were created.
    :param latents: of all rows.
    :param frames: the plates around latents, as they were at first.
    :param created: those that the user's ``create_plates`` made.
    :param is_fixed: whether the plates have as many rows as at first.
    """
    plates = {plate.name: _with_dim(plate, frames) for plate in created}
    sizes = {plate: frames[plate].full_size for plate in subsampled(latents)}
    missing = sizes.keys() - plates.keys()
    if missing:
        given = {plate: plates[plate].indices for plate in sizes.keys() - missing}
        rows = rows_seen(name, bound, latents, given)
        row_checks.check_plates(name, sizes, rows)
        for plate in sorted(missing):
            size, at = rows[plate]
            plates[plate] = pyro.plate(plate, size, dim=frames[plate].dim, subsample=at)
    if is_fixed:
        row_checks.check_rows(name, sizes, {plate: plates[plate].indices for plate in sizes})
    for plate, frame in sorted(frames.items()):
        if plate not in plates:
            plates[plate] = pyro.plate(plate, frame.full_size or frame.size, dim=frame.dim, subsample_size=frame.size)
    return plates


def _with_dim(plate: Any, frames: Mapping[str, Any]) -> Any:
    """A plate of the user's, along the dimension that the model has it in."""
    if plate.dim is not None or plate.name not in frames:
        return plate
    with poutine.block():
        return pyro.plate(plate.name, plate.size, dim=frames[plate.name].dim, subsample=plate.indices)


def with_rows(name: str, bound: BoundModel, latents: Latents) -> BoundModel:
    """A model with the rows of one run, the same in all of its runs; the model itself where no plate is subsampled.

    :param latents: of one run.
    """
    if not subsampled(latents):
        return bound
    rows = {plate: at for plate, (_, at) in rows_seen(name, bound, latents, {}).items()}
    return BoundModel(Chosen(name, rows)(bound.model), bound.args, bound.kwargs)


def rows_seen(
    name: str, bound: BoundModel, latents: Latents, given: Mapping[str, Tensor]
) -> dict[str, tuple[int, Tensor]]:
    """How many rows each plate has, and which of them the model has in a call."""
    chosen = BoundModel(Chosen(name, given)(bound.model), bound.args, bound.kwargs)
    trace = look(chosen, _sites(latents))
    row_checks.check_latent(name, latents.sites, trace)
    found = subsample_sites(trace)
    plates = found.keys() & subsampled(latents)
    return {plate: (found[plate]["fn"].size, torch.as_tensor(found[plate]["value"])) for plate in plates}


def has_rows(bound: BoundModel, latents: Latents) -> bool:
    """Whether a model's plates have as many rows in a run as the latents, but for those that are subsampled.

    The run ends at the first latent that has others: what comes after it may not be made for it.
    """
    try:
        with forked():
            look(BoundModel(_SameRows(latents)(bound.model), bound.args, bound.kwargs), _sites(latents))
    except _OtherRowsError:
        return False
    return True


class _OtherRowsError(Exception):
    """A latent has other rows than it had."""


class _SameRows(Messenger):
    def __init__(self, latents: Latents):
        super().__init__()
        self.sizes = {
            name: {frame.name: frame.size for frame in latent.plates if frame.name not in latent.subsampled}
            for name, latent in latents.sites.items()
        }

    def _pyro_sample(self, msg: Any) -> None:
        sizes = self.sizes.get(msg["name"], {})
        if any(sizes.get(frame.name, frame.size) != frame.size for frame in msg["cond_indep_stack"]):
            raise _OtherRowsError


def _sites(latents: Latents) -> dict[str, Any]:
    return {site: latent.site for site, latent in latents.sites.items()}


def check_drawn(name: str, bound: BoundModel, latents: Latents, plates: Iterable[Any]) -> None:
    """Refuse a model whose arguments give its rows, where an ``AutoGuideList`` has drawn rows of its own.

    :param plates: the list's.
    """
    rows = {plate.name: plate.indices for plate in plates if plate.name in subsampled(latents)}
    remedy = "the AutoGuideList needs create_plates= to have the same rows as the model"
    with forked():
        look(BoundModel(Chosen(name, rows, remedy)(bound.model), bound.args, bound.kwargs), _sites(latents))


def subsampled(latents: Latents) -> set[str]:
    """The subsampled plates that latents are in."""
    return {plate for latent in latents.sites.values() for plate in latent.subsampled}


def sample_rows(
    name: str, outside: Layer, view: Whitened, hierarchy: Hierarchy, latents: Latents, plates: Plates
) -> Tensor:
    """Draw what is outside of plates, then the rows of this call, block after block.

    :param name: of the auxiliary sites.
    :param outside: the layer of what is outside of plates.
    :param view: the layer of that and of this call's rows.
    :param hierarchy: of these rows.
    :param latents: of all rows.
    :param plates: of this call.
    :return: a flat latent, with a dimension for each plate where there are particles.
    """
    nesting, top = nesting_of(latents), next(view.parameters()).new_zeros(0)
    if len(hierarchy.top):
        fn = FlowDistribution(outside, path_gradient=True, paired=is_of_particles())
        top = pyro.sample(name, fn, infer={"is_auxiliary": True})
    batch = top.shape[: max(0, top.dim() - 1 - nesting)]
    given = top.reshape(*batch, -1)
    flow, parts = RowFlow(view, given), [given]
    wants_path = torch.is_grad_enabled() and not flow.has_flow
    stopped = RowFlow(_without_gradients(view), given) if wants_path else None
    for number, block in enumerate(hierarchy.blocks):
        grid = _grid(block.plates, plates)
        shape = batch + (1,) * (nesting - len(grid)) * bool(batch) + grid
        rows = RowDistribution(flow, number, block.row_dim, torch.Size(shape), nesting, stopped)
        with contextlib.ExitStack() as stack:
            for plate in block.plates:
                stack.enter_context(plates[plate])
            value = pyro.sample(f"{name}_{'_'.join(block.plates)}", rows, infer={"is_auxiliary": True})
        parts.append(as_rows(value, nesting))
        is_above = any(number == above.block for inner in hierarchy.blocks for above in inner.above)
        flow.add(rows.stages(value)[0] if is_above else [parts[-1]] * len(flow.stages))
        if stopped is not None:
            stopped.add(stopped.back(number, parts[-1])[0] if is_above else [parts[-1]] * len(stopped.stages))
    return _flat(hierarchy, parts, nesting)


def is_of_particles() -> bool:
    """Whether a call is for all particles of one of Pyro's objectives at once, which have one minibatch together."""
    return any(frame.name == "num_particles_vectorized" for frame in get_plates())


def _without_gradients(view: Whitened) -> Whitened:
    return with_parameters(view, {name: parameter.detach() for name, parameter in view.named_parameters()})


def nesting_of(latents: Latents) -> int:
    """How many dimensions the plates of the latents take."""
    return max((-frame.dim for at in latents.sites.values() for frame in at.plates if frame.vectorized), default=0)


def _grid(names: Iterable[str], plates: Plates) -> tuple[int, ...]:
    """The sizes of plates from the leftmost on, one where they leave a dimension out."""
    sizes = {plates[name].dim: len(plates[name].indices) for name in names}
    return tuple(sizes.get(dim, 1) for dim in range(min(sizes), 0))


def _flat(hierarchy: Hierarchy, parts: list[Tensor], nesting: int) -> Tensor:
    batch = broadcast_shapes(parts[0].shape[:-1], *(part.shape[:-2] for part in parts[1:]))
    top, *rest = parts
    rows = [part.expand(*batch, *part.shape[-2:]) for part in rest]
    flat = hierarchy.join([top.expand(*batch, -1), *rows])[..., hierarchy.order.argsort().to(top.device)]
    return flat.reshape(*batch, *(1,) * nesting * bool(batch), -1)
