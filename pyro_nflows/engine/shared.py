r"""Steps whose particles are divided among the processes of ``torch.distributed``.

Each process has a copy of the layer and of the model, takes a part of each step's particles, and adds what these say of
the gradient to what the others' do,

.. math:: g = \sum_r \sum_{k \in r} c_k \nabla \ell_k ,

before all take the same step. The coefficients :math:`c_k` are those of one process: where they depend on all weights,
as in a covering round, weights are exchanged first. So a fit is that of one process but for rounding, if the model
draws no random numbers of its own. Rank 0 says which steps are taken, and hands out the state and the noise; so nothing
that is decided, or measured, on one process has to be the same on another, not even how far it has compiled its steps.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..checks import first_line
from ..layers.base import Layer
from ..numerics import LogDensity
from ..objectives.base import Gradient, Objective
from ..system.randomness import forked
from ..system.ranks import Ranks
from ..system.signals import uninterrupted
from .compiling import Code, Compiling, compile_seconds
from .program import FEW, Inputs, Program, State, bound_of_most
from .runners import Engine, Runner
from .tape import Tape


class Form(NamedTuple):
    """What makes a program, but for the model, and may be sent.

    :param layer: the layer.
    :param objective: what is maximised.
    :param gradient: its estimator.
    :param num_particles: of all processes.
    :param max_norm: largest norm of a gradient.
    :param engine: asked for, or None for the fastest.
    """

    layer: Layer
    objective: Objective
    gradient: Gradient
    num_particles: int
    max_norm: float
    engine: Engine | None

    def program(self, log_joint: LogDensity, leaves: Sequence[Tensor]) -> Program:
        """The program, on this process's model."""
        return Program(
            log_joint, self.layer, self.objective, self.gradient, self.num_particles, leaves, max_norm=self.max_norm
        )


class PartOfSteps:
    """A process's part of the steps of a program.

    :param ranks: the processes.
    :param program: the step with all particles.
    :param engine: asked for, or None for the fastest.
    """

    def __init__(self, ranks: Ranks, program: Program, engine: Engine | None = None):
        self.ranks, self.program, self.asked = ranks, program, engine
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
        return [params, 2 * share * noise.to(params), one, share * one, params.new_full((num,), share)]

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
            *_, total, good = vector
            if weighs:
                loss = -bound_of_most(program.objective.mixed(given.share), everyone)
            else:
                loss = torch.where(good >= (1 - FEW) * program.num_particles, -total / good, torch.nan)
            self._move(state, vector[:-2], loss, float(given.step_size))
            losses.append(loss)
        return state, torch.stack(losses)

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

    def _vector(self, params: Tensor, given: Inputs, everyone: Tensor) -> Tensor:
        """What this process's particles add to the gradient and the loss."""
        if not self.num:
            return params.new_zeros(len(params) + 2)
        tensors = [params, given.noise, given.power, given.share, everyone]
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

    def _gradient(self, params: Tensor, noise: Tensor, power: Tensor, share: Tensor, everyone: Tensor) -> Tensor:
        return self.program.part_of_gradient(params, Inputs(noise, power, power, share), (everyone, self.part))

    def _weights(self, params: Tensor, noise: Tensor, power: Tensor, share: Tensor, everyone: Tensor) -> Tensor:
        return self.program.log_weights(params, Inputs(noise, power, power, share))

    def cancel(self) -> None:
        """Stop a compiler that is still at work."""
        if self._compiling is not None:
            self._compiling.cancel()


class Shared(Runner):
    """Runs steps on all processes, from the one that leads.

    :param number: by which the others know the program.
    :param own: this process's part.
    """

    def __init__(self, number: int, own: PartOfSteps):
        self.number, self.own, self.ranks = number, own, own.ranks

    @property
    def engine(self) -> Engine:
        return self.own.engine

    @property
    def note(self) -> str | None:
        return self.own.note

    @property
    def is_compiling(self) -> bool:
        return self.own.is_compiling

    def expect(self, num_steps: int) -> None:
        with uninterrupted():
            self.ranks.tell("expect", self.number, num_steps)
        self.own.expect(num_steps)

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        program, ranks = self.own.program, self.ranks
        weighs = program.objective.weighs(inputs.share)
        parts = [inputs.noise[:, ranks.share(program.num_particles, rank)] for rank in range(ranks.size)]
        common = torch.cat([part.reshape(-1) for part in (*state, *inputs[1:])])
        with uninterrupted():
            ranks.tell("steps", self.number, len(inputs.noise), weighs)
            ranks.hand_out(common, parts)
            return self.own.run(state, inputs._replace(noise=parts[0]), weighs)

    def bound(self, program: Program, data: Sequence[Tensor] | None) -> "Shared":
        if data is not None:
            raise NotImplementedError("Shared.bound: steps that are shared have the data of the run")
        return self

    def cancel(self) -> None:
        self.own.cancel()


def follow_steps(own: PartOfSteps, num_steps: int, weighs: bool) -> None:
    """Take part in steps that the process that leads has told of."""
    program, ranks = own.program, own.ranks
    params = program.params()
    sizes = [len(params)] * 3 + [1, 1] + [num_steps] * 3
    common, noise = ranks.take(params.new_empty(sum(sizes)), params.new_empty(num_steps, own.num, program.noise_width))
    parts = list(common.split(sizes))
    params, mean, square = parts[:3]
    state = State(params, mean, square, parts[3].reshape(()), parts[4].reshape(()))
    own.run(state, Inputs(noise, *parts[5:]), weighs)


def _same(found: Tensor, right: Tensor) -> bool:
    """Whether two vectors are the same but for rounding, which gradients of many terms make large in places."""
    apart, size = torch.dist(found.nan_to_num(), right.nan_to_num()), right.nan_to_num().norm()
    return bool(apart <= 1e-2 * size + 1e-12) and bool(torch.equal(found.isfinite(), right.isfinite()))


def _seeded(run: Callable[[list[Tensor]], Sequence[Tensor]], given: list[Tensor]) -> Sequence[Tensor]:
    with forked(0), torch.no_grad():
        return [each.clone() for each in run(given)]
