r"""Whether a guide is over all latents jointly, or follows the plates of the model; and its flow then.

A joint flow has to find out that the rows of a plate are independent given the rest, and costs more with each of them.
A guide that follows the plates has it built in: a flow of the latents outside of plates, and for each row a few numbers
that say how it depends on what it is within. Its time and memory grow linearly with the rows.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Literal

import torch
from pyro import poutine
from torch import Tensor

from .. import flows
from ..checks import counted
from ..flows.transforms import as_layer
from ..flows.whitened import Whitened
from ..layers import PlateAffine
from ..layers.base import Layer
from ..model.elimination import Elimination
from ..model.hierarchy import Hierarchy
from ..model.independence import rows_interact
from ..model.latents import Latents
from ..model.log_joint import LogJoint
from ..system.exclusive import validation
from ..system.randomness import forked
from . import checks
from .ends import End

#: What a guide may be asked for.
Structure = Literal["auto", "joint", "plates"]
#: More latents than these are not put into a joint flow if most of them are in plates.
MAX_JOINT = 48
#: So many latents at least are drawn given hubs.
MIN_GIVEN = 16
#: A joint guide has couplings within rows of several coordinates, but not of more than these.
MAX_COUPLED = 12
#: Couplings of all latents in front of those within rows, in place of the default's eight.
NUM_JOINT = 4


def chosen(
    name: str, structure: Structure, latents: Latents, joint: Callable[[], LogJoint] | None = None
) -> Hierarchy | None:
    """The plates that a guide follows; None for a joint guide.

    :param name: of the guide's class, for errors.
    :param structure: what is asked for.
    :param latents: the model's.
    :param joint: makes the log joint, by which rows that the data tie together are found out.
    :raises ValueError: if plates are asked for, and no latent is in one.
    """
    if structure == "joint":
        return None
    hierarchy = Hierarchy.of(latents)
    if structure == "plates" or hierarchy.subsampled:
        if not hierarchy.blocks:
            raise checks.no_plates(name)
        return hierarchy
    if latents.dim <= MAX_JOINT or 2 * len(hierarchy.top) >= latents.dim:
        return None
    return None if joint is not None and _interact(joint, hierarchy) else hierarchy


def coupled_rows(build: flows.Build, latents: Latents, hierarchy: Hierarchy | None) -> Hierarchy | None:
    """The plates within whose rows a joint guide has couplings too; None for none.

    They are a part of the default flow, where rows have several coordinates.

    :param build: the guide's flow.
    :param latents: the model's.
    :param hierarchy: the plates that the guide follows, if it does.
    """
    if hierarchy is not None or build is not flows.default:
        return None
    found = Hierarchy.of(latents)
    return found if any(1 < block.row_dim <= MAX_COUPLED for block in found.blocks) else None


def given_hubs(
    build: flows.Build, hierarchy: Hierarchy | None, end: End | None, rows: Hierarchy | None
) -> Elimination | None:
    """The pattern with hubs given which the other latents of a joint guide are drawn; None for one flow of all.

    It takes the place of the default flow.

    :param build: the guide's flow.
    :param hierarchy: the plates that the guide follows, if it does.
    :param end: of a joint guide.
    :param rows: the plates within whose rows a joint guide has couplings.
    """
    if build is not flows.default or hierarchy is not None or rows is not None or end is None:
        return None
    found = end.elimination
    return found if found is not None and MIN_GIVEN <= found.dim - len(found.pattern.hubs) < found.dim else None


def _interact(joint: Callable[[], LogJoint], hierarchy: Hierarchy) -> bool:
    with poutine.block(), forked(), validation(False):
        density = joint()
        try:
            return rows_interact(lambda z: density.single(z[0])[None], hierarchy, density.latents.init_loc())
        except (RuntimeError, ValueError):  # the model cannot be evaluated there, or not differentiated twice
            return False


def described(
    hierarchy: Hierarchy | None,
    latents: Latents,
    rows: Hierarchy | None = None,
    end: End | None = None,
    flow: Layer | None = None,
) -> str:
    """Which structure a guide has, and why.

    :param latents: the model's.
    :param end: of a joint guide.
    :param rows: the plates within whose rows a joint guide has couplings.
    :param flow: what is before the end.
    """
    if hierarchy is None:
        hubs = end.elimination.pattern.hubs if end is not None and end.elimination is not None else torch.zeros(0)
        coupled = [] if rows is None else [" x ".join(block.plates) for block in rows.blocks if block.row_dim > 1]
        within = f", with couplings within rows of {', '.join(coupled)}" if coupled else ""
        why = f", end {end.kind} ({end.why})" if end is not None and end.why else ""
        given = f", all others given {', '.join(_names(latents, hubs))}" if isinstance(flow, flows.GivenHubs) else ""
        return f"joint over {counted(latents.dim, 'latent')}{given}{within}{why}"
    blocks = ", ".join(f"{' x '.join(b.plates)}: {counted(b.num_rows, 'row')} of {b.row_dim}" for b in hierarchy.blocks)
    return f"follows plates: {counted(len(hierarchy.top), 'latent')} outside of plates; {blocks}"


def _names(latents: Latents, columns: Tensor) -> list[str]:
    """The sites that have columns of the flat latent, with how many of theirs."""
    known = torch.zeros(latents.dim, dtype=torch.bool)
    known[columns] = True
    counts = {name: known[site.columns] for name, site in latents.sites.items()}
    return [n if its.all() else f"{n} ({int(its.sum())} of {len(its)})" for n, its in counts.items() if its.any()]


def whitened(
    name: str,
    build: flows.Build,
    loc: Tensor,
    init_scale: float,
    hierarchy: Hierarchy | None = None,
    modes: tuple[int, int] | None = None,
    end: End | None = None,
    rows: Hierarchy | None = None,
    row_build: flows.Build | None = None,
    within: bool = True,
) -> Whitened:
    """A flow with its affine end.

    :param name: of the guide's class, for errors.
    :param build: ``latent_dim -> Layer``; of the latents outside of plates, where there is a hierarchy.
    :param loc: where the end is to start, ``(latent_dim,)``.
    :param init_scale: its widths.
    :param hierarchy: the plates that it follows.
    :param modes: components and block size of a mixture to put the flow on; see :func:`~pyro_nflows.flows.on_modes`.
    :param end: of a joint guide; full unless given.
    :param rows: the plates within whose rows a joint guide has couplings; the flow is then of fewer layers than
        the default, whose place it takes.
    :param row_build: ``latent_dim -> Layer``; of a row, where there is a hierarchy.
    :param within: whether the end has correlations within the rows of a hierarchy.
    """
    latent_dim = loc.numel()
    hubs = given_hubs(build, hierarchy, end, rows)
    if rows is not None:
        build = functools.partial(flows.realnvp, num_layers=NUM_JOINT)
    if hubs is not None:
        build = lambda latent_dim: flows.on_hubs(hubs)  # noqa: E731
    if modes is not None:
        inner = build if build is flows.default else functools.partial(_flow, name=name, build=build)
        build = functools.partial(flows.on_modes, inner=inner, num_components=modes[0], block_dim=modes[1])
    with loc.device:  # that of the model's latents, whatever torch's default is
        if hierarchy is not None:
            flow = flows.on_plates(hierarchy, functools.partial(_flow, name=name, build=build), rows=row_build)
            return Whitened(flow, PlateAffine(hierarchy, loc, init_scale, within=within)).to(loc)
        flow, affine = _flow(latent_dim, name, build), (end or End("full")).made(loc, init_scale)
        return Whitened(flow if rows is None else flows.within_rows(rows, flow), affine).to(loc)


def _flow(latent_dim: int, name: str, build: flows.Build) -> Layer:
    _need_dim(name, build, latent_dim)
    made = build(latent_dim)
    try:
        flow = as_layer(made, latent_dim)
    except TypeError as error:
        raise TypeError(f"{name}: build({latent_dim}): {error}") from None
    checks.check_build(name, flow, latent_dim)
    return flow


def _need_dim(name: str, build: flows.Build, latent_dim: int) -> None:
    """Refuse what cannot be called with the number of latents."""
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):  # it cannot be told
        return
    try:
        signature.bind(latent_dim)
    except TypeError:
        raise TypeError(
            f"{name}: build is called with the number of latents, build({latent_dim}), and takes {signature}"
        ) from None
