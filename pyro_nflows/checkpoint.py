r"""Saving a fit to a file and reading it back; the model itself is not saved."""

import os
from typing import Any

import torch

from .engine import History
from .guides import AutoFlow
from .weights import Draws

Path = str | os.PathLike[str]


def save_fit(path: Path, guide: AutoFlow, draws: Draws, history: History, bad_site: str | None) -> None:
    """Write a trained guide, its draws and its history: tensors and plain values only."""
    state = {
        "guide": type(guide).__name__,
        "state_dict": dict(guide.state_dict()),
        "draws": (draws.z, draws.log_p, draws.log_q),
        "elbos": history.elbos,
        "rounds": history.rounds,
        "skipped": history.skipped,
        "seconds": history.seconds,
        "interrupted": history.interrupted,
        "drift": history.drift,
        "missed": history.missed,
        "where": history.where,
        "round_trip": history.round_trip,
        "bad_site": bad_site,
    }
    torch.save(state, path)


def load_fit(path: Path, guide: AutoFlow) -> tuple[Draws, History, str | None]:
    """Read what :func:`save_fit` wrote; the state goes into ``guide``.

    :raises ValueError: if the file is of another kind of guide, or of another model.
    """
    state: dict[str, Any] = torch.load(path, weights_only=True)
    name = type(guide).__name__
    if state.get("guide") != name:
        raise ValueError(
            f"VI.load: the file holds the fit of a {state.get('guide')}, got a fresh {name}; make a matching guide"
        )
    guide.load_state_dict(state["state_dict"])
    history = History(
        elbos=state["elbos"],
        rounds=state["rounds"],
        skipped=state["skipped"],
        seconds=state["seconds"],
        interrupted=state["interrupted"],
        drift=state["drift"],
        missed=state["missed"],
        where=state["where"],
        round_trip=state["round_trip"],
    )
    return Draws(*state["draws"]), history, state["bad_site"]
