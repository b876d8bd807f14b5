"""Steps of a program on the rows of a minibatch, which are inputs: recorded once, and compiled where that pays."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..checks import first_line
from .compiling import Code, Compiling, compile_seconds
from .program import Inputs, Program, State
from .runners import Engine
from .tape import Tape
from .times import RECORDING, SHARE


class Example(NamedTuple):
    """What a step on a minibatch is given: see :meth:`MinibatchSteps.run`."""

    state: State
    inputs: Inputs
    factors: Tensor
    rows: Tensor


class MinibatchSteps:
    """One step at a time of a program whose log joint reads chosen rows.

    :param program: the step, on a layer over as many rows as a minibatch has.
    :param choose: told the rows before each step; the program's log joint reads them.
    :param engine: asked for, or None for the fastest.
    """

    def __init__(self, program: Program, choose: Callable[[Tensor], None], engine: Engine | None = None):
        self.program, self.choose, self.asked = program, choose, engine
        self.engine, self.note = Engine.EAGER, cast(str | None, None)
        self._tape: Tape | None = None
        self._compiling: Compiling | None = None
        self._memory: Code | None = None

    def prepare(self, example: Example, num_steps: int, other: Tensor, seconds: float = math.inf) -> None:
        """Record the step, and begin to compile it if so many steps are worth that.

        :param example: of what a step is given.
        :param other: rows at which the recording is compared with the model.
        :param seconds: that there are for the steps; where a recording would take too much of them, there is none.
        """
        if self.asked is Engine.EAGER or (seconds < math.inf and self._is_long(example, seconds)):
            return
        state, inputs, factors, rows = example
        try:
            tape = Tape(self._step, [*state, *inputs, factors, rows])
            fresh = inputs._replace(noise=0.5 * inputs.noise.flip(0))
            pairs = zip(tape.run([*state, *fresh, factors, other]), self._step(*state, *fresh, factors, other))
            if not all(torch.allclose(a, b, rtol=1e-2, atol=1e-3, equal_nan=True) for a, b in pairs):
                raise RuntimeError("its step at other rows differs from the model's")
        except Exception as error:
            self.note = f"traced: {first_line(error)}"
            return
        self._tape, self.engine = tape, Engine.TRACED
        if self.asked is Engine.TRACED:
            return
        self._compiling = Compiling(tape, len(State._fields), state.params)
        if self.asked is Engine.COMPILED or num_steps > 20 * compile_seconds(tape):
            self._compiling.start()

    def _is_long(self, example: Example, seconds: float) -> bool:
        """Whether a recording would take too much of the time, by what a step does."""
        began = time.perf_counter()
        state, inputs, factors, rows = example
        self._step(*state, *inputs, factors, rows)
        return RECORDING * (time.perf_counter() - began) > SHARE * seconds

    def _step(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        num = len(State._fields)
        *inputs, self.program.factors, rows = tensors[num:]
        self.choose(rows)
        after, loss = self.program.step(State(*tensors[:num]), Inputs(*inputs))
        return *after, loss

    def run(self, state: State, inputs: Inputs, factors: Tensor, rows: Tensor) -> tuple[State, Tensor]:
        """The state after a step on some rows, and its loss.

        :param factors: what each parameter's step size is multiplied by.
        :param rows: the rows' numbers.
        """
        given = [*inputs, factors, rows]
        if self._memory is not None:
            carried, (losses,) = self._memory.run(state, [tensor[None] for tensor in given])
            return State(*carried), losses[0]
        if self._tape is None:
            *carried, loss = self._step(*state, *given)
            return State(*carried), loss
        with torch.inference_mode():
            *carried, loss = self._tape.run([*state, *given])
        self._switch(state, given, carried, loss)
        return State(*carried), loss

    def _switch(self, state: State, given: list[Tensor], right: list[Tensor], loss: Tensor) -> None:
        """Go over to compiled code if it is there and gives what the recording does."""
        compiling = self._compiling
        if compiling is None or not (compiling.is_ready or self.asked is Engine.COMPILED):
            return

        def differs(run: Code) -> str | None:
            found, (losses,) = run.run(state, [tensor[None] for tensor in given])
            if not torch.allclose(losses[0], loss, rtol=1e-3, atol=1e-3, equal_nan=True):
                return f"compiled code gives a loss of {float(losses[0]):.6g}, not {float(loss):.6g}"
            apart, size = torch.dist(found[1].nan_to_num(), right[1].nan_to_num()), right[1].nan_to_num().norm()
            return "compiled code gives another gradient" if apart > 1e-2 * size + 1e-12 else None

        self._memory, self._compiling = compiling.take(differs), None
        if self._memory is not None:
            self.engine = Engine.COMPILED
        else:
            self.note = f"compiled: {compiling.refused}"

    def close(self) -> None:
        """Wait no more for a compiler that is still at work."""
        if self._compiling is not None:
            self._compiling.cancel()
