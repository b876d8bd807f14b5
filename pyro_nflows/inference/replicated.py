r"""Fits of simulated data sets in other processes: each is sent its data, and gives its ranks."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any, NamedTuple

import torch

from ..guides import AutoFlow
from ..system.exclusive import exclusive, seeded, with_dtype
from ..system.ranks import Ranks
from .calibrated import Checked
from .fitted import Fit
from .plan import Plan
from .portable import sendable, unpacked
from .replications import Refits, Replication, Replications, Simulated
from .workers import not_found, spread

#: What is made of a fit; a function of a module.
Check = Callable[[AutoFlow, Replication, Fit, int, bool | None], Checked]


class Order(NamedTuple):
    """What all fits of a run have in common.

    :param key: of the run: a worker keeps the recording of the latest one.
    :param guide: the fresh guide, its model and the model's arguments, as bytes.
    :param num: how many fits there are.
    :param plan: of each.
    :param check: what is made of each.
    :param options: further arguments of that.
    :param dtype: torch's default.
    """

    key: str
    guide: dict[str, Any]
    num: int
    plan: Plan
    check: Check
    options: tuple[int, bool | None]
    dtype: torch.dtype


def checked_by(
    executor: Executor | Ranks, replications: Replications, plan: Plan, check: Check, options: tuple[int, bool | None]
) -> Iterator[tuple[int, Checked]]:
    """Each data set that could be started, with what is made of its fit, as it is done.

    :raises WorkerError: if a worker dies or fails; it says at which simulation.
    :raises KeyboardInterrupt: if a worker was interrupted.
    """
    guide = sendable(replications.guide, (replications.args, replications.kwargs))
    order = Order(uuid.uuid4().hex, guide, replications.num, plan, check, options, torch.get_default_dtype())
    given = ((index, (order, index, one)) for index, one in replications.simulated())
    try:
        for index, found in spread("SBC.run", "simulation", executor, fit_one, given):
            if found is None:
                raise KeyboardInterrupt
            if isinstance(found, str):
                replications.failed[index] = found
            else:
                yield index, found
    finally:
        forget()


#: The latest run's key and fits, in a worker.
_latest: list[tuple[str, Refits]] = []


@exclusive()
def fit_one(order: Order, index: int, one: Simulated) -> Checked | str:
    """Fit one data set, in a worker.

    :return: what is made of it; why not, where it could not be started.
    :raises KeyboardInterrupt: if it was interrupted.
    """
    with with_dtype(order.dtype), seeded(one.seed):
        fits = _fits_of(order)
        for _, replication, trainer, fit in fits.fits_of(order.plan, [(index, one)]):
            if trainer.history.interrupted:
                raise KeyboardInterrupt
            with trainer.stream or contextlib.nullcontext():
                return order.check(fits.guide, replication, fit, *order.options)
        return fits.failed.pop(index)


def forget() -> None:
    """Let go of what was recorded here."""
    while _latest:
        _latest.pop()[1].close()


def _fits_of(order: Order) -> Refits:
    if _latest and _latest[0][0] == order.key:
        return _latest[0][1]
    forget()
    guide, call, reason = unpacked(dict(order.guide))
    if call is None:
        raise not_found(reason)
    fits = Refits(guide, order.num, *call)
    _latest.append((order.key, fits))
    return fits
