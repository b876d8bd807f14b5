r"""The schedule: from a guide and a model to a trained guide and weighed draws.

1. Start at ``init_loc_fn``, or at the best Gaussian on the way to a mode, whichever has the better ELBO.
2. Fit the guide's affine end by itself (a Gaussian): the flow in front of it then works in whitened coordinates.
   If the initial Gaussian is nearly singular, a second one started at ``init_loc_fn`` is trained too, and the one
   with the higher ELBO is kept.
3. Train the whole flow by path gradients in rounds, each with a step size that falls to zero, until fresh draws
   have an ESS that more training would not better much and a k-hat below its threshold. In the last, longest round,
   draws of large weight count for more (:class:`~pyro_nflows.objectives.covering.Covering`).
4. Judge with fresh draws. A flow that is worse than the Gaussian it began from gives way to it.
"""

import copy
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..diagnostics.verdict import SETTLED, effective, has_light_tail
from ..engine import Round, Trainer
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers.base import Chain, Exactness
from ..modes.mixtures import Modes, place
from ..modes.pathfinder import Gaussian, best_start
from ..objectives.base import Gradient, Objective
from ..objectives.covering import Balanced, Covering
from ..objectives.draws import Draws, base_noise
from .elbo import ELBO
from .fitted import Fit, sound, weighed
from .mark import Mark, put
from .together import Fitting, Task, drive

#: Below this ESS a few draws would have all the say in a covering round, and the plain ELBO is trained on.
COVERING_ESS = 0.3
#: A start so much narrower in one direction than in another may be stuck in the throat of a funnel: the plain start is
#: trained too.
NEEDLE = 1e-3
#: What the step sizes are multiplied by where a round ended below the Gaussian that it began from.
CAREFUL = 0.25


@dataclass(frozen=True)
class Schedule:
    """Sizes of the schedule's parts.

    :param end: the round that fits the affine end alone.
    :param rounds: rounds of the whole flow, run until the ESS is good; with one number of particles, they share one
        compiled step.
    :param num_draws: fresh draws for the verdict.
    :param max_ends: rounds of the affine end alone, more than one only while the model's own parameters move.
    :param good_ess: an ESS at which no further round is run.
    :param light_tails: whether k-hat must be below its threshold for that, too.
    """

    end: Round = field(default_factory=lambda: Round(800, 64, 2e-2))
    rounds: Sequence[Round] = (
        Round(600, 128, 5e-3),
        Round(2400, 128, 3e-3),
        Round(4800, 128, 2e-3, covering=True),
    )
    num_draws: int = 22_500
    max_ends: int = 30
    good_ess: float = 0.95
    light_tails: bool = True

    @staticmethod
    def of_modes() -> "Schedule":
        """For a flow that starts from modes that were found."""
        sizes = (1200, 3e-3, False), (1600, 1e-3, True), (4000, 1e-3, True)
        return Schedule(rounds=[Round(n, 128, rate, covering=late, balanced=True) for n, rate, late in sizes])

    @staticmethod
    def of(num_steps: int | None, num_particles: int, annealing: float) -> "Schedule":
        """The default, or so many steps of the flow, whatever they reach.

        The last quarter of these is covering, unless annealed.

        :param num_steps: None for the default, or 4,000 if another argument is not left to it.
        :param num_particles: 1 for the default.
        :param annealing: share of the steps.
        """
        if num_steps is None and num_particles == 1 and not annealing:
            return Schedule()
        num_steps, num_particles = num_steps or 4000, num_particles if num_particles > 1 else 128
        end = Round(min(800, max(1, num_steps // 2)), 64, 2e-2)
        last = 0 if annealing else num_steps // 4
        rounds = [Round(num_steps - last, num_particles, 3e-3, annealing, balanced=annealing > 0)]
        if last:
            rounds.append(Round(last, num_particles, 1e-3, covering=True))
        return Schedule(end, rounds, max_ends=1, good_ess=math.inf)

    @property
    def is_default(self) -> bool:
        """Whether sizes are left to the schedule, which may go on until the draws are good."""
        return self.good_ess < math.inf


def fit_all(
    trainer: Trainer,
    guide: AutoFlow,
    objective: Objective,
    gradient: Gradient,
    schedule: Schedule,
    locs: Sequence[Tensor],
) -> list[Fit]:
    """Run the schedule from each starting point; the guide's own layer is not touched.

    Starts train side by side, as an ensemble, where the model has no parameters of its own that they would share.

    :param trainer: holds the model, the engine and the bar.
    :param guide: its layer is copied.
    :param objective: what to maximise.
    :param gradient: its estimator.
    :param schedule: sizes.
    :param locs: points of finite density.
    """
    layers, found = [guide.plain_layer() for _ in locs], dict[int, Fit]()
    begins = (_begin(trainer, guide, layer, schedule, loc) for layer, loc in zip(layers, locs))
    fits = [_fit(trainer, layer, begin, objective, gradient, schedule) for layer, begin in zip(layers, begins)]
    try:
        found.update(_driven(trainer, fits))
    except KeyboardInterrupt:
        if trainer.history.interrupted:
            raise
        trainer.interrupt()
    if not trainer.history.interrupted:
        return [found[i] for i in range(len(fits))]
    begun = [i for i, layer in enumerate(layers) if i in found or not _equal(layer, guide.plain_layer())]
    return [found.get(i) or _drawn(trainer, layers[i], schedule) for i in begun or [0]]


def _driven(trainer: Trainer, fits: Sequence[Fitting[Fit]]) -> Iterator[tuple[int, Fit]]:
    """Each fit with its place, as it is done."""
    if not trainer.leaves:
        yield from drive([(trainer, fit) for fit in fits], f"{len(fits)} starts, " if len(fits) > 1 else "")
        return
    for i, fit in enumerate(fits):
        if not trainer.history.interrupted:
            yield from ((i, done) for _, done in drive([(trainer, fit)], f"start {i + 1}, " if i else ""))


def _equal(layer: Whitened, other: Whitened) -> bool:
    return all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), other.state_dict().values()))


