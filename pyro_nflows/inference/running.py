r"""One run of :class:`~pyro_nflows.VI`: from a guide and the model's arguments to draws, and nothing lost on the way.

What a run changes, the guide and what is known of it, changes at once when there is a fit; until then it is as it was.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ..diagnostics.findings import Subsampled
from ..diagnostics.verdict import Outcome, starts_disagree
from ..diagnostics.worth import effective, is_hopeless
from ..engine import Budget, Engine, Journal, OutOfTime, Progress, Trainer, threads_for, work_of
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers import Rescaled
from ..layers.base import Layer
from ..model.bound import BoundModel
from ..model.feasible import check_start, dispersed_start, is_feasible, named_plates, prior_points
from ..model.log_joint import LogJoint
from ..model.precise import already_double, in_double
from ..model.recovery import recovered_scales
from ..modes.gaussians import Frame
from ..objectives.draws import Draws
from ..system.exclusive import seeded, validation
from ..system.randomness import forked
from ..system.signals import before_sigterm
from .all_rows import over_all_rows
from .centered import carry, measured_centering
from .faults import faults_of
from .fit import fit_modes
from .fitted import Fit
from .foreseen import foreseen
from .kept import Keep, Ready, unless_kept
from .no_data import warn_of_no_data
from .plan import Plan
from .posterior import Call, Posterior
from .resume import Checkpoint, begin
from .schedule import suited
from .search import MAX_MATRIX, POOR, SEARCHING, Found, search
from .started import check_same_sites, place, take_coordinates
from .stationary import UNSURE, moves

#: Where time is limited, the share of training's that finding coordinates may take.
CENTERING = 0.5


class RowsAreSubsampled(Exception):
    """A run of the model has some of the latents only: :mod:`~pyro_nflows.inference.minibatch_run` is for that."""


class Fitter:
    """Fits a guide, at one call's arguments after another's; recordings of the model are used again.

    :param guide: what is fitted.
    """

    def __init__(self, guide: AutoFlow):
        self.guide = guide
        self.trainer: Trainer | None = None
        self.subsampled = Subsampled()
        self._form: Any = None
        self._is_eager = False

    @contextlib.contextmanager
    def ready(
        self,
        plan: Plan,
        call: Call,
        keep: Keep,
        checkpoint: Checkpoint | None = None,
        as_it_is: bool = False,
        source: Posterior | None = None,
    ) -> Iterator["Ready"]:
        """Within it, all is ready to fit the guide to the model at these arguments, and nothing is lost on the way.

        :param plan: how.
        :param call: the arguments.
        :param keep: called with each posterior that is better than what was there, or of which more is known.
        :param checkpoint: a file to go on from, and to keep the state of the run in.
        :param as_it_is: whether even a fresh guide's coordinates are to stay what they are.
        :param source: a fit whose place the guide takes first.
        :raises ValueError: if the model cannot be started.
        """
        budget, self._is_eager = Budget(plan.max_seconds), plan.engine is Engine.EAGER
        seed = checkpoint.seed if checkpoint is not None and checkpoint.seed is not None else plan.seed
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        journal, began = Journal() if checkpoint is None else checkpoint.journal(seed), time.perf_counter()
        progress = Progress(plan.progress_bar)
        with (
            foreseen(plan.engine),
            seeded(seed),
            before_sigterm(journal.write),
            progress,
            contextlib.ExitStack() as at_the_end,
        ):
            joint, loc = self._joint_at(call)
            at_the_end.callback(journal.write)
            warn_of_no_data(joint)
            layer, leaves = cast(Layer, self.guide.layer), joint.leaves(loc)
            size = sum(parameter.numel() for parameter in layer.parameters())
            threads = threads_for(size + work_of(joint, loc))
            with threads, unless_kept(self.guide, leaves, keep) as kept:
                if source is not None:
                    joint, loc = self._started(source, call, joint)
                    layer = cast(Layer, self.guide.layer)
                loc = begin(journal, joint, layer, leaves, loc)
                if not as_it_is:
                    joint, loc = self._centered(plan, call, journal, budget, progress, joint, leaves, loc)
                with contextlib.closing(self._trainer_at(plan, joint, leaves, journal)) as trainer:
                    trainer.limit(budget, plan.callback, progress)
                    yield Ready(trainer, joint, self._locs(plan, joint, loc), kept)
            if kept.posterior is not None:
                history = kept.posterior.history
                history.seconds = time.perf_counter() - began
                if checkpoint is not None and not (history.interrupted or history.out_of_time or history.stopped):
                    at_the_end.pop_all()
                    checkpoint.finish(seed, kept.posterior)

    def _joint_at(self, call: Call) -> tuple[LogJoint, Tensor]:
        """The model as a function of the guide's latents, and a point of finite density."""
        guide, (args, kwargs) = self.guide, call
        with validation(False), named_plates():  # an infeasible start is dealt with below
            guide.set_up(args, kwargs)
        if guide.subsamples or guide.crosses_minibatches(args, kwargs):
            raise RowsAreSubsampled
        joint = LogJoint(BoundModel(guide.bare_model, args, kwargs), guide.latents)
        loc, joint.gathers = check_start(joint), not self._is_eager
        joint.prepare()
        guide.follow(joint)
        guide.receive(args, kwargs, loc)
        return joint, loc

    def _started(self, source: Posterior, call: Call, joint: LogJoint) -> tuple[LogJoint, Tensor]:
        """The model as it is in a fit's coordinates, with the guide where that fit ended."""
        check_same_sites(self.guide, source)
        if take_coordinates(self.guide, source):
            joint, _ = self._joint_at(call)
        place(self.guide, source, joint, call)
        return joint, self.guide.plain_layer().end.loc.detach().clone()

    def _centered(
        self,
        plan: Plan,
        call: Call,
        journal: Journal,
        budget: Budget,
        progress: Progress,
        joint: LogJoint,
        leaves: list[Tensor],
        loc: Tensor,
    ) -> tuple[LogJoint, Tensor]:
        """The same in coordinates that suit the data, where the guide leaves them to be found."""
        guide = self.guide
        is_fresh = torch.equal(guide.plain_layer().end.loc, guide.init_loc())
        if not guide.finds_centering or not is_fresh:
            return joint, loc
        with forked(), validation(False):
            scales = {**recovered_scales(joint, loc), **guide.scales}
        if not scales and not joint.latents.centering:
            return joint, loc

        def measured() -> tuple[dict[str, Tensor], Tensor]:
            try:
                with budget.within(budget.after(CENTERING)):
                    return measured_centering(joint, scales, guide, plan, budget, progress, leaves, loc)
            except OutOfTime:  # coordinates then stay as the model is written
                return {}, loc[None]

        centering, z = journal.step("centering", measured)
        if not centering:
            return joint, loc
        guide.recenter(centering, {name: found for name, found in scales.items() if name in centering})
        joint, start = self._joint_at(call)
        carried = carry(joint, guide, z)
        return joint, carried if is_feasible(joint, carried) else start

    def _locs(self, plan: Plan, joint: LogJoint, loc: Tensor) -> list[Tensor]:
        """Where the fits start."""
        plan.objective.check_layer(self.guide.layer)  # type: ignore[arg-type]
        return [loc, *(dispersed_start(joint, loc) for _ in range(plan.starts - 1))]

    def _trainer_at(self, plan: Plan, joint: LogJoint, leaves: list[Tensor], journal: Journal) -> Trainer:
        """A trainer, with the recordings of an earlier run's where only the data have changed."""
        data, form, trainer = joint.bound.tensors, joint.bound.form, self.trainer
        rows, self.subsampled = over_all_rows(joint)
        if trainer is not None and (form, list(map(id, leaves))) == (self._form, list(map(id, trainer.leaves))):
            trainer = trainer.again(joint, data, rows)
        else:
            trainer = Trainer(joint, leaves, plan.engine, plan.progress_bar, data, all_rows=rows)
        self.trainer, self._form, trainer.journal, trainer.optim = trainer, form, journal, plan.optim
        return trainer

    def alone(self, plan: Plan, call: Call, begins: Tensor | None) -> tuple[LogJoint, Trainer]:
        """The model and a trainer, for one fit in a process that knows nothing else of its run.

        :param plan: how.
        :param call: the arguments.
        :param begins: where the run has found the model to be.
        """
        self._is_eager = plan.engine is Engine.EAGER
        joint, loc = self._joint_at(call)
        joint.start = loc if begins is None else begins.to(loc)
        return joint, self._trainer_at(plan, joint, joint.leaves(loc), Journal())

    def judge(self, plan: Plan, ready: "Ready", fits: Sequence[Fit], settles: bool | None = None) -> None:
        """Keep the best fit, look for what it misses, and say what keeps it from being good.

        :param plan: how it was fitted.
        :param ready: what fitting needed.
        :param fits: one a start.
        :param settles: whether draws whose weights are bad are moved until they settle; by default where no number of
            steps was asked for.
        """
        settles = plan.schedule.is_default if settles is None else settles
        trainer, joint, keep, progress = ready.trainer, ready.joint, ready.keep, ready.trainer.progress
        try:
            best, posterior = self._best(plan, ready, fits)
            hopeless = is_hopeless(best.draws.log_weight)
            regions: Sequence[Frame] = ()
            if not (trainer.history.interrupted or best.failed or hopeless or self._is_dear(trainer)):
                with progress.phase("search for other modes", follows="the verdict"):
                    found, posterior = self._search(plan, trainer, joint, best, posterior, settles)
                best, regions = found.fit, found.regions
                keep(posterior)
            trainer.history.failed = best.failed
            with progress.phase("verdict"):
                posterior = replace(posterior, faults=faults_of(trainer, joint, self.guide, best))
            keep(posterior)
            if posterior.verdict().outcome in UNSURE and not self.subsampled.plates:
                with progress.phase("chains that move the draws"):
                    posterior = self._moved(plan, trainer, best, posterior, regions, settles)
                keep(posterior)
        except KeyboardInterrupt:
            if trainer.history.interrupted:
                raise
            trainer.interrupt()
            if keep.posterior is None:  # so soon
                self._best(plan, ready, fits)

    def _best(self, plan: Plan, ready: "Ready", fits: Sequence[Fit]) -> tuple[Fit, Posterior]:
        """The fit with the highest bound, which is kept."""
        ready.trainer.close()
        best = max(fits, key=lambda fit: float(fit.elbo.value))
        posterior = self._posterior(plan, ready.trainer, ready.joint, best, [fit.draws for fit in fits])
        ready.keep(posterior)
        return best, posterior

    def _posterior(self, plan: Plan, trainer: Trainer, joint: LogJoint, fit: Fit, starts: Sequence[Draws]) -> Posterior:
        """A fit, of which nothing else is known yet."""
        return Posterior(
            self.guide,
            Rescaled(fit.layer, Whitened.END),
            joint.bound.call,
            fit.draws,
            starts,
            trainer.history,
            subsampled=self.subsampled,
            modes=self.guide.modes,
            leaves=[leaf.detach().clone() for leaf in trainer.leaves],
            seed=plan.seed,
            own=fit.own,
            redrawn=fit.redrawn,
        )

    def _search(
        self, plan: Plan, trainer: Trainer, joint: LogJoint, best: Fit, posterior: Posterior, settles: bool
    ) -> tuple[Found, Posterior]:
        """Is anything missing? If so, and the schedule is ours to choose, a second fit."""
        refit = functools.partial(fit_modes, trainer, self.guide, plan)
        ours = plan.schedule.is_default and plan.schedule.has_flow and not trainer.leaves and not self.guide.needs_model
        ours = ours and not self.guide.follows_plates and self.guide.latents.dim <= MAX_MATRIX
        until = trainer.budget.of_all(SEARCHING)
        prior = functools.partial(prior_points, joint.bound, joint.latents, until=until)
        precise = functools.partial(in_double, joint) if trainer.all_rows is None else already_double
        disagree = starts_disagree(posterior.evidence)
        brief = not plan.schedule.has_flow
        enough = min(POOR, suited(plan.schedule, trainer, best.layer).good_ess)
        refit_to = refit if ours else None
        found = search(trainer, self.guide, best, disagree, refit_to, prior, precise, brief, enough, hopes=settles)
        if found.modes is not None:
            again = self._posterior(plan, trainer, joint, found.fit, [found.fit.draws])
            return found, replace(again, missed=found.missed, modes=found.modes.sizes)
        return found, replace(posterior, missed=found.missed)

    def _moved(
        self,
        plan: Plan,
        trainer: Trainer,
        best: Fit,
        posterior: Posterior,
        regions: Sequence[Frame],
        settles: bool,
    ) -> Posterior:
        """The same with what becomes of its draws when chains move them."""
        history = trainer.history
        brief = not plan.schedule.has_flow or history.interrupted
        settles = settles and not (history.interrupted or history.unsearched)
        if not settles and posterior.verdict().outcome is not Outcome.RESAMPLED:
            return posterior  # only that outcome minds a drift
        found = moves(trainer, self.guide, best, regions, brief, settles)
        weighed = posterior.verdict().outcome is Outcome.RESAMPLED and found.drift is None
        worth = effective(best.draws.log_weight) * len(best.draws.z) if weighed else 0.0
        posterior = replace(posterior, faults=replace(posterior.faults, drift=found.drift))
        if found.settled is None or found.settled[1].ess <= worth:
            return posterior
        return posterior.moved(*found.settled)

    def _is_dear(self, trainer: Trainer) -> bool:
        """Whether ascents would take too long: they need the gradient over all rows thousands of times."""
        dear = bool(self.subsampled.plates) and (trainer.all_rows is None or not trainer.all_rows.is_cheap)
        self.subsampled = replace(self.subsampled, unsearched=dear)
        return dear
