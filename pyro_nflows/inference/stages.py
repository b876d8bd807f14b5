r"""The parts of a fit: its affine end by itself, then the whole flow. Each asks for its rounds one by one."""

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ..diagnostics.outliers import is_cut
from ..diagnostics.verdict import SETTLED
from ..diagnostics.worth import HALF, effective, is_nearly_equal, k_limit, smoothed_worth, tail_index
from ..engine import Round, Trainer
from ..engine.sampler import LOOK
from ..flows.hubs import GivenHubs
from ..flows.whitened import Whitened
from ..layers.base import Chain, Exactness, Layer
from ..objectives.base import Gradient, Objective
from ..objectives.covering import Balanced, Covering, Within
from ..objectives.draws import Draws
from ..system.randomness import forked
from .elbo import ELBO
from .fitted import Fit, sound, weighed
from .mark import Mark
from .moments import moved
from .plan import Plan
from .schedule import Schedule

#: Below this ESS a few draws would have all the say in a covering round, and the plain ELBO is trained on.
COVERING_ESS = 0.3
#: Where less than this ESS is asked for, k-hat has to be below its threshold by its standard error.
NEARLY = 0.8
#: There, the share of that ESS which the first draws have to show for a look at all: weights with a tail are noisy.
HOPEFUL = 0.75
#: And what a round has to multiply the ESS by for the next one, of as many steps or more, to be worth its time.
GAIN = 1.25
#: Draws by which it is seen whether the model's density is zero at some.
NUM_CUT = 100
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
    follows: str = ""


class Stage(Protocol):
    """A part of a fit."""

    def next_round(self) -> Task | None:
        """The round to train next; None where the stage is complete."""

    def done(self, well: bool) -> None:
        """Take note that it is trained.

        :param well: whether its steps were finite.
        """


class GaussianRounds:
    """The affine end by itself: the best Gaussian from where it is.

    :param trainer: holds the model.
    :param layer: its end is trained.
    :param schedule: sizes.
    """

    def __init__(self, trainer: Trainer, layer: Whitened, schedule: Schedule):
        self.trainer, self.layer, self.schedule = trainer, layer, schedule
        self.failed = self._is_complete = self._is_cut = False
        self._num_done = 0

    def next_round(self) -> Task | None:
        """See :class:`Stage`."""
        if self._is_complete or self._num_done == self.schedule.max_ends:
            return None
        title = "Gaussian" + (f", round {self._num_done + 1}" if self._num_done else "")
        follows, end = self.schedule.after_rounds(0), Chain(self.layer.end)
        self._is_cut = self._is_cut or reaches_beyond(self.trainer, end)
        objective: Objective = Within(0.0) if self._is_cut else ELBO()
        return Task(self.trainer, end, objective, Gradient.PATH, self.schedule.end, title, follows)

    def done(self, well: bool) -> None:
        """See :class:`Stage`: only the model's own parameters, where they still move, ask for another round."""
        self._num_done += 1
        if not well and not self._is_cut and reaches_beyond(self.trainer, self.layer):
            return  # the next round knows of it
        self.failed = not well
        self._is_complete = not well or self.trainer.is_over() or self.trainer.history.drift < SETTLED


