r"""Hamiltonian trajectories [1] of many points at once.

**References**

[1] R. Neal (2011). MCMC Using Hamiltonian Dynamics.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: A log density and its gradient at rows ``(N, D)``: ``(N,)`` and ``(N, D)``.
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


class Points(NamedTuple):
    """Rows ``(N, D)`` with their log density ``(N,)`` and its gradient."""

    x: Tensor
    log_p: Tensor
    grad: Tensor


def move(
    evaluate: Evaluate, points: Points, step_size: float | Tensor, num_leapfrogs: int, beta: float = 1.0
) -> tuple[Points, float]:
    r"""A trajectory of every point, taken or not, for the density :math:`N(x; 0, I)^{1 - \beta}\, p(x)^\beta`.

    :param evaluate: :math:`\log p` and its gradient.
    :param points: where the trajectories begin.
    :param step_size: leapfrog step, or one for each coordinate; each row's is random, within half of it to either side.
    :param num_leapfrogs: steps.
    :param beta: 1 for :math:`p` itself.
    :return: the points, and the mean probability of acceptance.

    Example::

        >>> torch.manual_seed(0).initial_seed()
        0
        >>> def evaluate(x):
        ...     return -0.5 * x.square().sum(-1), -x
        ...
        >>> points = Points(torch.zeros(1000, 2), *evaluate(torch.zeros(1000, 2)))
        >>> points, accepted = move(evaluate, points, 0.3, 5)
        >>> accepted > 0.95
        True
    """
    momentum = torch.randn_like(points.x)
    step = (0.5 + torch.rand_like(points.log_p))[:, None] * step_size
    new, p = points, momentum
    for _ in range(num_leapfrogs):
        p = p + 0.5 * step * (beta * new.grad - (1 - beta) * new.x)
        x = new.x + step * p
        new = Points(x, *evaluate(x))
        p = p + 0.5 * step * (beta * new.grad - (1 - beta) * new.x)
    gain = _energy(points, momentum, beta) - _energy(new, p, beta)
    accept = torch.rand_like(gain).log() < gain
    rows = accept[:, None]
    kept = torch.where(rows, new.x, points.x), torch.where(accept, new.log_p, points.log_p)
    probability = float(gain.nan_to_num(-math.inf).exp().clamp(max=1).mean())
    return Points(*kept, torch.where(rows, new.grad, points.grad)), probability


def _energy(points: Points, momentum: Tensor, beta: float) -> Tensor:
    return 0.5 * momentum.square().sum(-1) + 0.5 * (1 - beta) * points.x.square().sum(-1) - beta * points.log_p
