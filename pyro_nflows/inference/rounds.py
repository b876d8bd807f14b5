r"""One fit as it goes along: which round of training comes next, and what came of the last one.

A fit begins with a Gaussian, the guide's affine end by itself (:class:`GaussianRounds`), and goes on with the whole
flow (:class:`FlowRounds`). :class:`Fitting` has both in turn. Whoever runs it asks for its ``next_round()``, trains
that, and says by ``done(well)`` that it is trained, until there is none; then ``fit`` is there.
"""

import copy
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..diagnostics.verdict import SETTLED, effective, has_light_tail
from ..engine import Round, Trainer
from ..flows.whitened import Whitened
from ..layers.base import Chain, Exactness, Layer
from ..modes.gaussians import Frame
from ..modes.pathfinder import best_start
from ..objectives.base import Gradient, Objective
from ..objectives.covering import Balanced, Covering
from ..objectives.draws import Draws, base_noise
from .elbo import ELBO
from .fitted import Fit, sound, weighed
from .mark import Mark, put
from .moments import moved
from .plan import Plan
from .schedule import Schedule

#: Below this ESS a few draws would have all the say in a covering round, and the plain ELBO is trained on.
COVERING_ESS = 0.3
#: A start so much narrower in one direction than in another may be stuck in a funnel: the plain start is
#: trained too.
NARROW = 1e-3
#: What the step sizes are multiplied by where a round ended below the Gaussian that it began from.
CAREFUL = 0.25


@dataclass(frozen=True)
class Task:
    """A round of training that a fit asks for, of its trainer."""

    trainer: Trainer
    layer: Layer
    objective: Objective
    gradient: Gradient
    round: Round
    title: str


class Stage(Protocol):
    """A part of a fit."""

    def next_round(self) -> Task | None:
        """The round to train next; None where the stage is complete."""

    def done(self, well: bool) -> None:
        """Take note that it is trained.

        :param well: whether its steps were finite.
        """


class Fitting:
    """A fit of a layer, stage after stage; ``fit`` is there once it is complete.

    :param trainer: holds the model, the engine and the bar.
    :param plan: what to maximise, and in which rounds.
    :param layer: is trained in place.
    :param init: where a fresh layer starts; None for one that is at its start already.
    """

    def __init__(self, trainer: Trainer, plan: Plan, layer: Whitened, init: Frame | None):
        self.trainer, self.plan, self.layer, self.init = trainer, plan, layer, init
        self.fit: Fit | None = None
        self._stage: Stage | None = None
        self._gaussian: GaussianRounds | None = None
        self._other: GaussianRounds | None = None
        self._is_narrow = False
        self._task: Task | None = None
        self._leaves: list[Tensor] = []

    def next_round(self) -> Task | None:
        """The round to train next; None where the fit is complete."""
        if self._stage is None and self.fit is None:
            self._stage = self._begin()
        while self._stage is not None:
            self._task = self._stage.next_round()
            if self._task is not None:
                self._leaves = [leaf.detach().clone() for leaf in self.trainer.leaves]
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
        first = schedule.rounds[0]
        num_steps = sum(part.num_steps for part in schedule.rounds if part.num_particles == first.num_particles)
        trainer.expect(self.layer, _objective(self.layer, plan, first, 0.0), plan.gradient, first, num_steps)
        trainer.sampler.expect(self.layer, schedule.num_samples)
        if self.init is None or not is_fresh(self.layer):
            return self._flow()
        if any(part.annealing for part in schedule.rounds):
            # An annealed fit begins on a flattened density, where a mode's Gaussian would be a bad place to be.
            self.init.place(self.layer)
            return self._flow()
        init = self.init

        def begin() -> tuple[Tensor, ...]:
            best_start(trainer.density, init).place(self.layer)
            return tuple(self.layer.end.parameters())

        with torch.no_grad():
            put(list(self.layer.end.parameters()), trainer.journal.step("start", begin))
        widths = self.layer.end.log_scale.exp()
        self._is_narrow = bool(widths.min() < NARROW * widths.max())
        self._gaussian = GaussianRounds(trainer, self.layer, schedule)
        return self._gaussian

    def _after(self, stage: Stage) -> Stage | None:
        """What comes after a stage that is complete."""
        if isinstance(stage, FlowRounds):
            self.fit = stage.result()
            return None
        gaussian, other = self._gaussian, self._other
        failed = gaussian is not None and gaussian.failed
        if other is None and (failed or self._is_narrow) and not self.trainer.history.interrupted:
            layer = copy.deepcopy(self.layer)
            if self.init is not None:
                self.init.place(layer)
            self._other = GaussianRounds(self.trainer, layer, self.plan.schedule)
            return self._other
        if other is not None and not _elbo(self.trainer, self.layer) > _elbo(self.trainer, other.layer):
            self.layer.load_state_dict(other.layer.state_dict())
            failed = other.failed
        return self._flow(failed)

    def _flow(self, failed: bool = False) -> Stage | None:
        """The rounds of the whole flow, unless the fit ends here."""
        if failed or self.trainer.history.interrupted:
            self.fit = self.drawn(failed)
            return None
        return FlowRounds(self.trainer, self.plan, self.layer)

    def _drift(self, layer: Layer) -> float:
        """How much the round has changed the log joint by moving the model's own parameters, in nats."""
        trainer, before = self.trainer, self._leaves
        after = [leaf.detach().clone() for leaf in trainer.leaves]
        draws = trainer.sampler.sample(layer, 500)
        with torch.no_grad():
            put(trainer.leaves, before)
            gain = draws.log_p - trainer.judged(draws.z)
            put(trainer.leaves, after)
        return float(gain.mean().abs())