class FlowRounds:
    """Rounds of the whole flow until its draws are good, or there are no more.

    Of a chain or field given its variances there are two at least: the flow is slow to get to where a variance is near
    zero, and no weight shows what is not drawn yet; unless all the posterior of these was looked at before.

    :param trainer: holds the model.
    :param plan: what to maximise, and in which rounds.
    :param layer: is trained.
    :param knows_hubs: whether it was put where the posterior of its hubs says.
    """

    def __init__(self, trainer: Trainer, plan: Plan, layer: Whitened, knows_hubs: bool = False):
        self.trainer, self.plan, self.layer = trainer, plan, layer
        self._is_slow = isinstance(layer.flow, GivenHubs) and not knows_hubs
        self._begun = Mark(trainer, layer, plan.objective, plan.schedule.rounds[0].num_particles)
        self._num_done, self._ess, self._pace = 0, 0.0, 1.0
        self._failed = self._is_complete = self._is_cut = False
        self._good: Draws | None = None
        self._best: Mark | None = None
        self._best_ess = COVERING_ESS

    def next_round(self) -> Task | None:
        """See :class:`Stage`."""
        if self._is_complete:
            return None
        number, plan = self._num_done + 1, self.plan
        chosen = plan.schedule.rounds[self._num_done]
        self._is_cut = self._is_cut or (number == 1 and reaches_beyond(self.trainer, self.layer))
        objective = objective_of(self.layer, plan, chosen, self._ess, self._is_cut)
        title = "flow" if number == 1 else f"flow, round {number}"
        settles = chosen.settles and not self.trainer.leaves  # or parameters of the model's own could still creep
        chosen = replace(chosen, step_size=self._pace * chosen.step_size, settles=settles)
        follows = plan.schedule.after_rounds(number)
        return Task(self.trainer, self.layer, objective, plan.gradient, chosen, title, follows)

    def done(self, well: bool) -> None:
        """See :class:`Stage`: where the flow is, and whether its draws are good."""
        trainer, schedule = self.trainer, self.plan.schedule
        last = self._num_done + 1 == len(schedule.rounds)
        knows = self._is_cut or last  # else the next round will know of the edge
        well = well or (not knows and reaches_beyond(trainer, self.layer))
        self._num_done, self._failed = self._num_done + 1, not well
        self._is_complete = not well or self._num_done == len(schedule.rounds) or trainer.is_over()
        if self._is_complete:
            return
        draws, before = self._draws(min(2000, schedule.num_samples)), self._ess
        self._ess = smoothed_worth(sound(draws).log_weight)
        self._is_cut = self._is_cut or (trainer.all_rows is None and is_cut(draws.log_p))
        if self._begun.was_better(draws):
            self._begun.go_back()
            self._ess, self._pace = 0.0, CAREFUL * self._pace
            return
        share = 1.0 if schedule.good_ess > NEARLY else HOPEFUL
        may_end = self._num_done > 1 or not self._is_slow
        if may_end and self._ess > share * schedule.good_ess and trainer.history.drift < SETTLED:
            draws = self._look_closer(draws)
        self._is_complete |= may_end and self._gains_little(before, sound(draws).log_weight)
        if self._ess > self._best_ess and not (self._is_complete or trainer.leaves) and schedule.is_default:
            self._best = Mark(trainer, self.layer, self.plan.objective, schedule.rounds[0].num_particles)
            self._best_ess = self._ess

    def _gains_little(self, before: float, log_weight: Tensor) -> bool:
        """Whether a round has hardly done any good, and there is no heavy tail that another could mend.

        :param before: the ESS that it began from.
        :param log_weight: of draws after it.
        """
        plan, is_moving = self.plan, not self.trainer.history.drift < SETTLED
        if plan.schedule.good_ess > NEARLY or not before > COVERING_ESS / 2 or is_moving:
            return False
        return self._ess < GAIN * before and tail_index(log_weight) < k_limit(len(log_weight), 0.0)

    def _draws(self, num_samples: int) -> Draws:
        """Draws of the flow; of a model with subsampled plates, after it is moved to where its weighted draws are."""
        trainer, schedule = self.trainer, self.plan.schedule
        if trainer.all_rows is None or trainer.history.interrupted:
            return trainer.sampler.sample(self.layer, num_samples, LOOK)
        good_ess = min(schedule.good_ess, Schedule.good_ess)
        return moved(trainer, self.layer, good_ess, schedule.num_samples)

    def _look_closer(self, draws: Draws) -> Draws:
        """All the draws that a verdict needs; the fit is complete if they are as good as the first ones."""
        schedule = self.plan.schedule
        if len(draws.z) < schedule.num_samples:
            draws = self.trainer.sampler.sample(self.layer, schedule.num_samples)
        log_weight = sound(draws).log_weight
        self._ess = (effective if schedule.good_ess > NEARLY else smoothed_worth)(log_weight)
        limit = k_limit(len(log_weight), 1.0 if schedule.good_ess > NEARLY else 0.0)
        light = tail_index(log_weight) < limit or is_nearly_equal(log_weight, self._ess)
        is_enough = self._ess > schedule.good_ess and effective(log_weight) >= min(HALF, schedule.good_ess)
        if is_enough and (light or not schedule.light_tails):
            self._good, self._is_complete = draws, True
        return draws

    def result(self) -> Fit:
        """The fit: a flow worse than an earlier round's, or than the Gaussian it began from, gives way to that."""
        if self._good is not None:
            return weighed(self.layer, self._good)
        sampler, num = self.trainer.sampler, self.plan.schedule.num_samples
        if self.trainer.all_rows is not None:
            self._draws(num)
        draws = sampler.sample(self.layer, num)
        if self.trainer.history.interrupted:  # somebody is waiting
            return weighed(self.layer, draws, self._failed)
        if self._begun.was_better(draws):
            self._begun.go_back()
            draws = sampler.sample(self.layer, num)
        else:
            draws = self._before_the_last(sound(draws).log_weight) or draws
        return weighed(self.layer, draws, self._failed)

    def _before_the_last(self, log_weight: Tensor) -> Draws | None:
        """The draws of the best round before the last, to which the layer is put, where the last has spoilt the tail.

        K-hat is noisy: two looks are one more chance to come out below its threshold. So the earlier draws have to be
        below it by its standard error.

        :param log_weight: of the last round's draws.
        """
        num = len(log_weight)
        if self._best is None or not tail_index(log_weight) >= k_limit(num, 1.0):
            return None
        draws = self._best.draws(num)
        before = sound(draws).log_weight
        if not (tail_index(before) < k_limit(num, 0.0) and effective(before) >= effective(log_weight)):
            return None
        self._best.put_back()
        return draws


def reaches_beyond(trainer: Trainer, layer: Layer) -> bool:
    """Whether the model's density is zero at more than a few of a layer's draws.

    The random numbers to come do not depend on whether this is asked.

    :param trainer: has the model.
    :param layer: draws.
    """
    if trainer.all_rows is not None or trainer.history.interrupted:
        return False
    with forked():
        draws = trainer.sampler.sample(layer, NUM_CUT, LOOK)
    return is_cut(draws.log_p)


def objective_of(layer: Whitened, plan: Plan, chosen: Round, ess: float, cut: bool = False) -> Objective:
    """What a round maximises: in place of the default ELBO, its covering or balanced variant.

    :param layer: to be trained.
    :param plan: as it was asked for.
    :param chosen: the round.
    :param ess: of draws before it.
    :param cut: whether the layer has draws where the model's density is zero.
    """
    objective = plan.objective
    if type(objective) is not ELBO or plan.gradient is not Gradient.PATH or layer.exactness < Exactness.PROPER:
        return objective
    share = 0.5 if chosen.covering and ess > COVERING_ESS else 0.0
    if chosen.balanced:
        return Balanced(objective.num_particles, share=share)
    return Within(share) if cut else Covering(share)
