r"""Steps on the rows of a minibatch whose particles are divided among the processes of ``torch.distributed``.

All processes have the same rows in a step, which the one that leads has chosen, and the same noise for what is outside
of plates and for rows, of which each takes a part of the particles (:mod:`~pyro_nflows.engine.shared`). The numbers of
all rows, and what Adam remembers of them, are with the one that leads: the others are told those of the step's rows.

Telling them, and adding up, takes about a millisecond. So steps that are not much longer are taken by the process that
leads alone.
"""

import math
import pickle
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from ..system.ranks import RankError, Ranks
from ..system.signals import uninterrupted
from .minibatch_steps import Example, MinibatchSteps
from .part_of_steps import Chosen, PartOfSteps
from .program import Inputs, Program, State
from .runners import Engine

#: What the others are told at each step: that there is one, or that there are no more.
STEP, END = 1, 0


class SharedMinibatchSteps(MinibatchSteps):
    """One step at a time, of all processes, from the one that leads; where steps are short, of that one alone.

    :param ranks: the processes.
    :param stage: by which the others know the program.
    :param program: the step with all particles.
    :param choose: told the rows before each step; the program's log joint reads them.
    :param engine: asked for, or None for the fastest.
    """

    def __init__(
        self, ranks: Ranks, stage: int, program: Program, choose: Callable[[Tensor], None], engine: Engine | None = None
    ):
        super().__init__(program, choose, engine)
        self.ranks, self.stage = ranks, stage
        self._own: PartOfSteps | None = None

    def prepare(self, example: Example, num_steps: int, other: Tensor, seconds: float = math.inf) -> None:
        """As for one process, or have all of them record their part of a step, and compile it if that pays.

        :raises RuntimeError: if one of them cannot run it.
        """
        own = PartOfSteps(self.ranks, self.program, self.asked, Chosen(self.choose, example.rows, other))
        own.prepare()
        if own.is_short():
            own.cancel()
            return super().prepare(example, num_steps, other, seconds)
        sent = pickle.dumps((self.program.layer.state_dict(), example.rows, other))
        with uninterrupted():
            self.ranks.tell("row_steps", self.stage, sent, self.asked, num_steps)
            reasons = [f"rank {i}: {reason}" for i, reason in enumerate(self.ranks.gather(None)) if reason]
            if reasons:
                raise RuntimeError(f"VI.run: a rank cannot take a step by minibatches ({reasons[0]})")
            self._own = own
        own.expect(num_steps)

    def run(self, state: State, inputs: Inputs, factors: Tensor, rows: Tensor) -> tuple[State, Tensor]:
        """The state after a step on some rows, and its loss; see the same of one process."""
        program, own = self.program, self._own
        if own is None:
            return super().run(state, inputs, factors, rows)
        with uninterrupted():
            _tell(own, STEP, rows, state.params, inputs.noise)
            vector = self.ranks.sum_(own.on_rows(rows, state.params, inputs.noise))
        self.engine, self.note, program.factors = own.engine, own.note, factors
        gradient, loss, is_good = program.clipped(vector[:-2], own.loss_of(*vector[-2:]))
        return program.moved(state, gradient, is_good, inputs.step_size), loss

    def close(self) -> None:
        """Tell the others that there are no more steps, and stop a compiler that is still at work."""
        super().close()
        own, self._own = self._own, None
        if own is None:
            return
        own.cancel()
        _, rows, params, noise = _blank(own)
        with suppress(RankError), uninterrupted():
            _tell(own, END, rows, params, noise)


def follow_minibatches(own: PartOfSteps) -> None:
    """Take part in steps on minibatches until the process that leads says that there are no more."""
    while True:
        what, rows, params, noise = _blank(own)
        numbers, values = torch.cat([what, rows]), torch.cat([params, noise.reshape(-1)])
        own.ranks.broadcast(numbers, values)
        if numbers[0] == END:
            return
        own.ranks.sum_(own.on_rows(numbers[1:], values[: len(params)], values[len(params) :].view(noise.shape)))


def _tell(own: PartOfSteps, what: int, rows: Tensor, params: Tensor, noise: Tensor) -> None:
    own.ranks.broadcast(torch.cat([rows.new_tensor([what]), rows]), torch.cat([params, noise.reshape(-1)]))


def _blank(own: PartOfSteps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a step is told, in zeros: what is to be done, the rows' numbers, the parameters and the noise."""
    program, chosen = own.program, own.chosen
    if chosen is None:
        raise ValueError("follow_minibatches: the program reads no chosen rows")
    params = torch.zeros_like(program.params())
    noise = params.new_zeros(program.num_particles, program.noise_width)
    return chosen.example.new_zeros(1), torch.zeros_like(chosen.example), params, noise
