"""A round of training: how many steps, and of what size."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Round:
    """One run of the schedule: the step size falls from ``step_size`` to zero along a cosine.

    For the first ``annealing`` share of the steps, ``log p`` is multiplied by a power that grows from 0.01 to 1.
    ``balanced`` is for several modes (:class:`~pyro_nflows.objectives.covering.Balanced`); ``covering`` gives draws of
    large weight more say (:class:`~pyro_nflows.objectives.covering.Covering`). Where the time of a run is limited, the
    round ends, and its step size is zero, when ``share`` of what is left for training is over. With ``settles``, it
    ends early once its bound has settled (:mod:`~pyro_nflows.engine.resting`).
    """

    num_steps: int
    num_particles: int
    step_size: float
    annealing: float = 0.0
    covering: bool = False
    balanced: bool = False
    share: float = 1.0
    settles: bool = False

    def halves(self, most: int) -> list["Round"]:
        """Two rounds of half as many steps, if there are more than ``most``; else this one.

        Example::

            >>> [half.num_steps for half in Round(4800, 128, 2e-3).halves(2400)]
            [2400, 2400]
        """
        if self.num_steps <= most:
            return [self]
        half = self.num_steps // 2
        return [replace(self, num_steps=half), replace(self, num_steps=self.num_steps - half)]

    def step_sizes(self, like: Tensor) -> Tensor:
        """Step sizes, one a step."""
        turn = torch.arange(self.num_steps).to(like) / self.num_steps * math.pi
        return 0.5 * self.step_size * (1 + turn.cos())

    def powers(self, like: Tensor) -> Tensor:
        """Powers of ``log p``, one a step."""
        steps = torch.arange(self.num_steps).to(like)
        grow = self.annealing * self.num_steps
        return (0.01 + steps / grow).clamp(max=1.0) if grow else torch.ones_like(steps)
