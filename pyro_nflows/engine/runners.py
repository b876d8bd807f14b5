r"""Ways to run a program's steps: eagerly, recorded and replayed, or recorded and compiled with their loop."""

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics import LogDensity
from .compiling import Code, memory_of
from .program import Inputs, Program, State
from .tape import Tape


class Engine(str, enum.Enum):
    """How training steps are run."""

    EAGER = "eager"
    TRACED = "traced"
    COMPILED = "compiled"


class Runner(ABC):
    """Runs a block of steps; ``inputs`` have a leading dimension of steps, as has the loss."""

    #: Threads of torch with which it runs fastest; None for as many as there are.
    num_threads: int | None = None

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """What runs now."""

    @abstractmethod
    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        """The state after the block, and every step's loss before it."""

    @abstractmethod
    def bound(self, program: Program, data: Sequence[Tensor] | None) -> "Runner":
        """The same code for another member of an ensemble, and for its data if they are other data."""

    @property
    def note(self) -> str | None:
        """Why no faster engine runs, where one was tried."""
        return None

    @property
    def is_compiling(self) -> bool:
        """Whether a compiler is at work."""
        return False

    @property
    def is_random(self) -> bool:
        """Whether the steps are known to draw random numbers of their own."""
        return False

    def expect(self, num_steps: int, seconds: float = math.inf) -> None:
        """Be told that so many steps are to come, and how much time there is for them."""
        return

    def rebound(self, log_joint: LogDensity, data: Sequence[Tensor]) -> "Runner | None":
        """A runner for the model with other data of the same shapes; None where its step has to be prepared anew."""
        return None

    def cancel(self) -> None:
        """Give up what is under way and will not be used."""
        return


class Eager(Runner):
    """The program's own Python."""

    engine = Engine.EAGER
    note: str | None = None

    def __init__(self, program: Program, note: str | None = None):
        self.program, self.note = program, note

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        losses = []
        for row in zip(*inputs):
            state, loss = self.program.step(state, Inputs(*row))
            losses.append(loss)
        return state, torch.stack(losses)

    def bound(self, program: Program, data: Sequence[Tensor] | None) -> "Eager":
        return Eager(program, self.note)


class Traced(Runner):
    """A recording of the step, replayed."""

    engine = Engine.TRACED

    def __init__(self, tape: Tape):
        self.tape = tape

    @torch.inference_mode()
    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        carried, losses = list(state), []
        for row in zip(*inputs):
            *carried, loss = self.tape.run([*carried, *row])
            losses.append(loss)
        return State(*carried), torch.stack(losses)

    def bound(self, program: Program, data: Sequence[Tensor] | None) -> "Traced":
        return self if data is None else Traced(self.tape.bound(data))


class Compiled(Runner):
    """The recording as C, the loop over steps included; on a CUDA device, as a CUDA graph."""

    engine = Engine.COMPILED

    def __init__(self, memory: Code, tape: Tape):
        self.memory, self.tape = memory, tape

    @property
    def is_random(self) -> bool:
        return self.memory.scan.is_random

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        carried, (losses,) = self.memory.run(state, inputs)
        return State(*carried), losses

    def bound(self, program: Program, data: Sequence[Tensor] | None) -> "Compiled":
        return Compiled(memory_of(self.memory.scan, None if data is None else self.tape.bound(data)), self.tape)
