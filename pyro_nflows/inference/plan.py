r"""``Plan``: how fits are made, as one value that is checked once and handed around."""

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

from ..checks import check_flags, check_sizes
from ..engine import Callback, Choice, Engine, EngineWarning
from ..guides import AutoFlow
from ..objectives.base import Gradient
from ..system.ranks import ALONE, Ranks
from .elbo import ELBO
from .schedule import EFFORTS, Schedule

#: Independent fits of a thorough effort.
STARTS = 3


@dataclass(frozen=True)
class Plan:
    """What is maximised, by which gradient, in which rounds, from how many starts, and by which engine.

    :param objective: what to maximise.
    :param schedule: the rounds and their sizes.
    :param engine: what runs the steps; None for the fastest.
    :param num_starts: independent fits; None for as many as the effort has.
    :param effort: ``"quick"``, ``"default"`` or ``"thorough"``.
    :param search: whether to look for mass that a fit misses, and to fit again where there is some.
    :param is_warm: whether the guide is where another fit ended, which may be right here, too.
    :param goes_on: whether a fit is trained from where it is, even if it was right there.
    :param max_seconds: that a run may take; infinitely many for no limit.
    :param callback: is shown where training is, and may end it.
    :param optim: what takes the steps; None for Adam.
    :param seed: of the random numbers; None for some that torch's own decide.
    :param progress_bar: whether to show one.
    :param workers: an executor by which starts are fitted in other processes, or those of ``torch.distributed``; None
        for this one.
    """

    objective: ELBO = field(default_factory=ELBO)
    schedule: Schedule = field(default_factory=Schedule)
    engine: Engine | None = None
    num_starts: int | None = None
    effort: str = "default"
    search: bool = True
    is_warm: bool = False
    goes_on: bool = False
    max_seconds: float = math.inf
    callback: Callback | None = None
    optim: Choice | None = None
    seed: int | None = None
    progress_bar: bool = True
    workers: Any = None

    @staticmethod
    def asked(
        who: str,
        *,
        objective: Any = None,
        engine: Any = None,
        annealing: Any = 0.0,
        seed: Any = None,
        num_steps: int | None = None,
        num_starts: int | None = None,
        effort: Any = "default",
        max_seconds: Any = None,
        callback: Any = None,
        optim: Any = None,
        schedule: Schedule | None = None,
        search: bool = True,
        progress_bar: bool = True,
    ) -> "Plan":
        """A plan from what a user has asked for, checked.

        :param who: takes these arguments, for the messages.
        :param annealing: share of the steps in which ``log p`` is flattened.
        :param num_steps: of the flow; None leaves them to the schedule.
        :param effort: which schedule, where the other arguments leave that to it.
        :param schedule: by default the one for ``num_steps``, ``annealing`` and the objective's number of particles.
        :raises TypeError: if an argument has the wrong type.
        :raises ValueError: if it has a value out of range.
        """
        if objective is not None and not isinstance(objective, ELBO):
            raise TypeError(f"{who}: objective must be a pyro_nflows ELBO or IWAE, got {type(objective).__name__}")
        if engine is not None and engine not in [e.value for e in Engine]:
            raise ValueError(f"{who}: engine must be one of {[e.value for e in Engine]}, got {engine!r}")
        if not isinstance(annealing, int | float) or not 0 <= annealing <= 1:
            raise ValueError(f"{who}: annealing is a share of the steps, from 0 to 1, got {annealing!r}")
        if seed is not None and not isinstance(seed, int):
            raise TypeError(f"{who}: expected seed to be an integer or None, got {type(seed).__name__}")
        check_seconds(who, max_seconds)
        check_flags(who, search=search, progress_bar=progress_bar)
        if callback is not None and not callable(callback):
            raise TypeError(f"{who}: callback must be a function of a Look, got {type(callback).__name__}")
        sizes = {"num_starts": num_starts, "num_steps": num_steps}
        check_sizes(who, **{name: size for name, size in sizes.items() if size is not None})
        objective = objective or ELBO()
        schedule = schedule or Schedule.of(num_steps, objective.num_particles, annealing)
        schedule = _of_effort(who, effort, schedule)
        engine = None if engine is None else Engine(engine)
        choice = None if optim is None else _chosen(who, optim, schedule, engine)
        seconds = math.inf if max_seconds is None else float(max_seconds)
        plan = Plan(objective, schedule, engine, num_starts, effort, search, max_seconds=seconds, callback=callback)
        return replace(plan, optim=choice, seed=seed, progress_bar=progress_bar)

    @property
    def starts(self) -> int:
        """How many independent fits there are."""
        return self.num_starts or (STARTS if self.effort == "thorough" else 1)

    @property
    def ranks(self) -> Ranks:
        """The processes that share a fit; by default this one alone."""
        return self.workers if isinstance(self.workers, Ranks) else ALONE

    @property
    def gradient(self) -> Gradient:
        """The objective's estimator, or the best for it."""
        return self.objective.gradient or self.objective.best_gradient

    def described(self) -> dict[str, Any]:
        """What decides where a run leads, by name.

        Example::

            >>> Plan.asked("VI", num_steps=100, seed=1, engine="traced").described()["num_steps"]
            100
        """
        rounds, is_default = self.schedule.rounds, self.schedule.is_default
        return {
            "objective": f"{type(self.objective).__name__}({self.objective.num_particles}, {self.gradient.value})",
            "num_steps": None if is_default else sum(part.num_steps for part in rounds),
            "num_starts": self.starts,
            "effort": self.effort,
            "optim": str(self.optim or "Adam"),
            "seed": self.seed,
            "annealing": rounds[0].annealing if rounds else 0.0,
            "engine": None if self.engine is None else self.engine.value,
        }


