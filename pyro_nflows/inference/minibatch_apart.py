"""Fits by minibatches from several starts in other processes: each gives a trained flow, with its draws."""

import time
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ..engine import Budget, History, Journal, Progress
from ..system.exclusive import exclusive, seeded, validation, with_dtype
from .minibatch_starts import Start, Starts, terms_of
from .plan import Plan
from .portable import sendable, unpacked
from .posterior import Call
from .workers import fit_starts, not_found, refuse_parameters


class Order(NamedTuple):
    """What all fits of a run have in common.

    :param guide: set up, with its model and the model's arguments, as bytes.
    :param builds: how it makes its flow and that of rows, which a guide that is set up does not take along.
    :param plan: of each fit.
    :param until: when training has to end, in seconds since the epoch.
    :param dtype: torch's default.
    """

    guide: dict[str, Any]
    builds: tuple[Any, Any]
    plan: Plan
    until: float
    dtype: torch.dtype


def is_apart(starts: Starts) -> bool:
    """Whether there are several starts, and workers for them.

    The processes of ``torch.distributed`` take them one after the other, all at each, where these train parameters of
    the model's own.
    """
    plan = starts.plan
    return plan.workers is not None and plan.starts > 1 and not (plan.ranks.has_peers and starts.leaves)


def best_apart(starts: Starts, call: Call) -> Start:
    """The best of a run's fits, each by one of the plan's workers.

    A run that is resumed has those that were complete.

    :param starts: the run; its ``seen`` are filled in.
    :param call: the model's arguments.
    :raises ValueError: if the model has parameters of its own.
    :raises WorkerError: if a worker dies or fails; it says at which start.
    """
    plan = starts.plan
    refuse_parameters(starts.leaves)
    seeds = torch.randint(2**62, (plan.starts,)).tolist()
    own = replace(plan, workers=None, callback=None, progress_bar=False)
    until = time.time() + starts.budget.until - time.perf_counter()
    guide = starts.guide
    order = Order(sendable(guide, call), (guide.build, guide.row_build), own, until, torch.get_default_dtype())
    given = [(order, i, seed) for i, seed in enumerate(seeds)]
    found, interrupted = fit_starts(plan.workers, fit_one, given, starts.journal, starts.progress, "the verdict")
    starts.history.interrupted |= interrupted
    fits = [_taken(starts, number, result) for number, result in sorted(found.items())]
    if not fits:
        fit = starts.fresh(0)
        return Start(fit, fit.weigh(), list(starts.leaves))
    bounds = [starts.see(fit) for fit in fits]
    best = max(range(len(fits)), key=lambda place: bounds[place])
    starts.seen.insert(0, starts.seen.pop(best))
    return fits[best]


def _taken(starts: Starts, number: int, result: dict[str, Any]) -> Start:
    """What a worker has made."""
    fit, history = starts.fresh(number), History()
    cast(nn.Module, fit.of_rows.weighed).load_state_dict(result["layer"])
    history.take(result["history"])
    starts.history.join(history)
    return Start(fit, result["found"], list(starts.leaves))


@exclusive()
def fit_one(order: Order, number: int, seed: int) -> dict[str, Any]:
    """Fit from one start, in a worker.

    :raises KeyboardInterrupt: if it was interrupted.
    """
    guide, call, reason = unpacked(dict(order.guide))
    if call is None:
        raise not_found(reason)
    guide.build, guide.row_build = order.builds
    with with_dtype(order.dtype), seeded(seed), validation(False), Progress(False) as progress:
        history, budget = History(quick=not order.plan.schedule.has_flow), Budget.of_training(order.until - time.time())
        terms = terms_of(guide, call)
        starts = Starts(guide, terms, order.plan, history, terms.leaves(), budget, progress, Journal())
        fit = starts.fresh(number)
        fit.fit()
        if history.interrupted:
            raise KeyboardInterrupt
        fit.correct()
        layer = cast(nn.Module, fit.of_rows.weighed).state_dict()
        return {
            "layer": {name: value.detach().clone() for name, value in layer.items()},
            "found": fit.weigh(),
            "history": history.state(),
        }