class GaussianRounds:
    """The affine end by itself: the best Gaussian from where it is.

    :param trainer: holds the model.
    :param layer: its end is trained.
    :param schedule: sizes.
    """

    def __init__(self, trainer: Trainer, layer: Whitened, schedule: Schedule):
        self.trainer, self.layer, self.schedule = trainer, layer, schedule
        self.failed = self._is_complete = False
        self._num_done = 0

    def next_round(self) -> Task | None:
        """See :class:`Stage`."""
        if self._is_complete or self._num_done == self.schedule.max_ends:
            return None
        title = "Gaussian" + (f", round {self._num_done + 1}" if self._num_done else "")
        return Task(self.trainer, Chain(self.layer.end), ELBO(), Gradient.PATH, self.schedule.end, title)

    def done(self, well: bool) -> None:
        """See :class:`Stage`: only the model's own parameters, where they still move, ask for another round."""
        history = self.trainer.history
        self._num_done += 1
        self.failed = not well
        self._is_complete = not well or history.interrupted or history.drift < SETTLED


class FlowRounds:
    """Rounds of the whole flow until its draws are good, or there are no more.

    :param trainer: holds the model.
    :param plan: what to maximise, and in which rounds.
    :param layer: is trained.
    """

    def __init__(self, trainer: Trainer, plan: Plan, layer: Whitened):
        self.trainer, self.plan, self.layer = trainer, plan, layer
        self._begun = Mark(trainer, layer, plan.objective, plan.schedule.rounds[0].num_particles)
        self._num_done, self._ess, self._pace = 0, 0.0, 1.0
        self._failed = self._is_complete = False
        self._good: Draws | None = None

    def next_round(self) -> Task | None:
        """See :class:`Stage`."""
        if self._is_complete:
            return None
        number, plan = self._num_done + 1, self.plan
        chosen = plan.schedule.rounds[self._num_done]
        objective = _objective(self.layer, plan, chosen, self._ess)
        title = "flow" if number == 1 else f"flow, round {number}"
        chosen = replace(chosen, step_size=self._pace * chosen.step_size)
        return Task(self.trainer, self.layer, objective, plan.gradient, chosen, title)

    def done(self, well: bool) -> None:
        """See :class:`Stage`: where the flow is, and whether its draws are good."""
        trainer, schedule = self.trainer, self.plan.schedule
        self._num_done, self._failed = self._num_done + 1, not well
        self._is_complete = not well or trainer.history.interrupted or self._num_done == len(schedule.rounds)
        if self._is_complete:
            return
        draws = self._draws(min(2000, schedule.num_samples))
        self._ess = effective(sound(draws).log_weight)
        if self._begun.was_better(draws):
            self._begun.go_back()
            self._ess, self._pace = 0.0, CAREFUL * self._pace
        elif self._ess > schedule.good_ess and trainer.history.drift < SETTLED:
            self._look_closer(draws)

    def _draws(self, num_samples: int) -> Draws:
        """Draws of the flow; of a model with subsampled plates, after it is moved to where its weighted draws are."""
        trainer, schedule = self.trainer, self.plan.schedule
        if trainer.all_rows is None or trainer.history.interrupted:
            return trainer.sampler.sample(self.layer, num_samples)
        good_ess = min(schedule.good_ess, Schedule.good_ess)
        return moved(trainer, self.layer, good_ess, schedule.num_samples)

    def _look_closer(self, draws: Draws) -> None:
        """Whether all the draws that a verdict needs are as good as the first ones."""
        schedule = self.plan.schedule
        if len(draws.z) < schedule.num_samples:
            draws = self.trainer.sampler.sample(self.layer, schedule.num_samples)
        log_weight = sound(draws).log_weight
        self._ess = effective(log_weight)
        if self._ess > schedule.good_ess and (has_light_tail(log_weight) or not schedule.light_tails):
            self._good, self._is_complete = draws, True

    def result(self) -> Fit:
        """The fit: a flow that is worse than the Gaussian it began from gives way to it."""
        if self._good is not None:
            return weighed(self.layer, self._good)
        sampler, num = self.trainer.sampler, self.plan.schedule.num_samples
        if self.trainer.all_rows is not None:
            self._draws(num)
        draws = sampler.sample(self.layer, num)
        if not self.trainer.history.interrupted and self._begun.was_better(draws):  # or somebody would be waiting
            self._begun.go_back()
            draws = sampler.sample(self.layer, num)
        return weighed(self.layer, draws, self._failed)


def _objective(layer: Whitened, plan: Plan, chosen: Round, ess: float) -> Objective:
    """What a round maximises: in place of the default ELBO, its covering or balanced variant."""
    objective = plan.objective
    if type(objective) is not ELBO or plan.gradient is not Gradient.PATH or layer.exactness < Exactness.PROPER:
        return objective
    share = 0.5 if chosen.covering and ess > COVERING_ESS else 0.0
    return Balanced(objective.num_particles, share=share) if chosen.balanced else Covering(share)


def _elbo(trainer: Trainer, layer: Whitened) -> float:
    return float(trainer.sampler.sample(layer, 500).log_weight.nan_to_num(-torch.inf).mean())


@torch.no_grad()
def is_fresh(layer: Whitened) -> bool:
    """Whether the flow in front of the affine end is still the identity."""
    noise = base_noise(layer.flow, 16)
    y, log_weight = layer.flow(noise[:, : layer.input_dim], noise[:, layer.input_dim :])
    tolerance = 1e3 * torch.finfo(y.dtype).eps
    moved = torch.maximum((y - noise[:, : layer.input_dim]).abs().max(), log_weight.abs().max())
    return bool(moved < tolerance)