def _of_effort(who: str, effort: Any, schedule: Schedule) -> Schedule:
    """The schedule of an effort, where one is asked for.

    :raises ValueError: if there is no such effort, or the schedule is fixed by other arguments.
    """
    if effort not in EFFORTS:
        raise ValueError(f"{who}: effort must be one of {list(EFFORTS)}, got {effort!r}")
    if effort == "default":
        return schedule
    if not schedule.is_default:
        raise ValueError(
            f"{who}: effort={effort!r} chooses the rounds of training and their sizes, but num_steps, annealing or the "
            "objective's num_particles do so too; leave out one or the other"
        )
    return Schedule.of_effort(effort)


def _chosen(who: str, optim: Any, schedule: Schedule, engine: Engine | None) -> Choice:
    """The optimiser that was asked for; where compiled code was too, a warning says that this has none.

    :raises TypeError: if it is none.
    """
    first = (*schedule.rounds, schedule.end)[0]
    try:
        choice = Choice(optim, first.step_size)
    except TypeError as error:
        raise TypeError(f"{who}: optim: {error}") from error
    if engine is Engine.COMPILED:
        text = f"the compiled engine has steps of Adam only; using the traced engine for {choice}, which is slower"
        warnings.warn(text, EngineWarning, stacklevel=4)
    return choice


def check_seconds(who: str, max_seconds: Any) -> None:
    """Refuse what is no time that a run can take.

    :raises TypeError: if it is no number.
    :raises ValueError: if it is not above zero.
    """
    if max_seconds is None:
        return
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, int | float):
        raise TypeError(f"{who}: max_seconds must be a number of seconds, got {type(max_seconds).__name__}")
    if not max_seconds > 0:
        raise ValueError(
            f"{who}: max_seconds must be above 0, got {max_seconds!r}; leave it out for as long as the fit takes"
        )


def check_guide(guide: Any, who: str) -> None:
    """Refuse what is no flow guide.

    :raises TypeError: if it is none.
    """
    if not isinstance(guide, AutoFlow):
        raise TypeError(
            f"{who}: expected a flow guide, {who}(AutoFlow(model)), got {type(guide).__name__}; "
            "other Pyro guides train with pyro.infer.SVI"
        )
