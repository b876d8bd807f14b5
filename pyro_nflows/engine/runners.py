r"""Ways to run a program's steps: eagerly, recorded and replayed, or recorded and compiled with their loop."""

import enum
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .native import Run, Scan
from .program import Inputs, Program, State
from .tape import Tape

#: A member of an ensemble: where it is, and what its next steps are given.
Member = tuple[State, Inputs]


class Engine(str, enum.Enum):
    """How training steps are run."""

    EAGER = "eager"
    TRACED = "traced"
    COMPILED = "compiled"


class Runner(ABC):
    """Runs a block of steps; ``inputs`` have a leading dimension of steps, as has the loss."""

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """What runs now."""

    @abstractmethod
    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        """The state after the block, and every step's loss before it."""

    def run_many(self, members: Sequence[Member]) -> list[tuple[State, Tensor]]:
        """A block for each member of an ensemble, the same as if each were alone."""
        return [self.run(*member) for member in members]

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

    def expect(self, num_steps: int) -> None:
        """Be told that so many steps are to come."""
        return

    def rebind(self, data: Sequence[Tensor]) -> bool:
        """Go on with other data of the same shapes; whether that can be done."""
        return False

    def cancel(self) -> None:
        """Give up what is under way and will not be used."""
        return


def num_cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


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


class Compiled(Runner):
    """The recording as C, the loop over steps included."""

    engine = Engine.COMPILED

    def __init__(self, scan: Scan):
        self.scan, self.memories = scan, [Run(scan)]

    @property
    def is_random(self) -> bool:
        return self.scan.is_random

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        carried, (losses,) = self.memories[0].run(state, inputs)
        return State(*carried), losses

    def run_many(self, members: Sequence[Member]) -> list[tuple[State, Tensor]]:
        """Each member on a thread of its own: compiled code needs no lock of Python's."""
        if len(members) == 1 or self.is_random:
            return super().run_many(members)
        while len(self.memories) < len(members):
            self.memories.append(Run(self.scan))
        with ThreadPoolExecutor(min(len(members), num_cores())) as pool:
            runs = [pool.submit(memory.run, *member) for memory, member in zip(self.memories, members)]
        return [(State(*carried), losses) for carried, (losses,) in (run.result() for run in runs)]
