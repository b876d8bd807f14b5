r"""Rounds of training: a bar, a schedule, and nothing lost on a bad step or a Ctrl-C."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from ..gradients import Gradient, Objective
from ..layer import Layer
from ..weights import LogDensity
from .backends import prepare
from .program import Inputs, Program
from .runners import Engine, Runner
from .sampler import Sampler
from .slope import Slope

#: Noise is drawn for so many steps at once, whatever the engine: the numbers do not depend on it.
BLOCK = 50
#: Seconds between looks at the loss.
PAUSE = 0.2
#: Most blocks between looks.
MAX_BLOCKS = 40
#: Of every step of a round: the step size, the power of ``log p``, and the objective's share.
Schedule = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Round:
    """One run of the schedule: the step size falls from ``rate`` to zero along a cosine.

    For the first ``annealing`` share of the steps, ``log p`` is multiplied by a power that grows from .01 to 1.
    ``balanced`` is for several modes (:class:`~pyro_nflows.estimators.Balanced`); ``covering`` gives draws of large
    weight more say (:class:`~pyro_nflows.estimators.Covering`).
    """

    num_steps: int
    num_particles: int
    rate: float
    annealing: float = 0.0
    covering: bool = False
    balanced: bool = False

    def rates(self, like: Tensor) -> Tensor:
        """Step sizes, one a step."""
        turn = torch.arange(self.num_steps).to(like) / self.num_steps * math.pi
        return 0.5 * self.rate * (1 + turn.cos())

    def powers(self, like: Tensor) -> Tensor:
        """Powers of ``log p``, one a step."""
        steps = torch.arange(self.num_steps).to(like)
        grow = self.annealing * self.num_steps
        return (0.01 + steps / grow).clamp(max=1.0) if grow else torch.ones_like(steps)


@dataclass
class History:
    """What training has seen: minus the loss at every step, and why it ended.

    ``drift`` is how much the model's own parameters changed the log joint in the last round;
    ``missed`` is the share of the posterior's mass that lies where the guide never goes, and ``where`` an example;
    ``round_trip`` is the error of the flow's inverse.
    ``engines`` are those that the rounds ended on; ``engine_notes`` say, once each, why a faster one could not be used
    (none where rounds were only too short for it).
    """

    elbos: list[Tensor] = field(default_factory=list)
    skipped: int = 0
    interrupted: bool = False
    failed: bool = False
    seconds: float = 0.0
    drift: float = 0.0
    missed: float = 0.0
    where: str = ""
    round_trip: float = 0.0
    engines: list[Engine] = field(default_factory=list)
    engine_notes: list[str] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Steps taken, in all rounds and starts."""
        return sum(len(part) for part in self.elbos)

    def trace(self) -> Tensor:
        """The ELBO estimate of every step."""
        return torch.cat(self.elbos) if self.elbos else torch.empty(0)


