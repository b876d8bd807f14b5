r"""Ways to run a program's steps: eagerly, recorded and replayed, or recorded and compiled with their loop."""

import enum
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, cast

import torch
from torch import Tensor

from .native import CompilerError, Run, Scan
from .program import Inputs, Program, State
from .tape import Tape

#: A member of an ensemble: where it is, and what its next steps are given.
Member = tuple[State, Inputs]


class Engine(str, enum.Enum):
    """How training steps are run."""

    EAGER = "eager"
    TRACED = "traced"
    COMPILED = "compiled"


class EngineWarning(UserWarning):
    """A faster engine could not run this model, so a slower one does; results are the same."""


class Runner(Protocol):
    """Runs a block of steps; ``inputs`` have a leading dimension of steps, as has the loss."""

    @property
    def engine(self) -> Engine:
        """What runs now."""
        ...

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        """The state after the block, and every step's loss before it."""
        ...


def run_many(runner: Runner, members: Sequence[Member]) -> list[tuple[State, Tensor]]:
    """A block for each member of an ensemble, side by side where the engine can; alone, a member goes the same way."""
    if isinstance(runner, Best):
        runner.switch(members[0][0])
        runner = runner.runner
    if isinstance(runner, Compiled) and len(members) > 1 and not runner.scan.is_random:
        return runner.run_many(members)
    return [runner.run(*member) for member in members]


def num_cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


class Eager:
    """The program's own Python."""

    engine = Engine.EAGER

    def __init__(self, program: Program):
        self.program = program

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        losses = []
        for row in zip(*inputs):
            state, loss = self.program.step(state, Inputs(*row))
            losses.append(loss)
        return state, torch.stack(losses)


class Traced:
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


class Compiled:
    """The recording as C, the loop over steps included."""

    engine = Engine.COMPILED

    def __init__(self, scan: Scan):
        self.scan, self.memories = scan, [Run(scan)]

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        carried, (losses,) = self.memories[0].run(state, inputs)
        return State(*carried), losses

    def run_many(self, members: Sequence[Member]) -> list[tuple[State, Tensor]]:
        """Each member on a thread of its own: compiled code needs no lock of Python's."""
        while len(self.memories) < len(members):
            self.memories.append(Run(self.scan))
        with ThreadPoolExecutor(min(len(members), num_cores())) as pool:
            runs = [pool.submit(memory.run, *member) for memory, member in zip(self.memories, members)]
        return [(State(*carried), losses) for carried, (losses,) in (run.result() for run in runs)]


class Best:
    """Starts traced; where it pays, compiles meanwhile and goes on compiled.

    :param program: the program.
    :param tape: its recording.
    :param inputs: inputs of a block, on which compiled code is checked before it is trusted.
    """

    def __init__(self, program: Program, tape: Tape, inputs: Inputs):
        self.program, self.tape, self.inputs = program, tape, inputs
        self.runner: Runner = Traced(tape)
        self.scan: Scan | None = None
        self.refused: str | None = None
        self._seconds = float("inf")

    @property
    def engine(self) -> Engine:
        """What runs now."""
        return self.runner.engine

    @property
    def is_compiling(self) -> bool:
        """Whether a compiler is at work."""
        return self.scan is not None and self.runner.engine is Engine.TRACED and self.refused is None

    def expect(self, num_steps: int) -> None:
        """Start compiling if that many steps are worth it, or if it has been done before."""
        if self.scan is not None or self.refused is not None or not compiles(self.program):
            return
        if self._seconds == float("inf"):
            self._seconds = _seconds(self.runner, self.program.init(), self.inputs)
        if num_steps * self._seconds > compile_seconds(self.tape):
            self._attempt(lambda: setattr(self, "scan", Scan(self.tape, len(State._fields))))
            self.switch(self.program.init())

    def switch(self, state: State) -> None:
        """Go over to compiled code if it is there and reproduces the traced steps."""
        if self.is_compiling and self.scan is not None and self.scan.is_ready:
            self._attempt(lambda: self._take(state))

    def wait(self, state: State) -> None:
        """Compile, however long it takes."""
        if self.scan is None:
            self._attempt(lambda: setattr(self, "scan", Scan(self.tape, len(State._fields))))
        if self.is_compiling:
            self._attempt(lambda: self._take(state))

    def _take(self, state: State) -> None:
        compiled = Compiled(cast(Scan, self.scan))
        self.refused = difference(self.runner, compiled, state, self.inputs)
        if self.refused is None:
            self.runner = compiled

    def _attempt(self, action: object) -> None:
        try:
            action()  # type: ignore[operator]
        except (CompilerError, NotImplementedError, OSError) as error:
            self.refused = _line(error)

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        self.switch(state)
        return self.runner.run(state, inputs)

    def rebind(self, data: Sequence[Tensor]) -> None:
        """Go on with other data; nothing is compiled again, since the code does not depend on it."""
        self.tape.rebind(data)
        if self.runner.engine is Engine.COMPILED:
            self.runner = Compiled(Scan(self.tape, len(State._fields)))

    def cancel(self) -> None:
        """Stop compiling what will not be used."""
        if self.is_compiling and self.scan is not None:
            self.scan.cancel()
            self.scan = None


