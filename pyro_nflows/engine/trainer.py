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

from ..layer import Layer
from ..objectives import ELBO, Gradient
from ..weights import LogDensity
from .backends import Engine, Step, compile_step
from .program import Inputs, Program, State

#: Steps between looks at the loss; their noise is drawn at once.
BLOCK = 50


@dataclass(frozen=True)
class Round:
    """One run of the schedule: the step size falls from ``rate`` to zero along a cosine.

    For the first ``annealing`` share of the steps, ``log p`` is multiplied by a power that grows from .01 to 1
    (and the gradient is that of :class:`~pyro_nflows.estimators.Balanced`).
    ``covering`` gives draws of large weight more say (:class:`~pyro_nflows.estimators.Covering`).
    """

    num_steps: int
    num_particles: int
    rate: float
    annealing: float = 0.0
    covering: bool = False

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
    ``missed`` is mass found where the guide never goes, as a share of what it found.
    """

    elbos: list[Tensor] = field(default_factory=list)
    skipped: int = 0
    interrupted: bool = False
    failed: bool = False
    seconds: float = 0.0
    drift: float = 0.0
    missed: float = 0.0
    engines: list[Engine] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Steps taken, in all rounds and starts."""
        return sum(len(part) for part in self.elbos)

    def trace(self) -> Tensor:
        """The ELBO estimate of every step."""
        return torch.cat(self.elbos) if self.elbos else torch.empty(0)


class Trainer:
    """Trains layers on one model, round after round.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param leaves: the model's trainable leaf tensors.
    :param engine: the engine asked for, or None for the fastest.
    :param progress_bar: whether to show a bar.
    """

    def __init__(
        self,
        log_joint: LogDensity,
        leaves: Sequence[Tensor] = (),
        engine: Engine | None = None,
        progress_bar: bool = True,
    ):
        self.log_joint, self.leaves, self.engine = log_joint, leaves, engine
        self.progress_bar = progress_bar
        self.history = History()

    def run(self, layer: Layer, objective: ELBO, gradient: Gradient, plan: Round, title: str) -> None:
        """One round; the layer is left at the last good state, whatever happens."""
        program = Program(self.log_joint, layer, objective, gradient, plan.num_particles, self.leaves)
        state = program.init()
        began = time.perf_counter()
        with (
            restored_threads(),
            tqdm(total=plan.num_steps, disable=not self.progress_bar, unit="step", leave=True) as bar,
        ):
            bar.set_description(f"{title}: tracing")
            try:
                step = self._prepare(program, plan, state)
                bar.set_description(title)
                for start in range(0, plan.num_steps, BLOCK):
                    state = self._block(program, step, state, plan, start, bar)
                    program.write(state)
                    if self.history.failed:
                        break
            except KeyboardInterrupt:
                self.history.interrupted = True
        self.history.skipped += int(state.skipped)
        self.history.rounds.append(self.history.num_steps)
        self.history.seconds += time.perf_counter() - began

    @property
    def stopped(self) -> bool:
        """Whether training should not go on."""
        return self.history.interrupted or self.history.failed

    def _prepare(self, program: Program, plan: Round, state: State) -> Step:
        step, engine = compile_step(program, self.engine, self._inputs(program, plan, state, 0, 1)[0])
        self.history.engines.append(engine)
        choose_threads(lambda: step(state, self._inputs(program, plan, state, 0, 1)[0]))
        return step

    def _inputs(self, program: Program, plan: Round, state: State, start: int, num: int) -> list[Inputs]:
        like = state.params
        shape = (num, plan.num_particles, program.noise_width)
        noise = torch.randn(shape, dtype=like.dtype, device=like.device)
        part = slice(start, start + num)
        return [Inputs(*row) for row in zip(noise, plan.rates(like)[part], plan.powers(like)[part])]

    def _block(self, program: Program, step: Step, state: State, plan: Round, start: int, bar: Any) -> State:
        before, losses = state.skipped, []
        for inputs in self._inputs(program, plan, state, start, min(BLOCK, plan.num_steps - start)):
            state, loss = step(state, inputs)
            losses.append(loss)
        elbos = -torch.stack(losses)
        self.history.elbos.append(elbos)
        self.history.failed = bool(2 * (state.skipped - before) > len(losses))
        bar.set_postfix_str(f"ELBO {float(elbos.nanmean()):.3f}", refresh=False)
        bar.update(len(losses))
        return state


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