class Trainer:
    """Trains layers on one model, round after round; all layers are copies of one, or parts of it.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param leaves: the model's trainable leaf tensors.
    :param engine: the engine asked for, or None for the fastest.
    :param progress_bar: whether to show a bar.
    :param data: the tensors among the model's arguments; see :meth:`rebind`.
    """

    def __init__(
        self,
        log_joint: LogDensity,
        leaves: Sequence[Tensor] = (),
        engine: Engine | None = None,
        progress_bar: bool = True,
        data: Sequence[Tensor] = (),
    ):
        self.log_joint, self.leaves, self.engine = log_joint, leaves, engine
        self.progress_bar, self.data = progress_bar, data
        self.history = History()
        self._runners: dict[Any, Runner] = {}
        self._slope: Slope | None = None
        self.sampler = Sampler(log_joint, leaves)

    def run(self, layer: Layer, objective: Objective, gradient: Gradient, plan: Round, title: str) -> None:
        """One round; the layer is left at the last good state, whatever happens."""
        self.run_many([layer], objective, gradient, plan, title)

    def run_many(
        self, layers: Sequence[Layer], objective: Objective, gradient: Gradient, plan: Round, title: str
    ) -> None:
        """The same round for copies of a layer, an ensemble: each has random numbers of its own."""
        began = time.perf_counter()
        with restored_threads(), tqdm(total=plan.num_steps, disable=not self.progress_bar, unit="step") as bar:
            bar.set_description(f"{title}: {'compiling' if self.engine is Engine.COMPILED else 'tracing'}")
            try:
                pairs = [self._get(layer, objective, gradient, plan) for layer in layers]
                bar.set_description(title)
                programs, runner = [program for program, _ in pairs], pairs[0][1]
                self._steps(programs, runner, plan, _share(objective), title, bar)
            except KeyboardInterrupt:
                self.history.interrupted = True
        self.history.rounds.append(self.history.num_steps)
        self.history.seconds += time.perf_counter() - began

    def expect(self, layer: Layer, objective: Objective, gradient: Gradient, plan: Round, num_steps: int) -> None:
        """Begin to compile, in the background, what so many steps will need."""
        if self.engine is None:
            _, runner = self._get(layer, objective, gradient, plan)
            runner.expect(num_steps)

    def close(self) -> None:
        """Stop compilers that are still at work."""
        for runner in self._runners.values():
            runner.cancel()
        self.sampler.cancel()

    def rebind(self, data: Sequence[Tensor]) -> None:
        """Go on with other data of the same shapes, without tracing the model again where that reproduces it."""
        self.data, self.history, self._slope = data, History(), None
        self.sampler = Sampler(self.log_joint, self.leaves)
        runners, self._runners = self._runners, {}
        self._runners.update((key, runner) for key, runner in runners.items() if runner.rebind(data))

    @property
    def slope(self) -> Slope:
        """The log joint's slope, with the model's own parameters as they are now."""
        if self._slope is None or self.leaves:
            self._slope = Slope(self.log_joint)
        return self._slope

    @property
    def stopped(self) -> bool:
        """Whether training should not go on."""
        return self.history.interrupted or self.history.failed

    def _get(self, layer: Layer, objective: Objective, gradient: Gradient, plan: Round) -> tuple[Program, Runner]:
        """The program of a round and its runner; equal rounds have the same."""
        program = Program(self.log_joint, layer, objective, gradient, plan.num_particles, self.leaves)
        settings = {k: v for k, v in vars(objective).items() if isinstance(v, int | float | str) and k != "share"}
        key = (program.shapes, type(objective), str(settings), gradient, plan.num_particles)
        if key not in self._runners:
            with torch.random.fork_rng():  # the numbers to come do not depend on what is prepared when
                schedule = _schedule(plan, _share(objective), program.params())
                example = _inputs(program, schedule, 0, min(3, plan.num_steps))
            runner = prepare(program, self.engine, example, self.data)
            if runner.engine is not Engine.COMPILED:
                choose_threads(lambda: runner.run(program.init(), example))
            self._runners[key] = runner
        return program, self._runners[key]

    def _steps(self, programs: list[Program], runner: Runner, plan: Round, share: float, title: str, bar: Any) -> None:
        runner.expect(plan.num_steps * len(programs))
        states, start, blocks = [program.init() for program in programs], 0, 1
        schedule = _schedule(plan, share, states[0].params)
        elbos: list[list[Tensor]] = [[] for _ in programs]
        try:
            while start < plan.num_steps and not self.history.failed:
                began = time.perf_counter()
                num = min(blocks * BLOCK, plan.num_steps - start)
                inputs = [_inputs(program, schedule, start, num) for program in programs]
                before, after = states, runner.run_many(list(zip(states, inputs)))
                states, start = [state for state, _ in after], start + num
                for part, (_, losses) in zip(elbos, after):
                    part.append(-losses)
                skipped = max(int(new.skipped - old.skipped) for new, old in zip(states, before))
                self.history.failed = 2 * skipped > num
                bar.set_description(title + (", compiling" if runner.is_compiling else ""), refresh=False)
                bar.set_postfix_str(f"ELBO {max(float(part[-1].nanmean()) for part in elbos):.3f}", refresh=False)
                bar.update(num)
                blocks = self._blocks(runner, (time.perf_counter() - began) / num)
        finally:
            for program, state, part in zip(programs, states, elbos):
                program.write(state)
                self.history.skipped += int(state.skipped)
                self.history.elbos += part
            self._note(runner)

    def _blocks(self, runner: Runner, seconds: float) -> int:
        """How many blocks to run until the next look."""
        if runner.engine is not Engine.COMPILED or runner.is_random:
            return 1
        return max(1, min(MAX_BLOCKS, int(PAUSE / (BLOCK * seconds))))

    def _note(self, runner: Runner) -> None:
        """What a round ended on, and why not on something faster."""
        self.history.engines.append(runner.engine)
        if runner.note is not None and runner.note not in self.history.engine_notes:
            self.history.engine_notes.append(runner.note)


def _share(objective: Objective) -> float:
    return float(getattr(objective, "share", 0.0))


def _schedule(plan: Round, share: float, like: Tensor) -> Schedule:
    return plan.rates(like), plan.powers(like), like.new_full((plan.num_steps,), share)


def _inputs(program: Program, schedule: Schedule, start: int, num: int) -> Inputs:
    """Noise and schedule of some steps."""
    noise = schedule[0].new_empty(num, program.num_particles, program.noise_width)
    for block in noise.split(BLOCK):
        block.normal_()
    return Inputs(noise, *(part[start : start + num] for part in schedule))


@contextmanager
def restored_threads() -> Iterator[None]:
    """Put torch's number of threads back at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(step: Callable[[], Any], num_steps: int = 3) -> None:
    """Run on one thread where that is no slower, as it is when tensors are small."""
    many = torch.get_num_threads()
    if many == 1:
        return
    seconds = {}
    for num in (many, 1):
        torch.set_num_threads(num)
        step()
        began = time.perf_counter()
        for _ in range(num_steps):
            step()
        seconds[num] = time.perf_counter() - began
    torch.set_num_threads(min(seconds, key=lambda num: seconds[num]))