def start(
    trainer: Trainer, guide: AutoFlow, objective: Objective, gradient: Gradient, schedule: Schedule, loc: Tensor
) -> Fitting[Fit]:
    """A fit of a copy of the guide's layer, from a point; for :func:`drive`."""
    layer = guide.plain_layer()
    return _fit(trainer, layer, _begin(trainer, guide, layer, schedule, loc), objective, gradient, schedule)


def fit_modes(trainer: Trainer, guide: AutoFlow, objective: Objective, gradient: Gradient, modes: Modes) -> Fit:
    """Train the guide's flow from modes that were found, on a base that has them; see :func:`fit_all`.

    :raises KeyboardInterrupt: if there is one; the fit that there was before is then as good as it gets.
    """
    layer = guide.make_layer(modes.frame.loc, modes.sizes)
    modes.place(layer)
    fitting = _fit(trainer, layer, None, objective, gradient, Schedule.of_modes())
    fit = next(fit for _, fit in drive([(trainer, fitting)], "several modes, "))
    if trainer.history.interrupted:
        raise KeyboardInterrupt
    return fit


def _fit(
    trainer: Trainer,
    layer: Whitened,
    begin: Generator[Task, None, bool] | None,
    objective: Objective,
    gradient: Gradient,
    schedule: Schedule,
) -> Fitting[Fit]:
    first = schedule.rounds[0]
    num_steps = sum(plan.num_steps for plan in schedule.rounds if plan.num_particles == first.num_particles)
    trainer.expect(layer, _objective(layer, objective, gradient, first, 0.0), gradient, first, num_steps)
    trainer.sampler.expect(layer, schedule.num_draws)
    failed = False if begin is None else (yield from begin)
    if failed or trainer.history.interrupted:
        return _drawn(trainer, layer, schedule, failed)
    return weighed(layer, *(yield from _train(trainer, layer, objective, gradient, schedule)))


def _drawn(trainer: Trainer, layer: Whitened, schedule: Schedule, failed: bool = False) -> Fit:
    """A layer as it is."""
    return weighed(layer, trainer.sampler.sample(layer, schedule.num_draws), failed)


