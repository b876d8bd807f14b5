r"""One fit as it goes along: which round of training comes next, and what came of the last one.

A fit starts from a Gaussian, or from one of the other latents for any values of a few
(:mod:`~pyro_nflows.inference.given_hubs`). Where that is not the posterior already, it goes on with rounds of training,
those of the affine end by itself and those of the whole flow (:mod:`~pyro_nflows.inference.stages`). Whoever runs it
asks for its ``next_round()``, trains that, and says by ``done(well)`` that it is trained, until there is none; then
there is ``fit``.
"""

import contextlib
import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..diagnostics.outliers import trimmed_elbo
from ..diagnostics.weights import Estimate
from ..engine import OutOfTime, Trainer
from ..engine.cost import MOMENT
from ..engine.sampler import LOOK
from ..flows.jko import Blocks
from ..flows.whitened import Whitened
from ..layers.base import Layer
from ..modes.gaussians import Frame
from ..modes.pathfinder import best_start
from ..modes.wasserstein import NUM_STEPS
from ..objectives.draws import Draws
from ..system.randomness import forked
from .descended import SHARE, can_descend, descended
from .evident import MOVED, SETTLED, evident, fresh_draws
from .fitted import NUM_FRESH, Fit, bound_of, is_fresh, sound, weighed
from .given_hubs import drawn_anew, put_given_hubs
from .mark import NUM_COMPARED, put, trimmed
from .moments import moved
from .moved import can_move, move
from .plan import Plan
from .redrawn import told_of
from .schedule import suited
from .stages import FlowRounds, GaussianRounds, Stage, Task, objective_of

#: A start so much narrower in one direction than in another may be stuck in a funnel: the plain start is
#: trained too.
NARROW = 1e-3
#: Points at which it is seen whether a flow is trained, where each is dear.
FEW_FRESH = 2
#: Where time is limited, the share of training's that finding a start may take.
STARTING = 0.3


