r"""Do rows of plates have modes that a guide misses? Each row's density along lines, all rows at once.

Given what they are within, the rows of a plate are independent. So along a line in the base of the guide's flow,
:math:`x_i = t\, u_i` for all rows at the same time, the log density is a sum of one function of :math:`t` for each row,
and the gradient has the slope of each. What the slopes add up to is the density of each row along its line,
:math:`\tilde p_i(t)`, up to a factor, for the price of one gradient a point. The guide's is :math:`\phi(t)`, and where

.. math:: \log \tilde p_i(t) - \log \int \tilde p_i - \log \phi(t)

is large, the guide is too thin. The share of :math:`\int \tilde p_i` that lies there is missing. For rows of one
coordinate that is all of their density; for rows of several, slices through the middle of the guide in random
directions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.hierarchy import Block, Hierarchy
from ..numerics import LogDensity
from .missed import TOO_THIN

#: Half the length of a line in the guide's standard deviations, and points along it.
REACH, NUM_POINTS = 24.0, 241
#: Draws of what rows are within.
NUM_DRAWS = 3
#: Lines of rows that have several coordinates.
NUM_LINES = 8
#: Rows whose places are looked at again, since slopes are added up over steps.
NUM_AGAIN = 8
#: A share of a row's mass that is worth to look at again.
NOTABLE = 0.02


class MissedRow(NamedTuple):
    """A row, the share of its mass that is missed, and a place there.

    :param share: of the row's posterior mass along a line.
    :param point: all coordinates, with the row's in the part that is missed, ``(dim,)``.
    :param column: the row's coordinate in which that is farthest from the middle of the guide.
    """

    share: float
    point: Tensor
    column: int


class Line(NamedTuple):
    """Points along a line, and what is known there of rows.

    :param share: of each row's mass, what is where the guide is too thin, ``(rows,)``.
    :param place: the number of the point at which most of that is, ``(rows,)``.
    """

    share: Tensor
    place: Tensor


def line_points(like: Tensor) -> Tensor:
    """Places along a line, in the guide's standard deviations."""
    return torch.linspace(-REACH, REACH, NUM_POINTS).to(like)


def num_lines(row_dim: int) -> int:
    """Directions that rows of so many coordinates are searched in."""
    return 1 if row_dim == 1 else NUM_LINES


@torch.no_grad()
def missed_along(t: Tensor, log_p: Tensor) -> Line:
    """Of each row, the share of its mass along a line where the guide, a standard normal there, is too thin.

    It is zero where most of that is at the edge of such a part: then the guide is too narrow, which weights show.

    :param t: places along the line, equally far apart, ``(num,)``.
    :param log_p: the row's log density at these in the base, up to a constant, ``(num, rows)``.

    Example::

        >>> t = torch.linspace(-24.0, 24.0, 241)
        >>> two = torch.logaddexp(-0.5 * t**2, -0.5 * (t - 10) ** 2)
        >>> [round(share, 2) for share in missed_along(t, torch.stack([-0.5 * t**2, two], 1)).share.tolist()]
        [0.0, 0.5]
    """
    step = float(t[1] - t[0])
    log_p = log_p.double().nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    share = log_p.softmax(0).nan_to_num(0.0)
    log_q = -0.5 * t.double().square() - 0.5 * math.log(2 * math.pi)
    thin = (share / step).log() - log_q[:, None] > TOO_THIN
    missed, ends = share * thin, torch.zeros_like(thin[:1])
    place = missed.argmax(0)
    inside = thin & torch.cat([ends, thin[:-1]]) & torch.cat([thin[1:], ends])
    is_mode = inside.gather(0, place[None])[0]
    return Line(missed.sum(0) * is_mode, place)


def missed_row(
    density: LogDensity, slope: Callable[[Tensor], Tensor], hierarchy: Hierarchy, base: Tensor
) -> MissedRow | None:
    """The row of which most is missed, if any is notable; its point is one of the base.

    :param density: the log density in the base, ``(K, dim) -> (K,)``.
    :param slope: its gradient, ``(K, dim) -> (K, dim)``.
    :param hierarchy: of the flat latent; the base has what is outside of plates first, then the blocks.
    :param base: points of the base, ``(num, dim)``; rows are as there, but for those of one block after another.
    """
    found, start = list[MissedRow](), len(hierarchy.top)
    for block in hierarchy.blocks:
        places = torch.arange(start, start + block.columns.numel()).view(block.columns.shape)
        start += block.columns.numel()
        for _ in range(num_lines(block.row_dim)):
            found += _along(density, slope, block, places, base[:NUM_DRAWS])
    return max(found, key=lambda row: row.share, default=None)


def _along(
    density: LogDensity, slope: Callable[[Tensor], Tensor], block: Block, places: Tensor, base: Tensor
) -> list[MissedRow]:
    """Rows of a block that are missed along lines, each in a random direction of its own."""
    t, u = line_points(base), torch.randn(places.shape).to(base)
    u = u / u.norm(dim=-1, keepdim=True)
    shares = list[Tensor]()
    for point in base:
        points = point.repeat(len(t), 1)
        points[:, places.reshape(-1)] = (t[:, None, None] * u).reshape(len(t), -1)
        slopes = (slope(points)[:, places] * u).sum(-1).double()
        climbed = torch.cumulative_trapezoid(slopes, t.double(), dim=0)
        shares.append(missed_along(t, torch.cat([climbed.new_zeros(1, climbed.shape[1]), climbed])).share)
    share, found = torch.stack(shares).mean(0), list[MissedRow]()
    for row in share.argsort(descending=True)[:NUM_AGAIN].tolist():
        if share[row] < NOTABLE:
            break
        points = base[0].repeat(len(t), 1)
        points[:, places[row]] = t[:, None] * u[row]
        again = missed_along(t, density(points)[:, None])
        if float(again.share) >= NOTABLE:
            column = int(block.columns[row, int(u[row].abs().argmax())])
            found.append(MissedRow(float(again.share), points[int(again.place)], column))
    return found
