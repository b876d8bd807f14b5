r"""What one process of ``torch.distributed`` adds to steps that several of them take together."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..checks import first_line
from ..system.randomness import forked
from ..system.ranks import Ranks
from .compiling import Code, Compiling, compile_seconds
from .program import FEW, Inputs, Program, State, bound_of_most
from .runners import Engine
from .tape import Tape

#: Seconds of a step, by all particles, from which on sharing it pays, which takes a millisecond or two by itself: of a
#: step that stays as it is, and of one that compiling is to make shorter.
LEAST, LEAST_COMPILED = 4e-3, 2e-2


class Chosen(NamedTuple):
    """Rows that a program's log joint reads, where it reads some of them at a time.

    :param choose: told their numbers before each step.
    :param example: numbers of as many as a step has.
    :param other: others, at which a recording is compared with the model.
    """

    choose: Callable[[Tensor], None]
    example: Tensor
    other: Tensor


class PartOfSteps:
    """A process's part of the steps of a program.

    :param ranks: the processes.
    :param program: the step with all particles.
    :param engine: asked for, or None for the fastest.
    :param chosen: the rows that the program reads, if each step has other ones.
    """

    def __init__(self, ranks: Ranks, program: Program, engine: Engine | None = None, chosen: Chosen | None = None):
        self.ranks, self.program, self.asked, self.chosen = ranks, program, engine, chosen
        self.part = ranks.share(program.num_particles)
        self.num = self.part.stop - self.part.start
        self.engine, self.note = Engine.EAGER, cast(str | None, None)
        self._tape: Tape | None = None
        self._compiling: Compiling | None = None
        self._is_settled = False
        self._weighing: Callable[..., Tensor] | None = None
        self._memory: Code | None = None

    def prepare(self) -> None:
        """Record this part of a step, where it can be and was asked for; compile it, if that was."""
        if self.asked is Engine.EAGER or not self.num:
            return
        try:
            self._tape = self._recorded(self._gradient)
        except Exception as error:
            self.note = f"traced: {first_line(error)}"
            return
        self.engine = Engine.TRACED
        if self.asked is Engine.COMPILED:
            self._compile()

    def _recorded(self, function: Callable[..., Tensor]) -> Tape:
        """A recording of a function of a step, compared with it at fresh points.

        :raises RuntimeError: if it differs there.
        """
        example, fresh = self._given(0.25), self._given(0.75)
        if self.chosen is not None:
            fresh[-1] = self.chosen.other
        tape = Tape(lambda *given: [function(*given)], example)
        found, right = (_seeded(run, fresh) for run in (tape.run, lambda given: [function(*given)]))
        if not _same(found[0], right[0]):
            raise RuntimeError("its step at fresh points differs from the model's")
        return tape

    def _given(self, share: float) -> list[Tensor]:
        """An example of what a step is given."""
        params, num = self.program.params(), self.program.num_particles
        noise = torch.randn(
            self.num, self.program.noise_width, generator=torch.Generator().manual_seed(0), device="cpu"
        )
        one = params.new_ones(())
        rows = [] if self.chosen is None else [self.chosen.example]
        return [params, 2 * share * noise.to(params), one, share * one, params.new_full((num,), share), *rows]

    def expect(self, num_steps: int) -> None:
        """Begin to compile if so many steps are worth that."""
        if self._tape is None or self._compiling is not None or self._is_settled or self.asked is Engine.TRACED:
            return
        given, began = self._given(0.25), time.perf_counter()
        self._tape.run(given)
        if num_steps * (time.perf_counter() - began) > compile_seconds(self._tape):
            self._compile()

    def _compile(self) -> None:
        carrying = Tape(lambda *given: [given[0], self._gradient(*given)], self._given(0.25))
        self._compiling = Compiling(carrying, 1, self.program.params())
        self._compiling.start()

    def is_short(self) -> bool:
        """Whether one process takes a step, by all particles, in less time than it takes to share it."""
        if not self.num:
            return True
        took, given = list[float](), self._given(0.25)
        for _ in range(2):  # the first one gets things ready
            began = time.perf_counter()
            _seeded(
                lambda tensors: [self._gradient(*tensors)] if self._tape is None else self._tape.run(tensors), given
            )
            took.append(time.perf_counter() - began)
        compiles = self._tape is not None and self.asked is not Engine.TRACED
        return min(took) * self.program.num_particles / self.num < (LEAST_COMPILED if compiles else LEAST)

    @property
    def is_compiling(self) -> bool:
        """Whether a compiler is at work."""
        return self._compiling is not None and self._compiling.is_under_way

    @torch.no_grad()
    def run(self, state: State, inputs: Inputs, weighs: bool) -> tuple[State, Tensor]:
        """The state after some steps, and each one's loss; all processes are in here together.

        :param state: the same for all.
        :param inputs: with the noise of this process's particles.
        :param weighs: whether weights are exchanged.
        """
        program, losses, state = self.program, [], State(*(part.clone() for part in state))
        everyone = state.params.new_zeros(program.num_particles)
        for row in zip(*inputs):
            given = Inputs(*row)
            if weighs:
                everyone = self._everyone(state.params, given)
            vector = self.ranks.sum_(self._vector(state.params, given, everyone))
            if weighs:
                loss = -bound_of_most(program.objective.mixed(given.share), everyone)
            else:
                loss = self.loss_of(*vector[-2:])
            self._move(state, vector[:-2], loss, float(given.step_size))
            losses.append(loss)
        return state, torch.stack(losses)

    def loss_of(self, total: Tensor, good: Tensor) -> Tensor:
        """The loss of a step, from the sum of the finite log-weights and their number; NaN where these are too few."""
        return torch.where(good >= (1 - FEW) * self.program.num_particles, -total / good, torch.nan)

    def _move(self, state: State, gradient: Tensor, loss: Tensor, step_size: float) -> None:
        """A step of :meth:`Program.step`, in place, as it takes longer the more parameters there are."""
        norm, most, factors = float(gradient.norm()), self.program.max_norm, self.program.factors
        if not (math.isfinite(norm) and math.isfinite(float(loss))):
            state.skipped.add_(1)
            return
        if norm > most:
            gradient.mul_(most / norm)
        count = float(state.steps.add_(1))
        state.mean.mul_(0.9).add_(gradient, alpha=0.1)
        state.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        step = state.mean / state.square.sqrt().add_(1e-8)
        step = step if factors is None else step.mul_(factors)
        state.params.add_(step, alpha=-step_size * math.sqrt(1 - 0.999**count) / (1 - 0.9**count))

    def _everyone(self, params: Tensor, given: Inputs) -> Tensor:
        """The log-weights of all particles."""
        found = params.new_zeros(self.program.num_particles)
        if self.num:
            tensors = [params, given.noise, given.power, given.share, found]
            if self._weighing is None:
                self._weighing = self._weights if self._tape is None else self._weights_recorded()
            found[self.part] = self._weighing(*tensors)
        return self.ranks.sum_(found)

    @torch.no_grad()
    def on_rows(self, rows: Tensor, params: Tensor, noise: Tensor) -> Tensor:
        """What this process's particles add to the gradient and the loss of a step on some rows.

        :param rows: their numbers.
        :param params: the parameters of a layer over them.
        :param noise: of all particles.
        """
        one = params.new_ones(())
        given = Inputs(noise[self.part], one, one, 0 * one)
        return self._vector(params, given, params.new_zeros(self.program.num_particles), rows)

    def _vector(self, params: Tensor, given: Inputs, everyone: Tensor, *rows: Tensor) -> Tensor:
        """What this process's particles add to the gradient and the loss."""
        if not self.num:
            return params.new_zeros(len(params) + 2)
        tensors = [params, given.noise, given.power, given.share, everyone, *rows]
        if self._memory is not None:
            _, (vector,) = self._memory.run(tensors[:1], [tensor[None] for tensor in tensors[1:]])
            return vector[0].clone()
        if self._tape is None:
            return self._gradient(*tensors)
        vector = self._tape.run(tensors)[0].clone()
        self._switch(tensors, vector)
        return vector

    def _switch(self, tensors: list[Tensor], right: Tensor) -> None:
        """Go over to compiled code if it is there and gives what the recording does."""
        compiling = self._compiling
        if compiling is None or not (compiling.is_ready or self.asked is Engine.COMPILED):
            return

        def differs(run: Code) -> str | None:
            _, (found,) = run.run(tensors[:1], [tensor[None] for tensor in tensors[1:]])
            return None if _same(found[0], right) else "compiled code gives another gradient"

        self._memory = compiling.take(differs)
        if self._memory is not None:
            self.engine = Engine.COMPILED
        elif compiling.refused is not None:
            self.note = f"compiled: {compiling.refused}"
        self._compiling, self._is_settled = None, True

    def _weights_recorded(self) -> Callable[..., Tensor]:
        try:
            tape = self._recorded(self._weights)
        except Exception as error:
            self.note = f"traced: {first_line(error)}"
            return self._weights
        return lambda *given: tape.run(list(given))[0]

    def _gradient(
        self, params: Tensor, noise: Tensor, power: Tensor, share: Tensor, everyone: Tensor, *rows: Tensor
    ) -> Tensor:
        if self.chosen is not None:
            self.chosen.choose(*rows)
        return self.program.part_of_gradient(params, Inputs(noise, power, power, share), (everyone, self.part))

    def _weights(self, params: Tensor, noise: Tensor, power: Tensor, share: Tensor, everyone: Tensor) -> Tensor:
        return self.program.log_weights(params, Inputs(noise, power, power, share))

    def cancel(self) -> None:
        """Wait no more for a compiler that is still at work."""
        if self._compiling is not None:
            self._compiling.cancel()


def _same(found: Tensor, right: Tensor) -> bool:
    """Whether two vectors are the same but for rounding, which gradients of many terms make large in places."""
    apart, size = torch.dist(found.nan_to_num(), right.nan_to_num()), right.nan_to_num().norm()
    return bool(apart <= 1e-2 * size + 1e-12) and bool(torch.equal(found.isfinite(), right.isfinite()))


def _seeded(run: Callable[[list[Tensor]], Sequence[Tensor]], given: list[Tensor]) -> Sequence[Tensor]:
    with forked(0), torch.no_grad():
        return [each.clone() for each in run(given)]
