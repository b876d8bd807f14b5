r"""Ascents of a log density from many points at once.

L-BFGS [1] for every row of a batch, in lockstep: one evaluation of the whole batch is one trial step for each row,
which either takes it (and turns to its next direction) or shortens it. So many ascents cost little more than the
longest of them.

**References**

[1] J. Nocedal, S. Wright (2006). Numerical Optimization, 2nd edition, chapter 7.
"""

import math
import time

import torch
from torch import Tensor

from ..engine.density_gradient import DensityGradient
from ..numerics import finite
from .gaussians import Frame

#: Pairs of steps and changes of gradient that a row remembers.
MEMORY = 10
#: Share of the rise that the gradient promises which a step must bring.
ARMIJO = 1e-4
#: A row has arrived where its gradient, or the rise of a step for each nat of its height, is below these.
FLAT, LEVEL = 1e-3, 1e-7
#: A step so much shortened leads nowhere.
SHORTEST = 1e-8
#: How often a start without a density is taken halfway to the frame's middle.
NUM_NEARER = 6


def ascend(
    density: DensityGradient, starts: Tensor, frame: Frame, num_evaluations: int = 120, until: float = math.inf
) -> list[Tensor]:
    """The path up from each point, its start first.

    :param density: the log density.
    :param starts: ``(K, D)``.
    :param frame: coordinates to climb in; best those in which the density is round.
    :param num_evaluations: of the batch.
    :param until: when to stop where they are, by ``time.perf_counter``.
    :return: for each start a tensor ``(steps + 1, D)``.

    Example::

        >>> from pyro_nflows.modes.gaussians import Gaussian
        >>> frame = Gaussian(torch.zeros(2), torch.eye(2))
        >>> path = ascend(DensityGradient(lambda z: -z.square().sum(-1)), torch.ones(3, 2), frame)[0]
        >>> path[-1].abs().max() < 1e-3
        tensor(True)
    """
    climb = _Climb(density, starts, frame)
    for _ in range(num_evaluations):
        if bool(climb.done.all()) or time.perf_counter() > until:
            break
        climb.step()
    return climb.paths()


class _Climb:
    """Rows in the frame's coordinates ``x``, going down ``-log p``."""

    def __init__(self, density: DensityGradient, starts: Tensor, frame: Frame):
        self.density, self.frame = density, frame
        self.x = frame.whitened(starts)
        self.value, self.grad = self._evaluate(self.x)
        for _ in range(NUM_NEARER):
            if bool(torch.isfinite(self.value).all()):
                break
            self.x = torch.where(torch.isfinite(self.value)[:, None], self.x, 0.5 * self.x)
            self.value, self.grad = self._evaluate(self.x)
        self.steps = self.turns = self.x.new_zeros(0, *self.x.shape)
        self.done = ~torch.isfinite(self.value)
        self.visited = [(self.x, torch.ones_like(self.done))]
        self.direction = self._aim()
        self.step_size = self._first_step_size()

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``-log p``, infinite where it or its gradient is not finite."""
        z = self.frame.points(x)
        try:
            log_p, grad = self.density.values_and_grads(z, len(z))
        except (ValueError, RuntimeError):  # of one row, perhaps
            log_p, grad = (torch.stack(parts) for parts in zip(*map(self._alone, z)))
        log_p, grad = finite(log_p, grad)
        return -log_p, -self.frame.pulled(grad)

    def _alone(self, point: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self.density.value_and_grad(point)
        except (ValueError, RuntimeError):  # the model refuses to be evaluated there
            return torch.full_like(point[0], -torch.inf), torch.zeros_like(point)

    def _first_step_size(self) -> Tensor:
        """A full step, but none longer than the way to the frame's middle."""
        reach = self.x.norm(dim=-1).clamp(min=1.0)
        return (reach / self.direction.norm(dim=-1).clamp(min=1e-30)).clamp(max=1.0)

    def _aim(self) -> Tensor:
        """The quasi-Newton direction of each row, by the two-loop recursion; forgotten pairs are zero."""
        q, shares = self.grad, []
        scale = _ratio(_dot(self.steps, self.turns), _dot(self.turns, self.turns))
        rho = _ratio(torch.ones_like(scale), _dot(self.steps, self.turns))
        for s, y, r in zip(self.steps, self.turns, rho):
            shares.append(r * _dot(s, q))
            q = q - shares[-1][:, None] * y
        if len(scale):
            q = torch.where(scale[0] > 0, scale[0], 1.0)[:, None] * q
        for s, y, r, a in reversed(list(zip(self.steps, self.turns, rho, shares))):
            q = q + (a - r * _dot(y, q))[:, None] * s
        return -torch.where((_dot(q, self.grad) > 0)[:, None], q, self.grad)

    def step(self) -> None:
        """A trial step of every row that is not done."""
        trial = self.x + self.step_size[:, None] * self.direction
        value, grad = self._evaluate(trial)
        promised = self.step_size * _dot(self.grad, self.direction)
        taken = (value <= self.value + ARMIJO * promised) & ~self.done
        gain = self.value - value
        self._remember(taken, trial - self.x, grad - self.grad)
        self.x = torch.where(taken[:, None], trial, self.x)
        self.value, self.grad = torch.where(taken, value, self.value), torch.where(taken[:, None], grad, self.grad)
        self.visited.append((self.x, taken))
        arrived = (self.grad.abs().amax(-1) < FLAT) | (gain <= LEVEL * (1 + self.value.abs()))
        self._turn(taken, taken & arrived, promised, -gain)

    def _turn(self, taken: Tensor, arrived: Tensor, promised: Tensor, loss: Tensor) -> None:
        """New directions for those that moved, shorter steps for the others."""
        shorter = (-0.5 * promised / (loss - promised)).nan_to_num(nan=0.1).clamp(0.1, 0.5)
        self.direction = torch.where(taken[:, None], self._aim(), self.direction)
        self.step_size = torch.where(taken, self._first_step_size(), self.step_size * shorter)
        stuck = self.step_size < SHORTEST
        knows = _dot(self.steps, self.turns).sum(0) > 0 if len(self.steps) else stuck & False
        self._forget(stuck & knows)
        self.done = self.done | arrived | (stuck & ~knows)

    def _forget(self, which: Tensor) -> None:
        """Start again along the gradient."""
        if not bool(which.any()):
            return
        self.steps, self.turns = (torch.where(which[:, None], 0.0, memory) for memory in (self.steps, self.turns))
        self.direction = torch.where(which[:, None], -self.grad, self.direction)
        self.step_size = torch.where(which, self._first_step_size(), self.step_size)

    def _remember(self, taken: Tensor, step: Tensor, turn: Tensor) -> None:
        """The newest pair first, for rows along whose step the density is convex."""
        bent = _dot(step, turn)
        new = (taken & (bent > 1e-10 * _dot(turn, turn)))[:, None]
        if not bool(new.any()):
            return
        self.steps, self.turns = _pushed(self.steps, step, new), _pushed(self.turns, turn, new)

    def paths(self) -> list[Tensor]:
        points = torch.stack([x for x, _ in self.visited])
        taken = torch.stack([which for _, which in self.visited])
        z = self.frame.points(points)
        return [z[taken[:, k], k] for k in range(z.shape[1])]


def _pushed(memory: Tensor, row: Tensor, new: Tensor) -> Tensor:
    longer = torch.cat([memory, torch.zeros_like(row)[None]])
    return torch.where(new, torch.cat([row[None], memory]), longer)[:MEMORY]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, 0.0)
