r"""A fit from a file: its flow into a fresh guide, its draws and evidence, and the model's own parameters."""

import functools
import os
from dataclasses import replace
from typing import Any, cast

import torch
from pyro import poutine
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..diagnostics.findings import Faults, MissedMass, RowFit, Subsampled
from ..diagnostics.moves import Redrawn, Settled
from ..engine import History
from ..guides import AutoFlow
from ..layers import Rescaled
from ..model.bound import BoundModel
from ..model.latents import is_enumerated, latent_sites
from ..model.log_joint import LogJoint
from ..objectives.draws import Draws
from ..system.files import Path, check_path, kind_of, read
from ..system.randomness import forked
from .all_rows import over_all_rows
from .columns import expanded
from .crossed_posterior import CrossedPosterior, blocks_of
from .mark import put
from .posterior import Call, Posterior
from .row_posterior import RowPosterior
from .written import KIND

#: What the file of an unfinished run is.
UNFINISHED = "checkpoint"
#: Draws at which a model is compared with the one that was fitted.
NUM_CHECKED = 3


def load_fit(path: Path, guide: AutoFlow, call: Call) -> Posterior:
    """Read what ``Posterior.save`` wrote; the guide's state goes into ``guide``, the model's own into the param store.

    :param call: the model's arguments; nothing where they are not at hand.
    :return: the posterior; with the arguments, if the model could be run with them.
    :raises ValueError: if the file is none of a fit, or of another kind of guide, another model or other data.
    """
    check_path("VI.load", path)
    if kind_of(path) == UNFINISHED:
        raise ValueError(
            f"VI.load: {os.fspath(path)!r} is the checkpoint of a run that is not complete; run the same line "
            "again, with the same data, and it goes on from there"
        )
    return take_fit(read(path, KIND, "VI.load"), guide, call)


def take_fit(state: dict[str, Any], guide: AutoFlow, call: Call) -> Posterior:
    """See :func:`load_fit`."""
    state = _beside(call, state)
    _take_guide(state, guide)
    found = restored(state, guide)
    if state["arguments"] and not (call[0] or call[1]):
        return found
    saved = list(guide.site_shapes)
    try:
        guide.receive(*call)
    except ValueError as error:
        raise _of_another_model(guide, saved, call) or error from None
    _take_leaves(found, call)
    if not isinstance(found, RowPosterior):
        _check_model(guide, found, call)
    return replace(found, call=call, values=None)


def _beside(call: Call, state: dict[str, Any]) -> dict[str, Any]:
    """What was saved, on the device of the data."""
    devices = [leaf.device for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
    device = next((device for device in devices if device.type != "cpu"), devices[0] if devices else None)
    floats = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if device is None or all(leaf.device == device for leaf in floats):
        return state
    moved = {id(leaf): leaf.to(device) for leaf in floats}
    return cast(dict[str, Any], tree_map(lambda leaf: moved.get(id(leaf), leaf), state))


def restored(state: dict[str, Any], guide: AutoFlow) -> Posterior:
    """What ``Posterior.state`` was made of, with the values of all sites, and without the model's arguments.

    :param guide: has the flow of the file.
    """
    history, draws = History(), Draws(*state["draws"])
    history.take(state["history"])
    rows, kind = state.get("row_fit"), cast(Any, Posterior)
    if rows is not None:
        own = {"row_fit": RowFit(**rows), "amortizer": guide.amortizer, "judged": state["judged"]}
        kind = functools.partial(RowPosterior, **own)
        if "blocks" in state:
            own = {**own, "blocks": blocks_of(state["blocks"]), "obstacle": state["obstacle"]}
            kind = functools.partial(CrossedPosterior, **own)
    found: Posterior = kind(
        guide,
        cast(Rescaled, guide.layer),
        None,
        draws,
        [Draws(*part) for part in state["starts"]],
        history,
        MissedMass(**state["missed"]),
        Faults.restored(state["faults"]),
        Subsampled(**{**state["subsampled"], "plates": tuple(map(tuple, state["subsampled"]["plates"]))}),
        guide.modes,
        state["leaves"],
        expanded(state["values"], draws.z),
        state.get("seed"),
        own=Draws(*state["own"]) if state.get("own") else None,
        settled=Settled(**state["settled"]) if state.get("settled") else None,
        redrawn=Redrawn(**state["redrawn"]) if state.get("redrawn") else None,
    )
    return found


def _take_guide(state: dict[str, Any], guide: AutoFlow) -> None:
    name = type(guide).__name__
    if state["guide"] != name:
        raise ValueError(
            f"VI.load: the file holds a fit of {state['guide']}, got a fresh {name}; make a matching guide"
        )
    try:
        guide.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"VI.load: the file holds a fit of {name} with other layers, or of another model; make the guide as it "
            f"was made for the fit ({error})"
        ) from error


def _of_another_model(guide: AutoFlow, saved: list[str], call: Call) -> ValueError | None:
    """What to say if the model has not the sites of the file; None if it has."""
    with forked():
        sites = list(latent_sites(poutine.trace(guide.bare_model).get_trace(*call[0], **call[1])))
    now = [site["name"] for site in sites if not is_enumerated(site)]
    if sorted(now) == sorted(saved):
        return None
    return ValueError(
        f"VI.load: the file is of another model: its latent sites are {saved}, those of this one are {now}; load the "
        "fit with the model and the data that it was made with"
    )


def _take_leaves(found: Posterior, call: Call) -> None:
    """Put the model's own parameters to where they were."""
    values: list[Tensor] = list(found.leaves)
    leaves = found.own_leaves(call)
    then, now = [list(value.shape) for value in values], [list(leaf.shape) for leaf in leaves]
    if then != now:
        raise ValueError(
            f"VI.load: the fitted model had parameters of shapes {then} (pyro.param), this one has {now}; load the fit "
            "with the model and the data that it was made with"
        )
    with torch.no_grad():
        put(leaves, values)


@torch.no_grad()
def _check_model(guide: AutoFlow, found: Posterior, call: Call) -> None:
    """Refuse a model and data whose log density is not that of the file; but a model may be random."""
    draws = found.draws
    index = draws.log_p.topk(min(NUM_CHECKED, len(draws.z))).indices
    joint = LogJoint(BoundModel(guide.bare_model, *call), guide.latents)
    joint.start = draws.z[index[0]]
    density = (found.subsampled.plates and over_all_rows(joint)[0]) or joint
    now, again = (density(draws.z[index]).double() for _ in range(2))
    then = draws.log_p[index].double()
    if torch.equal(now, again) and not torch.allclose(now, then, rtol=1e-3, atol=1e-2):
        raise ValueError(
            f"VI.load: at a saved draw, the log density of the model with these data is {float(now[0]):.6g}, but it "
            f"was {float(then[0]):.6g}; load the fit with the model and the data that it was made with, or without "
            "any data to have the saved draws alone"
        )
