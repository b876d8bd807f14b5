r"""Fits from several starts in other processes: each is sent a point, and gives a trained flow with its draws."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..diagnostics.moves import Redrawn
from ..engine import Budget, History, Progress, Trainer
from ..guides import AutoFlow
from ..layers.base import Layer
from ..model.log_joint import LogJoint
from ..objectives.draws import Draws
from ..system.exclusive import exclusive, seeded, with_dtype
from ..system.ranks import Ranks
from .fit import drive, start
from .fitted import Fit
from .plan import Plan
from .portable import sendable, unpacked
from .running import Fitter
from .workers import fit_starts, not_found, refuse_parameters


class Order(NamedTuple):
    """What all fits of a run have in common.

    :param guide: set up, in the coordinates of the run, with its model and the model's arguments, as bytes.
    :param plan: of each fit.
    :param begins: where the model is run to see what it is.
    :param until: when training has to end, in seconds since the epoch.
    :param dtype: torch's default.
    """

    guide: dict[str, Any]
    plan: Plan
    begins: Tensor | None
    until: float
    dtype: torch.dtype


def fit_apart(trainer: Trainer, guide: AutoFlow, plan: Plan, locs: Sequence[Tensor]) -> list[Fit]:
    """A fit from each starting point, by the plan's workers; see :func:`~pyro_nflows.inference.fit.fit_all`.

    A run that is resumed has those that were complete.

    :raises ValueError: if the model has parameters of its own, or the guide draws with the model.
    :raises WorkerError: if a worker dies or fails; it says at which start.
    """
    _refuse(trainer, guide)
    joint = cast(LogJoint, trainer.log_joint)
    fittings = [start(trainer, guide, plan, loc) for loc in locs]
    seeds = torch.randint(2**62, (len(locs),)).tolist()
    own = replace(plan, workers=None, callback=None, progress_bar=False)
    until = time.time() + trainer.budget.until - time.perf_counter()
    order = Order(sendable(guide, joint.bound.call), own, joint.start, until, torch.get_default_dtype())
    given = [(order, loc, seed) for loc, seed in zip(locs, seeds)]
    fits, interrupted = fit_starts(plan.workers, fit_one, given, trainer.journal, trainer.progress)
    if interrupted:
        if trainer.history.interrupted:
            raise KeyboardInterrupt
        trainer.interrupt()
    for result in fits.values():
        history = History()
        history.take(result["history"])
        trainer.history.join(history)
    return [_fit(fittings[i], result) for i, result in sorted(fits.items())] or [fittings[0].drawn()]


def is_apart(plan: Plan, trainer: Trainer, guide: AutoFlow) -> bool:
    """Whether there are several starts, and workers for them.

    The processes of ``torch.distributed`` help with the steps of those that cannot be apart.
    """
    if plan.workers is None or plan.starts == 1:
        return False
    return not (isinstance(plan.workers, Ranks) and (trainer.leaves or guide.needs_model))


def _refuse(trainer: Trainer, guide: AutoFlow) -> None:
    refuse_parameters(trainer.leaves)
    if guide.needs_model:
        raise ValueError(
            f"VI.run: draws of {type(guide).__name__} are made with the model, so its starts cannot be in processes of "
            "their own; leave out executor="
        )


def _fit(fitting: Any, result: dict[str, Any]) -> Fit:
    layer = fitting.layer
    layer.load_state_dict(result["layer"])
    own, redrawn = result["own"], result["redrawn"]
    about = None if own is None else Draws(*own), None if redrawn is None else Redrawn(**redrawn)
    return Fit(layer, Draws(*result["draws"]), result["undefined"], result["failed"], *about)


def _parts(draws: Draws) -> list[Tensor]:
    return [draws.z, draws.log_p, draws.log_q]


@exclusive()
def fit_one(order: Order, loc: Tensor, seed: int) -> dict[str, Any]:
    """Fit from one start, in a worker.

    :raises KeyboardInterrupt: if it was interrupted.
    """
    guide, call, reason = unpacked(dict(order.guide))
    if call is None:
        raise not_found(reason)
    with with_dtype(order.dtype), seeded(seed), Progress(False) as progress:
        fitter = Fitter(guide)
        joint, trainer = fitter.alone(order.plan, call, order.begins)
        seconds = order.until - time.time()
        trainer.limit(Budget.of_training(seconds), None, progress)
        fitting = start(trainer, guide, order.plan, loc.to(joint.latents.init_loc()))
        for _ in drive([fitting]):
            pass
        trainer.close()
        if trainer.history.interrupted or fitting.fit is None:
            raise KeyboardInterrupt
        fit = fitting.fit
        layer = {name: value.detach().clone() for name, value in cast(Layer, fit.layer).state_dict().items()}
        return {
            "layer": layer,
            "draws": _parts(fit.draws),
            "own": None if fit.own is None else _parts(fit.own),
            "redrawn": None if fit.redrawn is None else asdict(fit.redrawn),
            "undefined": fit.undefined,
            "failed": fit.failed,
            "history": trainer.history.state(),
        }
