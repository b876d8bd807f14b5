r"""Products with a weight of which much is masked: only rectangles with something in them are multiplied.

A mask says which inputs each unit reads, by degrees: a unit of degree :math:`b` those of degree :math:`a \le b`. Where
degrees are in order, that is a triangle. It is cut into quarters, and these again, down to some ten units: of a wide
layer a little more than half is left, most of it without a mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: Matrices whose sides are no shorter are cut, and no side of a rectangle is shorter, but where degrees begin anew.
CUT, SHORTEST = 256, 64


@dataclass(frozen=True)
class Grid:
    """A matrix cut into rows and columns of cells; a cell is None where all is masked."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    cells: tuple[tuple["Cell", ...], ...]


Cell = Grid | Literal["whole", "masked"] | None


def grid(mask: Tensor, rows: Tensor, columns: Tensor) -> Cell:
    """How a mask is cut.

    :param mask: ``(m, n)``, true where a weight counts.
    :param rows: the degrees of its rows, ``(m,)``.
    :param columns: those of its columns, ``(n,)``.

    Example::

        >>> degrees = torch.arange(256)
        >>> cut = grid(degrees[:, None] >= degrees, degrees, degrees)
        >>> cut.rows, cut.columns, cut.cells[0][1], cut.cells[1][0]
        ((128, 128), (128, 128), None, 'whole')
    """
    if min(mask.shape) < CUT:
        return "masked"
    sizes = [_runs(degrees) for degrees in (rows, columns)]
    return _cut(mask, *sizes) if min(map(len, sizes)) and max(map(len, sizes)) > 1 else _cell(mask)


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, cell: Cell, bias: Tensor | None = None) -> Tensor:
    """``x`` times a masked weight, and a bias.

    :param x: ``(..., n)``.
    :param weight: ``(m, n)``.
    :param mask: ones and zeros, ``(m, n)``.
    :param cell: the mask's :func:`grid`.
    :param bias: ``(m,)``.
    :return: ``(..., m)``.

    Example::

        >>> mask = torch.ones(2, 3).tril()
        >>> masked_linear(torch.ones(3), torch.ones(2, 3), mask, "masked")
        tensor([1., 2.])
    """
    if not isinstance(cell, Grid):
        return torch.nn.functional.linear(x, weight * mask if cell == "masked" else weight, bias)
    inputs, results = x.split(cell.columns, -1), list[Tensor]()
    for part, part_mask, cells in zip(weight.split(cell.rows), mask.split(cell.rows), cell.cells):
        given = zip(inputs, part.split(cell.columns, 1), part_mask.split(cell.columns, 1), cells)
        terms = [masked_linear(*one) for one in given if one[-1] is not None]
        results.append(sum(terms[1:], terms[0]) if terms else x.new_zeros(*x.shape[:-1], len(part)))
    return torch.cat(results, -1) if bias is None else torch.cat(results, -1) + bias


def _runs(degrees: Tensor) -> tuple[int, ...]:
    """How many degrees are in order, up or down, one run after the other; one run if some but the last are short."""
    step = degrees.diff().sign()
    way = 1 if (step > 0).sum() >= (step < 0).sum() else -1
    ends = [0, *(1 + (step == -way).nonzero()[:, 0]).tolist(), len(degrees)]
    sizes = tuple(b - a for a, b in zip(ends, ends[1:]))
    return sizes if min(sizes[:-1], default=0) >= 2 * SHORTEST else (len(degrees),)


def _cell(mask: Tensor) -> Cell:
    """A part of a mask, cut into quarters if that leaves something out."""
    if not mask.any():
        return None
    if mask.all():
        return "whole"
    if min(mask.shape) < 2 * SHORTEST:
        return "masked"
    made = _cut(mask, *((n // 2, n - n // 2) for n in mask.shape))
    return made if {None, "whole"} & set(_leaves(made)) else "masked"


def _cut(mask: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> Grid:
    parts = [[_cell(part) for part in row.split(columns, 1)] for row in mask.split(rows)]
    return Grid(rows, columns, tuple(map(tuple, parts)))


def _leaves(cell: Cell) -> Iterator[Cell]:
    if isinstance(cell, Grid):
        for row in cell.cells:
            for part in row:
                yield from _leaves(part)
    else:
        yield cell