def compiles(program: Program) -> bool:
    """Whether compiled code could run it at all: on the CPU, in single or double precision."""
    params = program.init().params
    return params.device.type == "cpu" and params.dtype in (torch.float32, torch.float64)


def compile_seconds(tape: Tape) -> float:
    """About how long a compiler takes for a recording, and twice that where it has no core for itself."""
    return (0.4 + 0.002 * len(tape)) * (1 if num_cores() > 1 else 2)


def prepare(program: Program, engine: Engine | None, inputs: Inputs, data: Sequence[Tensor] = ()) -> Runner:
    """A runner on the engine asked for, or on the fastest that reproduces the eager step.

    :param program: the program.
    :param engine: an engine, or None for the fastest.
    :param inputs: example inputs of a block of at least one step, on which engines are checked against the eager one.
    :param data: tensors that :meth:`~.tape.Tape.rebind` may replace later.
    """
    eager = Eager(program)
    if engine is Engine.EAGER:
        return eager
    try:
        tape = record(program, inputs, data)
        reason = difference(eager, Traced(tape), program.init(), inputs)
    except Exception as error:
        reason = _line(error)
    if reason is not None:
        _tell(
            "traced",
            reason,
            "eager",
            "Python branches on values and Python or NumPy random numbers are the usual cause",
        )
        return eager
    if engine is Engine.TRACED:
        return Traced(tape)
    best = Best(program, tape, inputs)
    if engine is Engine.COMPILED:
        best.wait(program.init())
        if best.refused is not None or not compiles(program):
            _tell("compiled", best.refused or "it needs the CPU and float32 or float64", "traced", "")
    return best


def record(program: Program, inputs: Inputs, data: Sequence[Tensor] = ()) -> Tape:
    """The program's step, recorded."""
    state = program.init()

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        after, loss = program.step(State(*tensors[: len(state)]), Inputs(*tensors[len(state) :]))
        return *after, loss

    return Tape(flat, [*state, *(stack[0] for stack in inputs)], data)


def difference(trusted: Runner, other: Runner, state: State, inputs: Inputs) -> str | None:
    """Why a runner cannot be trusted: it differs from another on fresh inputs."""
    fresh = Inputs(*(part[:1].repeat(3, *(1,) * (part.dim() - 1)) for part in inputs))
    fresh = fresh._replace(noise=0.5 * fresh.noise.flip(1))
    # Away from an optimum, where gradients are rounding, which Adam would enlarge.
    nudge = torch.randn(state.params.shape, generator=torch.Generator().manual_seed(0)).to(state.params)
    state = state._replace(params=state.params + 0.01 * nudge)
    (right, right_losses), (state, losses) = (_seeded(runner, state, fresh) for runner in (trusted, other))
    tight, loose = 1e3 * torch.finfo(losses.dtype).eps, 1e-2
    for part, tolerance in ((slice(0, 1), tight), (slice(1, None), loose)):
        close = torch.isclose(losses[part], right_losses[part], rtol=tolerance, atol=tolerance, equal_nan=True)
        if not close.all():
            return f"its loss at fresh points is {losses[part][~close][0]:.6g}, not {right_losses[part][~close][0]:.6g}"
    if not (state.mean - right.mean).norm().nan_to_num() <= loose * right.mean.norm().nan_to_num() + 1e-12:
        return "its gradient at fresh points differs from the model's"
    return None


def _seeded(runner: Runner, state: State, inputs: Inputs) -> tuple[State, Tensor]:
    """A few steps; the model's own random numbers, if any, are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return runner.run(state, inputs)


def _seconds(runner: Runner, state: State, inputs: Inputs) -> float:
    """What a step takes."""
    few = Inputs(*(part[:3] for part in inputs))
    began = time.perf_counter()
    runner.run(state, few)
    return (time.perf_counter() - began) / len(few.noise)


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _tell(wanted: str, reason: str, taken: str, hint: str) -> None:
    message = f"the {wanted} engine cannot run this model ({reason}); using the {taken} engine, which is slower"
    warnings.warn(f"{message}. {hint}" if hint else message, EngineWarning, stacklevel=4)
