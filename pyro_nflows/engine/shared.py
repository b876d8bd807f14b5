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
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers.base import Layer
from ..numerics import LogDensity
from ..objectives.base import Gradient, Objective
from ..system.signals import uninterrupted
from .part_of_steps import PartOfSteps
from .program import Inputs, Program, State
from .runners import Engine, Runner


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

    def expect(self, num_steps: int, seconds: float = math.inf) -> None:
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
