r"""From a guide and a model to trained guides and weighed draws, by a schedule.

1. Start at ``init_loc_fn``, or at the best Gaussian on the way to a mode, whichever has the better ELBO. If draws of it
   show that it is the posterior already (:mod:`~pyro_nflows.inference.evident`), the fit is complete.
2. Fit the guide's affine end by itself (a Gaussian): the flow in front of it then works in whitened coordinates.
   If the initial Gaussian is nearly singular, a second one started at ``init_loc_fn`` is trained too, and the one
   with the higher ELBO is kept.
3. Train the whole flow by path gradients in rounds, each with a step size that falls to zero, until fresh draws
   have an ESS that more training would not better much and a k-hat below its threshold. In the last, longest round,
   draws of large weight count for more (:class:`~pyro_nflows.objectives.covering.Covering`).
4. Judge with fresh draws. A flow that is worse than the Gaussian it began from gives way to it.

:mod:`~pyro_nflows.inference.rounds` has the order of the rounds; here they are run, those of several fits together.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..checks import counted
from ..engine import Trainer
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..modes.gaussians import gaussian_at, gaussian_of
from ..modes.mixtures import Modes
from .fitted import Fit
from .plan import Plan
from .rounds import Fitting
from .schedule import Schedule
from .stages import Task


def fit_all(trainer: Trainer, guide: AutoFlow, plan: Plan, locs: Sequence[Tensor]) -> list[Fit]:
    """Run the schedule from each starting point; the guide's own layer is not touched.

    Starts train side by side, as an ensemble, where the model has no parameters of its own that they would share.

    :param trainer: holds the model, the engine and the bar.
    :param guide: its layer is copied.
    :param plan: what to maximise, and in which rounds.
    :param locs: points of finite density.
    :return: the fits; after an interrupt, those that have begun.
    """
    fittings = [start(trainer, guide, plan, loc) for loc in locs]
    together = not trainer.leaves
    try:
        groups = [fittings] if together else [[fitting] for fitting in fittings]
        for i, group in enumerate(groups):
            trainer.budget.share(len(groups) - i)
            prefix = (f"{len(fittings)} starts, " if len(fittings) > 1 else "") if together else _numbered(i)
            if not trainer.history.interrupted:
                for _ in drive(group, prefix):
                    pass
    except KeyboardInterrupt:
        if trainer.history.interrupted:
            raise
        trainer.interrupt()
    if trainer.history.interrupted:
        fresh = guide.plain_layer()
        begun = [each for each in fittings if each.fit is not None or not _equal(each.layer, fresh)]
        return [each.fit or each.drawn() for each in begun or fittings[:1]]
    return [each.fit for each in fittings if each.fit is not None]


def start(trainer: Trainer, guide: AutoFlow, plan: Plan, loc: Tensor) -> Fitting:
    """A fit of a copy of the guide's layer, from a point; for :func:`drive`."""
    layer = guide.plain_layer()
    is_there = torch.equal(layer.end.loc, loc)
    if plan.is_warm and not is_there:  # a start of its own
        layer = guide.make_layer(loc.clone(), guide.modes)
    init = gaussian_of(layer) if is_there else gaussian_at(layer, loc, guide.init_scale)
    return Fitting(trainer, plan, layer, init)


def fit_modes(trainer: Trainer, guide: AutoFlow, plan: Plan, modes: Modes) -> Fit:
    """Train the guide's flow from modes that were found, on a base that has them; see :func:`fit_all`.

    :raises KeyboardInterrupt: if there is one; the fit that there was before is then as good as it gets.
    """
    layer = guide.make_layer(modes.frame.loc, modes.sizes)
    modes.place(layer)
    fitting = Fitting(trainer, replace(plan, schedule=Schedule.of_modes()), layer, None)
    for _ in drive([fitting], counted(modes.sizes[0], "component") + ", "):
        pass
    if trainer.history.interrupted or fitting.fit is None:
        raise KeyboardInterrupt
    return fitting.fit


def drive(fittings: Iterable[Fitting], prefix: str = "", width: int | None = None) -> Iterator[Fitting]:
    """Train fits round by round: those that ask for the same round get it together.

    :param fittings: each is begun as a slot becomes free.
    :param prefix: before a round's title on the bar.
    :param width: how many are under way at a time; all, by default.
    :return: each, as it is complete.
    """
    fresh, waiting = iter(fittings), dict[Fitting, Task]()
    ready: list[tuple[Fitting, bool | None]] = [(fitting, None) for fitting in itertools.islice(fresh, width)]
    while ready:
        complete = []
        with _shown(ready, prefix):
            for fitting, well in ready:
                with fitting.trainer.stream or contextlib.nullcontext():
                    if well is not None:
                        fitting.done(well)
                    task = fitting.next_round()
                if task is None:
                    complete.append(fitting)
                else:
                    waiting[fitting] = task
        yield from complete
        ready = [(fitting, None) for fitting in itertools.islice(fresh, len(complete))]
        if not ready and waiting:
            chosen = _largest_group(waiting)
            tasks = [waiting.pop(fitting) for fitting in chosen]
            layers, trainers, first = [task.layer for task in tasks], [task.trainer for task in tasks], tasks[0]
            title = prefix + first.title
            wells = first.trainer.run_many(
                layers, first.objective, first.gradient, first.round, title, trainers, first.follows
            )
            ready = list(zip(chosen, wells))
            del chosen, tasks, layers, trainers, first  # fits that are complete need no memory


def _shown(ready: Sequence[tuple[Fitting, bool | None]], prefix: str) -> contextlib.AbstractContextManager[object]:
    """What is done between rounds: fresh fits find a start, and others weigh their draws."""
    fresh = [fitting for fitting, well in ready if well is None]
    if fresh:
        first = fresh[0]
        return first.trainer.progress.phase(prefix + "start", follows=first.plan.schedule.after_rounds(0))
    ready[0][0].trainer.progress.say("weighing draws")
    return contextlib.nullcontext()


def _largest_group(waiting: Mapping[Fitting, Task]) -> list[Fitting]:
    """Those that wait for the round that most wait for."""
    groups = [[fitting for fitting, task in waiting.items() if _alike(task, first)] for first in waiting.values()]
    return max(groups, key=len)


def _alike(a: Task, b: Task) -> bool:
    same = (a.round, a.gradient, type(a.objective)) == (b.round, b.gradient, type(b.objective))
    return same and vars(a.objective) == vars(b.objective) and a.trainer.shares(b.trainer)


def _equal(layer: Whitened, other: Whitened) -> bool:
    return all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), other.state_dict().values()))


def _numbered(index: int) -> str:
    return f"start {index + 1}, " if index else ""
