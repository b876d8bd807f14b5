r"""When a round may end before its last step: where its bound has come to rest next to the log evidence.

The bound of a step is a mean of :math:`K` log-weights, so its noise from step to step says how much they differ, and
that is what the bound lacks: near the posterior,

.. math:: \log Z - \mathrm{ELBO} \approx \tfrac12 \mathrm{Var}(\log w) = \tfrac12 K\, \mathrm{Var}(\text{bound}).

A round has settled where this is below :data:`LEFT` over two blocks of steps, and the second block's mean is no higher
than the first one's but for noise. It then ends in a cooling tail, in which its steps fall to zero along a cosine as
they would have done at its end. A round that rests far below the evidence is not ended: there, smaller steps bring
much of what is still to be had, and they come last. Nor is a round that covers: a few heavy weights are not seen in
the noise of a bound.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .round import Round

if TYPE_CHECKING:
    from .course import Course

#: Steps between looks at the losses, whatever the engine: what is done about them does not depend on it.
BLOCK = 50
#: Nats that a bound may lack where it has settled: a fifth of what an ESS of 0.95 does.
LEFT = 0.005
#: The share of a round's steps in which it cools, and blocks at least.
TAIL, FEWEST = 1 / 8, 1


def is_settled(elbos: Tensor, num_particles: int) -> bool:
    """Whether a bound lacks little and moves no more.

    :param elbos: its estimates at the latest steps, of which two blocks are looked at.
    :param num_particles: of which each is a mean.

    Example::

        >>> noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
        >>> is_settled(3.0 + 0.005 * noise, 128), is_settled(3.0 + 0.05 * noise, 128)
        (True, False)
        >>> is_settled(3.0 + 0.005 * noise + 0.0005 * torch.arange(100), 128)
        False
    """
    if len(elbos) < 2 * BLOCK:
        return False
    blocks = elbos[-2 * BLOCK :].double().view(2, BLOCK)
    square = 0.5 * blocks.diff(dim=1).square().mean()
    gain = float(blocks[1].mean() - blocks[0].mean())
    lacks = 0.5 * num_particles * float(square)
    return lacks < LEFT and gain < 2 * math.sqrt(2 * float(square) / BLOCK)  # not where one of them is not finite


def tail_of(num_steps: int) -> int:
    """Steps in which a round of so many cools once it has settled: whole blocks.

    Example::

        >>> tail_of(600), tail_of(4800)
        (50, 600)
    """
    return BLOCK * max(FEWEST, int(TAIL * num_steps) // BLOCK)


def cooled(step_sizes: Tensor, start: int | None) -> Tensor:
    """The step sizes of a round that cools from a step on; None where it does not.

    Example::

        >>> sizes = cooled(torch.ones(600), 100)
        >>> sizes[[99, 100, 125, 149, 150]]
        tensor([1.0000, 1.0000, 0.5000, 0.0010, 0.0000])
    """
    if start is None:
        return step_sizes
    num = tail_of(len(step_sizes))
    turn = torch.arange(num).to(step_sizes) / num * math.pi
    sizes = torch.zeros_like(step_sizes)
    sizes[:start] = step_sizes[:start]
    sizes[start : start + num] = 0.5 * step_sizes[start] * (1 + turn.cos())[: len(sizes) - start]
    return sizes


def settle(courses: "Sequence[Course]", plan: Round, reached: int) -> None:
    """Have fits that have settled cool, and end those that have cooled.

    :param courses: in the round.
    :param plan: the round, which says whether it may end early.
    :param reached: steps of it that are done.
    """
    if not plan.settles:
        return
    tail = tail_of(plan.num_steps)
    for course in courses:
        if course.cools_from is not None:
            course.done |= reached >= course.cools_from + tail
        elif reached + tail < plan.num_steps and is_settled(course.latest(2 * BLOCK), plan.num_particles):
            course.cools_from = reached
