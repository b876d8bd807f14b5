r"""The fastest way to run a program's steps that gives what its own Python gives."""

import math
import time
import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..checks import first_line
from ..numerics import LogDensity
from ..system.memory import is_out_of_memory
from ..system.randomness import forked
from .compiling import Compiling, compile_seconds
from .program import Inputs, Program, State
from .runners import Compiled, Eager, Engine, Runner, Traced
from .tape import Tape

#: The share of the time for steps that a compiler may take.
COMPILING = 0.3
#: Why a step cannot be recorded, and what is mostly the cause.
NO_MEMORY = "there is not enough memory to record a step"
BRANCHES = "Python branches on values and Python or NumPy random numbers are the usual cause"


class EngineWarning(UserWarning):
    """A faster engine could not run this model, so a slower one does; results are the same."""


class Best(Runner):
    """Starts traced; where it pays, compiles meanwhile and goes on compiled.

    :param program: the program.
    :param tape: its recording.
    :param inputs: inputs of a block, on which compiled code is checked before it is trusted.
    """

    def __init__(self, program: Program, tape: Tape, inputs: Inputs):
        self.program, self.inputs, self._seconds = program, inputs, float("inf")
        self.tape, self.runner = tape, cast(Runner, Traced(tape))
        self.compiling = Compiling(tape, len(State._fields), self.program.params())

    @property
    def engine(self) -> Engine:
        return self.runner.engine

    @property
    def note(self) -> str | None:
        return None if self.compiling.refused is None else f"compiled: {self.compiling.refused}"

    @property
    def is_compiling(self) -> bool:
        return self.compiling.is_under_way

    @property
    def is_random(self) -> bool:
        return self.tape.is_random

    def expect(self, num_steps: int, seconds: float = math.inf) -> None:
        """Start compiling if that many steps are worth it, and the compiler will leave time for them."""
        if self.compiling.is_started:
            return
        if self._seconds == float("inf"):
            self._seconds = _seconds(self.runner, self.program.init(), self.inputs)
        if compile_seconds(self.tape) < min(num_steps * self._seconds, COMPILING * seconds):
            self.compiling.start()
            self.switch(self.program.init())

    def switch(self, state: State) -> None:
        """Go over to compiled code if it is there and reproduces the traced steps."""
        if self.compiling.is_ready and self.is_compiling:
            self._take(self.runner, state)

    def wait(self, state: State) -> None:
        """Compile, however long it takes."""
        self.compiling.start()
        if self.is_compiling:
            self._take(self.runner, state)

    def _take(self, trusted: Runner, state: State) -> None:
        memory = self.compiling.take(lambda run: difference(trusted, Compiled(run, self.tape), state, self.inputs))
        if memory is not None:
            self.runner = Compiled(memory, self.tape)

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        self.switch(state)
        return self.runner.run(state, inputs)

    def bound(self, program: Program, data: Sequence[Tensor] | None) -> Runner:
        return self.runner.bound(program, data)

    def rebound(self, log_joint: LogDensity, data: Sequence[Tensor]) -> "Best | None":
        """With other data; nothing is compiled again, since the code does not depend on it."""
        program = self.program.at(log_joint)
        new, eager, state = Best(program, self.tape.bound(data), self.inputs), Eager(program), program.init()
        new.num_threads, new._seconds, new.compiling.refused = self.num_threads, self._seconds, self.compiling.refused
        if self.engine is Engine.COMPILED:
            new.compiling.start()
            new._take(eager, state)
            return new if new.engine is Engine.COMPILED else None
        return new if difference(eager, new, state, new.inputs) is None else None

    def cancel(self) -> None:
        """Wait no more for what will not be used: what is compiled, or soon is, is on disk for another time."""
        self.compiling.cancel()


def prepare(
    program: Program, engine: Engine | None, inputs: Inputs, data: Sequence[Tensor] = (), waits: bool = True
) -> Runner:
    """A runner on the engine asked for, or on the fastest that reproduces the eager step.

    :param program: the program.
    :param engine: an engine, or None for the fastest.
    :param inputs: example inputs of a block of at least one step, on which engines are checked against the eager one.
    :param data: tensors that :meth:`~.tape.Tape.bound` may replace later.
    :param waits: whether compiled steps that were asked for are waited for; else steps are traced until there are any.
    """
    eager = Eager(program)
    if engine is Engine.EAGER:
        return eager
    try:
        tape = record(program, inputs, data)
        reason = difference(eager, Traced(tape), program.init(), inputs)
    except Exception as error:
        reason = NO_MEMORY if is_out_of_memory(error) else first_line(error)
    if reason is not None:
        _tell("traced", reason, "eager", "" if reason == NO_MEMORY else BRANCHES)
        return Eager(program, f"traced: {reason}")
    if engine is Engine.TRACED:
        return Traced(tape)
    best = Best(program, tape, inputs)
    if engine is Engine.COMPILED and waits:
        best.wait(program.init())
        if best.compiling.refused is not None:
            _tell("compiled", best.compiling.refused, "traced", "")
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
    nudge = torch.randn(state.params.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(state.params)
    state = state._replace(params=state.params + 0.01 * nudge)
    (right, right_losses), (found, losses) = (_seeded(runner, state, fresh) for runner in (trusted, other))
    tight, loose = 1e3 * torch.finfo(losses.dtype).eps, 1e-2
    for part, tolerance in ((slice(0, 1), tight), (slice(1, None), loose)):
        close = torch.isclose(losses[part], right_losses[part], rtol=tolerance, atol=tolerance, equal_nan=True)
        if not close.all():
            return f"its loss at fresh points is {losses[part][~close][0]:.6g}, not {right_losses[part][~close][0]:.6g}"
    if _is_close(found, right, loose) or _differ_by_rounding(trusted, other, state, fresh, found, loose):
        return None
    return "its gradient at fresh points differs from the model's"


def _is_close(found: State, right: State, tolerance: float) -> bool:
    """Whether the mean gradients are the same."""
    return bool((found.mean - right.mean).norm().nan_to_num() <= tolerance * right.mean.norm().nan_to_num() + 1e-12)


def _differ_by_rounding(
    trusted: Runner, other: Runner, state: State, inputs: Inputs, found: State, tolerance: float
) -> bool:
    """Whether each step by itself is the same, and a runner's steps one by one are its steps at once.

    Over several steps Adam can enlarge rounding at will, where a gradient of many signs is small or a flow is steep.
    """
    one = Inputs(*(part[:1] for part in inputs))
    alone = state
    for _ in range(len(inputs.noise)):
        (right, _), (step, _), (alone, _) = (
            _seeded(runner, at, one) for runner, at in ((trusted, state), (other, state), (other, alone))
        )
        if not _is_close(step, right, tolerance):
            return False
        state = right
    return other.is_random or _is_close(alone, found, tolerance)


def _seeded(runner: Runner, state: State, inputs: Inputs) -> tuple[State, Tensor]:
    """A few steps; the model's own random numbers, if any, are the same each time."""
    with forked(0):
        return runner.run(state, inputs)


def _seconds(runner: Runner, state: State, inputs: Inputs) -> float:
    """What a step takes."""
    few = Inputs(*(part[:3] for part in inputs))
    began = time.perf_counter()
    runner.run(state, few)
    return (time.perf_counter() - began) / len(few.noise)


def _tell(wanted: str, reason: str, taken: str, hint: str) -> None:
    message = f"the {wanted} engine cannot run this model ({reason}); using the {taken} engine, which is slower"
    warnings.warn(f"{message}. {hint}" if hint else message, EngineWarning, stacklevel=4)