def _begin(
    trainer: Trainer, guide: AutoFlow, layer: Whitened, schedule: Schedule, loc: Tensor
) -> Generator[Task, None, bool]:
    """A fresh layer's affine end: where to start, and the best Gaussian from there; whether that failed."""
    if not is_fresh(layer):
        return False
    init = Gaussian(loc, guide.init_scale * torch.eye(len(loc)).to(loc))
    if any(plan.annealing for plan in schedule.rounds):
        # An annealed fit begins on a flattened density, where a mode's Gaussian would be a bad place to be.
        place(layer, init)
        return False
    best = Gaussian(*trainer.journal.step("start", lambda: tuple(best_start(trainer.slope, init))))
    place(layer, best)
    failed = yield from _end(trainer, layer, schedule)
    widths = best.scale_tril.diagonal()
    if (failed or bool(widths.min() < NEEDLE * widths.max())) and not trainer.history.interrupted:
        other = copy.deepcopy(layer)
        place(other, init)
        other_failed = yield from _end(trainer, other, schedule)
        if not _elbo(trainer, layer) > _elbo(trainer, other):
            layer.load_state_dict(other.state_dict())
            failed = other_failed
    return failed


def _end(trainer: Trainer, layer: Whitened, schedule: Schedule) -> Generator[Task, None, bool]:
    """The affine end by itself: the best Gaussian from where it is; whether that failed."""
    for i in range(schedule.max_ends):
        name = "Gaussian" + (f", round {i + 1}" if i else "")
        well = yield from _round(Task(trainer, Chain(layer.end), ELBO(), Gradient.PATH, schedule.end, name))
        if not well:
            return True
        if trainer.history.interrupted or trainer.history.drift < SETTLED:
            break
    return False


def _train(
    trainer: Trainer, layer: Whitened, objective: Objective, gradient: Gradient, schedule: Schedule
) -> Generator[Task, None, tuple[Draws, bool]]:
    """Rounds of the whole flow until its draws are good; those draws, and whether that failed."""
    begun, ess, pace, well = Mark(trainer, layer, objective, schedule.rounds[0].num_particles), 0.0, 1.0, True
    for i, plan in enumerate(schedule.rounds):
        name = "flow" if i == 0 else f"flow, round {i + 1}"
        chosen = _objective(layer, objective, gradient, plan, ess)
        well = yield from _round(Task(trainer, layer, chosen, gradient, replace(plan, rate=pace * plan.rate), name))
        if not well or trainer.history.interrupted or i == len(schedule.rounds) - 1:
            break
        draws = trainer.sampler.sample(layer, min(2000, schedule.num_draws))
        ess = effective(sound(draws).log_weight)
        if begun.was_better(draws):
            begun.go_back()
            ess, pace = 0.0, CAREFUL * pace
        elif ess > schedule.good_ess and trainer.history.drift < SETTLED:
            if len(draws.z) < schedule.num_draws:
                draws = trainer.sampler.sample(layer, schedule.num_draws)
            log_weight = sound(draws).log_weight
            ess = effective(log_weight)
            if ess > schedule.good_ess and (has_light_tail(log_weight) or not schedule.light_tails):
                return draws, False
    draws = trainer.sampler.sample(layer, schedule.num_draws)
    if not trainer.history.interrupted and begun.was_better(draws):  # after an interrupt, somebody is waiting
        begun.go_back()
        draws = trainer.sampler.sample(layer, schedule.num_draws)
    return draws, not well


def _round(task: Task) -> Generator[Task, None, bool]:
    """A round, and what it did to the log joint by moving the model's own parameters; whether it went well."""
    trainer = task.trainer
    before = [leaf.detach().clone() for leaf in trainer.leaves]
    yield task
    if not before:
        return task.well
    after = [leaf.detach().clone() for leaf in trainer.leaves]
    draws = trainer.sampler.sample(task.layer, 500)
    with torch.no_grad():
        put(trainer.leaves, before)
        gain = draws.log_p - trainer.log_joint(draws.z)
        put(trainer.leaves, after)
    trainer.history.drift = float(gain.mean().abs())
    return task.well


def _objective(layer: Whitened, objective: Objective, gradient: Gradient, plan: Round, ess: float) -> Objective:
    """What a round maximises: in place of the default ELBO, its covering or balanced variant."""
    if type(objective) is not ELBO or gradient is not Gradient.PATH or layer.exactness < Exactness.PROPER:
        return objective
    share = 0.5 if plan.covering and ess > COVERING_ESS else 0.0
    return Balanced(objective.num_particles, share=share) if plan.balanced else Covering(share)


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