class Fitting:
    """A fit of a layer, stage after stage; ``fit`` is there once it is complete.

    :param trainer: holds the model, the engine and the bar.
    :param plan: what to maximise, and in which rounds.
    :param layer: is trained in place.
    :param init: where a fresh layer starts; None for one that is at its start already.
    """

    def __init__(self, trainer: Trainer, plan: Plan, layer: Whitened, init: Frame | None):
        self.plan = replace(plan, schedule=suited(plan.schedule, trainer, layer))
        self.trainer, self.layer, self.init = trainer, layer, init
        self.fit: Fit | None = None
        self._stage: Stage | None = None
        self._gaussian: GaussianRounds | None = None
        self._other: GaussianRounds | None = None
        self._is_narrow = False
        self._task: Task | None = None
        self._leaves: list[Tensor] = []
        self._bound: Estimate | None = None

    def next_round(self) -> Task | None:
        """The round to train next; None where the fit is complete."""
        if self._stage is None and self.fit is None:
            self._stage = self._begin()
        while self._stage is not None:
            self._task = self._stage.next_round()
            if self._task is not None:
                self._leaves = [leaf.detach().clone() for leaf in self.trainer.leaves]
                self._bound = self._bound_of(self._task.layer) if self._leaves else None
                return self._task
            self._stage = self._after(self._stage)
        return None

    def done(self, well: bool) -> None:
        """Take note that the round is trained, and of how it moved the log joint by the model's own parameters.

        :param well: whether its steps were finite.
        """
        task, stage = self._task, self._stage
        if task is None or stage is None:
            raise RuntimeError("Fitting.done: no round is under way; call next_round first")
        if self._leaves:
            self.trainer.history.drift = self._drift(task.layer)
        stage.done(well)

    def drawn(self, failed: bool = False) -> Fit:
        """The layer as it is, with draws of it."""
        return weighed(self.layer, self.trainer.sampler.sample(self.layer, self.plan.schedule.num_samples), failed)

    def _begin(self) -> Stage | None:
        """A fresh layer's start is the best Gaussian on the way to a mode."""
        trainer, plan, schedule = self.trainer, self.plan, self.plan.schedule
        trainer.history.quick = not (schedule.has_flow or self.layer.is_gaussian)
        if schedule.has_flow:  # few draws are not worth compiling for
            trainer.sampler.expect(self.layer, schedule.num_samples)
        if self.init is None or plan.goes_on or not self._is_fresh():
            return self._go_on()
        starts_here = schedule.has_flow and isinstance(self.layer.flow, Blocks) and not self.layer.flow.whitened
        if starts_here or any(part.annealing for part in schedule.rounds):
            # An annealed fit begins on a flattened density, where a mode's Gaussian would be a bad place to be.
            self.init.place(self.layer)
            self._expect()
            return self._flow()
        self._place_start(self.init)
        if self._is_evident():
            return None
        descended = (schedule.is_default or self.layer.is_gaussian) and self._descend()
        if descended and (self.layer.is_gaussian or self._is_evident()):
            self.fit = self.fit or self.drawn()
            return None
        placed = None
        if schedule.is_default and schedule.has_flow:
            placed = put_given_hubs(trainer, self.layer, schedule)
        if placed is not None:
            anew = placed.redrawn
            if anew is None and not self._is_evident() and not placed.is_asked:
                anew = drawn_anew(trainer, self.layer, schedule)
            if anew is not None:
                self._keep_redrawn(anew)
            return None if self.fit else self._flow(knows_hubs=True)
        self._expect()
        widths = self.layer.end.log_scale.exp()
        self._is_narrow = bool(widths.min() < NARROW * widths.max())
        if descended and not self._is_narrow:
            return self._flow()
        self._gaussian = GaussianRounds(trainer, self.layer, schedule)
        return self._gaussian

    def _go_on(self) -> Stage | None:
        """From where the layer is, or was put: a Gaussian, or a mixture, by its own way."""
        if self.plan.is_warm:
            if self._is_evident():
                return None
            self._move_end()
        if self.layer.is_gaussian and self._descend():
            self.fit = self.drawn()
            return None
        self._expect()
        return self._flow()

    def _descend(self) -> bool:
        """Move the affine end, or the mixture, to the best one; whether that is done."""
        budget = self.trainer.budget
        with contextlib.suppress(OutOfTime), budget.within(budget.after(SHARE)):
            return self._descends()
        return False

    def _descends(self) -> bool:
        trainer, layer, schedule = self.trainer, self.layer, self.plan.schedule
        if not can_descend(trainer, layer):
            return False
        most = NUM_STEPS
        if layer.is_gaussian and not schedule.is_default:
            most = sum(part.num_steps for part in schedule.rounds)

        def go() -> tuple[Any, ...]:
            path = descended(trainer, layer, most)
            if path is None:
                return ()
            params = [parameter.detach().clone() for parameter in layer.parameters()]
            arrived = path.arrived or (layer.is_gaussian and not schedule.is_default)
            return params, [tuple(at) for at in path.clusters], path.elbos, arrived

        found = trainer.journal.step("descent", go)
        if not found:
            return False
        params, path, elbos, arrived = found
        trainer.history.add_path(path, elbos, layer.is_gaussian)
        trainer.progress.advance(len(elbos) - 1, elbos[-1])
        with torch.no_grad():
            put(list(layer.parameters()), params)
        return bool(arrived)

    def _is_evident(self) -> bool:
        """Whether the layer is the posterior already, as far as a verdict can tell; the fit is then there."""
        if not self.plan.schedule.is_default or self.trainer.leaves or (draws := self._evidence()) is None:
            return False
        self.trainer.history.was_right, self.fit = True, weighed(self.layer, draws)
        return True

    def _keep_redrawn(self, draws: Draws) -> None:
        """The fit is these draws, most latents of which are drawn anew, and the layer's own."""
        own = sound(fresh_draws(self.trainer, self.layer, self.plan.schedule))
        self.fit = replace(weighed(self.layer, draws), own=own, redrawn=told_of(self.layer, own))
        self.trainer.history.was_right = True

    def _expect(self) -> None:
        """Have the steps of the flow compiled meanwhile, unless it is not known that there will be time for any."""
        if self.trainer.budget.is_limited or not self.plan.schedule.has_flow:
            return
        if can_move(self.trainer, self.layer, self.plan):
            return
        plan, first = self.plan, self.plan.schedule.rounds[0]
        num_steps = sum(part.num_steps for part in plan.schedule.rounds if part.num_particles == first.num_particles)
        objective = objective_of(self.layer, plan, first, 0.0)
        self.trainer.expect(self.layer, objective, plan.gradient, first, num_steps)

    def _place_start(self, init: Frame) -> None:
        """Put the affine end to the best Gaussian on the way to a mode."""

        def begin() -> tuple[Tensor, ...]:
            budget, until = self.trainer.budget, self.trainer.budget.after(STARTING)
            with budget.within(until):
                best_start(self.trainer.density, init, until=until).place(self.layer)
            return tuple(self.layer.end.parameters())

        with torch.no_grad():
            put(list(self.layer.end.parameters()), self.trainer.journal.step("start", begin))

    def _evidence(self) -> Draws | None:
        """The draws of a start that is right already; a run that is resumed decides as it did before."""
        trainer, layer, schedule = self.trainer, self.layer, self.plan.schedule
        found: list[Draws | None] = []

        def look() -> tuple[Tensor, ...] | bool:
            found.append(evident(trainer, layer, schedule))
            return found[0] is not None and tuple(layer.end.parameters())

        end = trainer.journal.step("evidence", look)
        if not end:
            return None
        with torch.no_grad():
            put(list(layer.end.parameters()), end)
        return (found and found[0]) or fresh_draws(trainer, layer, schedule)

    def _after(self, stage: Stage) -> Stage | None:
        """What comes after a stage that is complete."""
        if isinstance(stage, FlowRounds):
            self.fit = stage.result()
            return None
        gaussian, other = self._gaussian, self._other
        failed = gaussian is not None and gaussian.failed
        if other is None and (failed or self._is_narrow) and not self.trainer.is_over():
            layer = copy.deepcopy(self.layer)
            if self.init is not None:
                self.init.place(layer)
            self._other = GaussianRounds(self.trainer, layer, self.plan.schedule)
            return self._other
        if other is not None and not trimmed(self.trainer, self.layer) > trimmed(self.trainer, other.layer):
            self.layer.load_state_dict(other.layer.state_dict())
            failed = other.failed
        return self._flow(failed)

    def _flow(self, failed: bool = False, knows_hubs: bool = False) -> Stage | None:
        """The rounds of the whole flow, unless the fit ends here."""
        if failed or self.trainer.is_over() or not self.plan.schedule.has_flow:
            self._move(failed)
            self.fit = self.drawn(failed)
            return None
        if can_move(self.trainer, self.layer, self.plan):
            move(self.trainer, self.layer, self.plan)
            self.fit = self.drawn()
            return None
        return FlowRounds(self.trainer, self.plan, self.layer, knows_hubs)

    def _move(self, failed: bool) -> None:
        """A Gaussian that no flow follows is moved to the moments of its weighed draws, if that does any good."""
        trainer, schedule = self.trainer, self.plan.schedule
        if schedule.has_flow or failed or trainer.is_over() or trainer.leaves or not self._is_fresh():
            return
        self._move_end()

    def _move_end(self) -> None:
        """The affine end to the moments of weighed draws, if that does any good."""
        end = self.trainer.journal.step("moved", self._moved_end)
        with torch.no_grad():
            put(list(self.layer.end.parameters()), end)

    def _moved_end(self) -> tuple[Tensor, ...]:
        moved(self.trainer, self.layer, SETTLED, min(MOVED, self.plan.schedule.num_samples))
        return tuple(parameter.detach().clone() for parameter in self.layer.end.parameters())

    def _is_fresh(self) -> bool:
        """Whether nothing has been trained yet; by fewer points where the flow needs a model that is slow."""
        budget, costs = self.trainer.budget, self.trainer.sampler.costs
        is_slow = budget.is_limited and costs.at(self.layer, budget.seconds).of(NUM_FRESH) > MOMENT * budget.seconds
        return is_fresh(self.layer, FEW_FRESH if is_slow else NUM_FRESH)

    def _bound_of(self, layer: Layer) -> Estimate:
        """A layer's ELBO; the random numbers to come do not depend on whether this is asked."""
        with forked():
            return bound_of(self.trainer.sampler.sample(layer, NUM_COMPARED, LOOK).log_weight, trimmed_elbo)

    def _drift(self, layer: Layer) -> float:
        """By how many nats the model's own parameters have mattered in the round.

        That is what they change the log joint by at the same latents, or, if that is less, what the ELBO has changed
        by: where latents make up for parameters, both can wander for ever, and each place is as good as the next.
        """
        trainer, before = self.trainer, self._leaves
        after = [leaf.detach().clone() for leaf in trainer.leaves]
        draws = trainer.sampler.sample(layer, NUM_COMPARED, LOOK)
        with torch.no_grad():
            put(trainer.leaves, before)
            gain = draws.log_p - trainer.judged(draws.z)
            put(trainer.leaves, after)
        bound, earlier = bound_of(draws.log_weight, trimmed_elbo), self._bound
        if earlier is None:
            return float(gain.mean().abs())
        risen = (bound.value - earlier.value).abs() + torch.hypot(bound.se, earlier.se)
        return min(float(gain.mean().abs()), float(risen.nan_to_num(nan=torch.inf)))
