r"""Rounds of training: a bar, a schedule, and nothing lost on a bad step or a Ctrl-C."""

import functools
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from ..layers.base import Layer
from ..model.whole import WholeLogJoint
from ..numerics import LogDensity
from ..objectives.base import Gradient, Objective
from ..system.memory import is_out_of_memory
from ..system.randomness import forked
from ..system.ranks import Ranks
from .all_rows import AllRows
from .budget import Budget, Stretch
from .cost import DrawCosts
from .course import Course, look_at, place
from .density_gradient import DensityGradient
from .ensemble import Data, Ensemble, Stream
from .given import inputs_of, own_inputs, part_of, schedule_of
from .history import History, histories_of, record
from .journal import Journal
from .look import Callback, Watch
from .optimised import Choice
from .pace import Pace, unbroken
from .program import Program
from .progress import Progress
from .resting import BLOCK, settle
from .round import Round
from .runners import Engine, Runner
from .sampler import Sampler
from .team import Team
from .threads import restored_threads
from .times import Times

#: Seconds between looks at the loss.
PAUSE = 0.2


class Trainer:
    """Trains layers on one model, round after round; all layers are copies of one, or parts of it.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param leaves: the model's trainable leaf tensors.
    :param engine: the engine asked for, or None for the fastest.
    :param progress_bar: whether to show rounds as they go on; :meth:`limit` says where.
    :param data: the tensors among the model's arguments; see :meth:`again`.
    :param num_fits: how many fits are to come: whether compiling pays depends on it.
    :param all_rows: the log joint over all rows, where ``log_joint`` is that of a minibatch drawn anew each time: draws
        are weighed by it, fewer of them where there are many rows.
    """

    def __init__(
        self,
        log_joint: LogDensity,
        leaves: Sequence[Tensor] = (),
        engine: Engine | None = None,
        progress_bar: bool = True,
        data: Sequence[Tensor] = (),
        num_fits: int = 1,
        all_rows: WholeLogJoint | None = None,
    ):
        self.log_joint, self.leaves, self.engine = log_joint, leaves, engine
        self.all_rows = None if all_rows is None else AllRows(all_rows, leaves)
        self.progress, self.data, self.num_fits = Progress(progress_bar), data, num_fits
        self.history = History()
        self.stream: Stream | None = None
        self._bound: Data = None
        self._runners: dict[Any, Runner] = {}
        self._density: DensityGradient | None = None
        self.sampler = self._sampler()
        self.journal = Journal()
        self.budget = Budget()
        self.times = Times(self.sampler.costs if all_rows is None else DrawCosts(log_joint))
        self.watch = Watch(None, self.budget)
        self.optim, self.team = cast(Choice | None, None), cast(Team | None, None)

    def at(self, log_joint: LogDensity, data: Sequence[Tensor], near: Tensor, seed: int) -> "Trainer":
        """A member of an ensemble: the same model with other data of the same shapes.

        It has a history and random numbers of its own, and this trainer's recordings and compiled code where they
        reproduce the model with these data; else it makes its own.

        :param log_joint: the model with these data.
        :param data: as this trainer's.
        :param near: a point of finite density, where that is found out.
        :param seed: of its random numbers.
        """
        new = Trainer(log_joint, (), self.engine, False, data, self.num_fits)
        density = self.density.at(log_joint, data)
        if self.engine is Engine.EAGER or density.agrees(near):
            new._density, new._bound, new._runners = density, data, self._runners
        new.stream = Stream(seed)
        return new

    def shares(self, other: "Trainer") -> bool:
        """Whether they have the same recordings, so that they can go side by side."""
        return self._runners is other._runners

    def run(self, layer: Layer, objective: Objective, gradient: Gradient, plan: Round, title: str) -> bool:
        """One round; the layer is left at the last good state, whatever happens.

        :return: whether it went well: not where steps are not finite, however small.
        """
        return self.run_many([layer], objective, gradient, plan, title)[0]

    def run_many(
        self,
        layers: Sequence[Layer],
        objective: Objective,
        gradient: Gradient,
        plan: Round,
        title: str,
        members: Sequence["Trainer"] = (),
        follows: str = "",
    ) -> list[bool]:
        """The same round for copies of a layer, an ensemble: each has random numbers of its own.

        :param members: whose the layers are, if they have data of their own (:meth:`at`).
        :param follows: what may come after the round, in words.
        :return: of each, whether it went well; see :meth:`run`.
        """
        members = members or [self] * len(layers)
        histories, before, name = histories_of(members), len(self.history.elbos), f"{title}: {plan}"
        if all(history.interrupted for history in histories) or self.is_over():
            return [True] * len(layers)
        recalled = self.journal.recall(name, functools.partial(self._recall, layers, objective, gradient, plan))
        if recalled is not None:
            return list(recalled["well"])
        self.times.ask(layers, plan)
        if self.is_over():
            return [True] * len(layers)
        began, courses = time.perf_counter(), list[Course]()
        try:
            with restored_threads(), self.progress.phase(title, plan.num_steps, follows):
                self.progress.say(f"{title}, {'compiling' if self.engine is Engine.COMPILED else 'tracing'}")
                pairs = [member._get(layer, objective, gradient, plan) for member, layer in zip(members, layers)]
                self.progress.say(title)
                programs, runner = [program for program, _ in pairs], pairs[0][1]
                torch.set_num_threads(runner.num_threads or torch.get_num_threads())
                courses = self._steps(members, programs, runner, plan, title)
        except (KeyboardInterrupt, MemoryError, RuntimeError) as error:
            lacking = is_out_of_memory(error)
            if not (lacking or isinstance(error, KeyboardInterrupt)):
                raise
            for member in members:
                member.interrupt()
                member.history.out_of_memory |= lacking
        for history in histories:
            history.rounds.append(history.num_steps)
            history.seconds += (time.perf_counter() - began) / len(histories)
        if any(history.interrupted for history in histories):
            return [True] * len(layers)
        if self.history.out_of_time or self.history.stopped:  # a run that is resumed may have more
            return [not course.failed for course in courses]
        well, params = [not course.failed for course in courses], [course.program.params() for course in courses]
        self.journal.record(name, {"params": params, "history": self.history.state(before), "well": well})
        return well

    def _recall(
        self, layers: Sequence[Layer], objective: Objective, gradient: Gradient, plan: Round, found: dict[str, Any]
    ) -> None:
        """Put what an earlier process trained into the layers."""
        for layer, params in zip(layers, found["params"]):
            program = Program(self.log_joint, layer, objective, gradient, plan.num_particles, self.leaves)
            program.write(program.init()._replace(params=params))
        self.history.take(found["history"])

    def expect(self, layer: Layer, objective: Objective, gradient: Gradient, plan: Round, num_steps: int) -> None:
        """Begin to compile, in the background, what so many steps will need."""
        if self.engine is None:
            with restored_threads():
                _, runner = self._get(layer, objective, gradient, plan)
            runner.expect(num_steps * self.num_fits)

    def join(self, ranks: Ranks) -> None:
        """Share steps and draws with other processes, of which this one leads."""
        self.team = self.sampler.team = Team(ranks, self.leaves)

    def limit(self, budget: Budget, callback: Callback | None = None, progress: Progress | None = None) -> None:
        """Have training, and draws, heed the time of a run, and show where it is."""
        self.progress = progress or self.progress
        self.budget = self.sampler.budget = self.times.budget = budget
        self.watch = Watch(callback, budget)

    def is_over(self) -> bool:
        """Whether training has to end, though there is more to train: somebody is waiting, or the time is over."""
        if self.budget.is_over and not (self.history.out_of_time or self.history.stopped):
            self.history.stopped = self.budget.is_stopped
            self.history.out_of_time = not self.budget.is_stopped
            self.journal.write()  # from there a run with more time goes on
            self.journal = Journal()
        return self.history.interrupted or self.budget.is_over

    def interrupt(self) -> None:
        """Somebody is waiting: training ends, and draws take about a second from now on."""
        self.history.interrupted = True
        self.sampler.hurry()

    def close(self) -> None:
        """Wait no more for compilers that are still at work."""
        for runner in self._runners.values():
            runner.cancel()
        self.sampler.cancel()
        self.history.tell(self.sampler.note, self.sampler.rounding.note)

    def _sampler(self) -> Sampler:
        named = self.engine is not None
        if self.all_rows is not None:
            return Sampler(self.all_rows, self.leaves, compile=False, steady=named, most=self.all_rows.num_judged)
        return Sampler(self.log_joint, self.leaves, self.engine in (None, Engine.COMPILED), steady=named)

    @property
    def judged(self) -> LogDensity:
        """The log density that draws are weighed by: over all rows, where it can be had."""
        return self.sampler.log_joint

    def again(self, log_joint: LogDensity, data: Sequence[Tensor], all_rows: WholeLogJoint | None = None) -> "Trainer":
        """A trainer on the same model with other data of the same shapes.

        It has this one's recordings and compiled code where they reproduce the model with these data.

        :param log_joint: the model with these data.
        :param data: as this trainer's.
        :param all_rows: as this trainer's.
        """
        new = Trainer(log_joint, self.leaves, self.engine, self.progress.shown, data, self.num_fits, all_rows)
        runners = {key: runner.rebound(log_joint, data) for key, runner in self._runners.items()}
        new._runners.update((key, runner) for key, runner in runners.items() if runner is not None)
        return new

    @property
    def density(self) -> DensityGradient:
        """The log joint's gradient, with the model's own parameters as they are now; over all rows if that is cheap."""
        if self._density is None or self.leaves:
            rows = self.all_rows
            if rows is None or not rows.is_cheap:
                self._density = DensityGradient(self.log_joint, self.data, compile=self.engine is None)
            else:
                self._density = DensityGradient(rows.in_one, self.data, rows.log_joint, self.engine is None)
        return self._density.within(self.budget)

    def _get(self, layer: Layer, objective: Objective, gradient: Gradient, plan: Round) -> tuple[Program, Runner]:
        """The program of a round and its runner; equal rounds have the same."""
        program = Program(self.log_joint, layer, objective, gradient, plan.num_particles, self.leaves)
        key = (program.shapes, objective.key, gradient, plan.num_particles)
        if key not in self._runners:
            with forked():  # the numbers to come do not depend on what is prepared when
                schedule = schedule_of(plan, objective.share, program.params())
                example = inputs_of(program, schedule, 0, min(3, plan.num_steps))
            runner = self.times.prepared(program, self.engine, plan, example, self.data, self.optim, self.team)
            self._runners[key] = runner
        return program, self._runners[key]

    def _steps(
        self, members: Sequence["Trainer"], programs: list[Program], runner: Runner, plan: Round, title: str
    ) -> list[Course]:
        """The steps of a round, in blocks, for each fit with its own random numbers and size of steps."""
        stretch = Stretch(self.budget, plan.share)
        runner.expect(plan.num_steps * max(len(programs), self.num_fits), stretch.left)
        streams = [member.stream or _stream(len(members)) for member in members]
        courses = [Course(program, stream) for program, stream in zip(programs, streams)]
        schedule = schedule_of(plan, programs[0].objective.share, courses[0].state.params)
        begun = self._resume(courses)
        self.progress.advance(begun)
        ensemble, pace = Ensemble(runner, programs, [member._bound for member in members]), Pace(2 * PAUSE)
        histories = [member.history for member in members]
        before = [history.mark() for history in histories]
        try:
            for start in range(begun, plan.num_steps, BLOCK):
                which = [i for i, course in enumerate(courses) if not course.done]
                if not which:
                    break
                num = min(BLOCK, plan.num_steps - start)
                inputs = [own_inputs(courses[i], schedule, start, num) for i in which]
                for part in pace.parts(num):  # an interrupt loses no more than one part
                    slowed = stretch.slowed((start + part.start) / plan.num_steps)
                    states, given = [courses[i].state for i in which], [part_of(own, part, slowed) for own in inputs]
                    for i, (state, losses) in zip(which, ensemble.run(states, given, which)):
                        courses[i].advance(state, losses)
                    self.progress.advance(part.stop - part.start)
                    if stretch.is_over:
                        break
                if stretch.is_over:
                    self.is_over()
                    break
                look_at([courses[i] for i in which], schedule[1][max(0, start - 1) : start + num])
                settle([courses[i] for i in which], plan, start + num)
                self.progress.say(title + (", compiling" if runner.is_compiling else ""))
                elbos = [float(courses[i].elbos[-1].nanmean()) for i in which]
                self.progress.advance(0, max(elbos))
                self.watch.show(title, start + num, plan.num_steps, max(elbos))
                self.journal.reach(functools.partial(place, start + BLOCK, courses))
                if self.budget.is_stopped:
                    self.is_over()
                    break
        finally:
            unbroken(lambda: record(courses, histories, before))
            for history in histories_of(members):
                history.note(runner)
        return courses

    def _resume(self, courses: Sequence[Course]) -> int:
        """Put courses to where an earlier process was in this round; the step to go on with."""
        found = self.journal.resumed()
        if found is None:
            return 0
        for course, state in zip(courses, found["courses"]):
            course.take(state)
        return int(found["start"])


def _stream(num_members: int) -> Any:
    """Random numbers for one of several; a fit by itself has torch's own."""
    return Stream(int(torch.randint(2**62, ()))) if num_members > 1 else nullcontext()
