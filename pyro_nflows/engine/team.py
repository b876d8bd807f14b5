"""What a trainer has of the processes of ``torch.distributed``: runners of shared steps, and shared draws."""

import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import first_line
from ..layers.base import Layer
from ..objectives.draws import Draws
from ..system.ranks import Ranks
from ..system.signals import uninterrupted
from .backends import EngineWarning
from .part_of_steps import PartOfSteps
from .program import Program
from .runners import Engine
from .shared import Form, Shared

#: Fewer draws than this are not worth telling others of.
FEWEST = 400


class Team:
    """The processes, seen from the one that leads.

    :param ranks: the processes.
    :param leaves: the model's own parameters, which the others are told where they make draws.
    """

    def __init__(self, ranks: Ranks, leaves: Sequence[Tensor] = ()):
        self.ranks, self.leaves = ranks, leaves
        self._num = 0

    def prepare(self, program: Program, engine: Engine | None) -> Shared | None:
        """A runner whose steps all processes take; None where a step is short, or one of them cannot take it."""
        form = Form(program.layer, program.objective, program.gradient, program.num_particles, program.max_norm, engine)
        own = PartOfSteps(self.ranks, program, engine)
        try:
            sent = pickle.dumps(form)
        except Exception as error:
            self._warn(f"its layer cannot be sent: {first_line(error)}")
            return None
        own.prepare()
        if own.is_short():
            own.cancel()
            return None
        self._num += 1
        with uninterrupted():
            self.ranks.tell("program", self._num, sent)
            reasons = [f"rank {i}: {reason}" for i, reason in enumerate(self.ranks.gather(None)) if reason]
        if reasons:
            self._warn(reasons[0])
            return None
        return Shared(self._num, own)

    def _warn(self, reason: str) -> None:
        text = f"particles cannot be shared among {self.ranks.size} processes ({reason}); rank 0 trains this alone"
        warnings.warn(text, EngineWarning, stacklevel=4)

    def expect(self, layer: Layer, num_samples: int) -> None:
        """Tell the others that so many draws are to come."""
        with uninterrupted():
            self.ranks.tell("expect_draws", pickle.dumps(layer), num_samples // self.ranks.size)

    def draws(self, own: Callable[[Layer, Tensor], Draws], layer: Layer, noise: Tensor) -> Draws:
        """Draws at given points of the base, made and weighed by all processes.

        :param own: makes this process's part.
        """
        if len(noise) < FEWEST:
            return own(layer, noise)
        parts = [noise[self.ranks.share(len(noise), rank)] for rank in range(self.ranks.size)]
        leaves = [leaf.detach().cpu() for leaf in self.leaves]
        with uninterrupted():
            self.ranks.tell("draws", pickle.dumps((layer, parts[1:], leaves)))
            return joined(self.ranks, own(layer, parts[0]))


def joined(ranks: Ranks, draws: Draws) -> Draws:
    """The draws of all processes, in order."""
    found: list[Any] = ranks.gather((draws.z, draws.log_p, draws.log_q))
    z, log_p, log_q = (torch.cat(parts) for parts in zip(*found))
    return Draws(z, log_p, log_q)
