r"""Which rows of each block the terms of a log joint read, and rows that are independent of each other given the rest.

A game between players :math:`i` and :math:`j` reads two rows of one plate. Rows are put into buckets at random: of a
term that reads few rows, each is alone in its bucket, nearly always, and the derivatives along directions in one bucket
tell it as if there were no other (:mod:`~pyro_nflows.model.row_owners`); where not, other buckets are tried.

Rows that no term reads together are independent given all else. So rows get colours, those of one term different ones:
the row that has most neighbours first, and each the first colour that none of its neighbours has [1].

**References**

[1] D. J. A. Welsh, M. B. Powell (1967). An Upper Bound for the Chromatic Number of a Graph and its Application to
Timetabling Problems.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .hierarchy import Hierarchy
from .row_owners import Derivatives, SeveralRowsError, owners_along

#: Buckets, and how often others are tried; rows that a term may read, and colours that there may be.
NUM_BUCKETS, NUM_TRIES, MOST_ROWS, MOST_COLOURS = 32, 8, 6, 64


class Pairs(NamedTuple):
    """Each term of a run of the model with each row that it reads, by their numbers."""

    terms: Tensor
    rows: Tensor


def rows_read(derivatives: Derivatives, name: str, columns: Tensor) -> Pairs:
    """The rows that each term reads.

    :param derivatives: of all terms.
    :param name: of the plates, for the message.
    :param columns: of each row's coordinates, ``(rows, d)``.
    :raises SeveralRowsError: if a term reads more than :data:`MOST_ROWS`.

    Example::

        >>> first, second = torch.tensor([0, 3, 8]), torch.tensor([1, 2, 2])
        >>> games = Derivatives(lambda z: (z[first] - z[second]).sigmoid().log(), torch.randn(9))
        >>> found = rows_read(games, "players", torch.arange(9)[:, None])
        >>> sorted(zip(found.terms.tolist(), found.rows.tolist()))
        [(0, 0), (0, 1), (1, 2), (1, 3), (2, 2), (2, 8)]
    """
    owner, known = owners_along(derivatives, columns, torch.arange(len(columns)))
    if bool(known.all()):
        return Pairs((owner >= 0).nonzero()[:, 0], owner[owner >= 0])
    terms, rows, left = list[Tensor](), list[Tensor](), torch.ones_like(known)
    for attempt in range(NUM_TRIES):
        bucket = torch.randint(NUM_BUCKETS, (len(columns),))
        all_known, owners = left.clone(), list[Tensor]()
        for number in range(NUM_BUCKETS):
            owner, known = owners_along(derivatives, columns, (bucket == number).nonzero()[:, 0])
            all_known &= known
            owners.append(owner)
        found = torch.stack(owners)
        bucket, term = ((found >= 0) & all_known).nonzero(as_tuple=True)
        several = (found[:, all_known] >= 0).sum(0)
        if bool((several > MOST_ROWS).any()) or (not attempt and 2 * len(several) < len(left)):
            break
        terms.append(term)
        rows.append(found[bucket, term])
        left &= ~all_known
        if not bool(left.any()):
            return Pairs(torch.cat(terms), torch.cat(rows))
    raise SeveralRowsError(f"a term of the model reads many rows of plate '{name}' at once")


class RowReads:
    """Which rows the terms of all runs of a model read.

    :param runs: of each, the terms, a typical point of its latents, their hierarchy, and the rows' numbers among all.
    :param whole: the hierarchy of all rows.
    :raises SeveralRowsError: if a term reads too many rows of a block, or there are too many colours.
    """

    def __init__(
        self,
        runs: Iterable[tuple[Callable[[Tensor], Tensor], Tensor, Hierarchy, Sequence[Tensor]]],
        whole: Hierarchy,
    ):
        self.whole, self.pairs = whole, list[list[Pairs]]()
        self.num_terms = list[int]()
        for terms, z, here, numbers in runs:
            derivatives = Derivatives(terms, z)
            self.num_terms.append(derivatives.num)
            found = list[Pairs]()
            for block, at in zip(here.blocks, numbers):
                pairs = rows_read(derivatives, " x ".join(block.plates), block.columns)
                found.append(Pairs(pairs.terms, at[pairs.rows]))
            self.pairs.append(self._with_outer(found))
        #: Of each block's rows; those of one colour are independent given all else.
        self.colours = [self._coloured(number) for number in range(len(whole.blocks))]

    def _with_outer(self, found: list[Pairs]) -> list[Pairs]:
        """Rows of outer plates are read through their inner rows, too."""
        for inner in reversed(range(len(found))):
            for above in self.whole.blocks[inner].above:
                outer, own = found[above.block], found[inner]
                both = torch.stack(
                    [torch.cat([outer.terms, own.terms]), torch.cat([outer.rows, above.row[own.rows]])], 1
                )
                found[above.block] = Pairs(*both.unique(dim=0).T)
        return found

    def owners(self, run: int, block: int, colour: int = 0) -> Tensor:
        """The row of a block and a colour that each term of a run reads; the number after the last for none."""
        pairs, num_rows = self.pairs[run][block], self.whole.blocks[block].num_rows
        owner = torch.full((self.num_terms[run],), num_rows)
        here = self.colours[block][pairs.rows] == colour
        owner[pairs.terms[here]] = pairs.rows[here]
        return owner

    def _coloured(self, number: int) -> Tensor:
        block = self.whole.blocks[number]
        edges = [_together(run[number], block.num_rows) for run in self.pairs]
        return coloured(torch.cat(edges).unique(), block.num_rows, " x ".join(block.plates))


def _together(pairs: Pairs, num_rows: int) -> Tensor:
    """Pairs of rows, the lower one first, that some term reads both of, each as one number."""
    order = pairs.terms.argsort()
    terms, rows, found = pairs.terms[order], pairs.rows[order], [pairs.rows[:0]]
    for away in range(1, max(2, len(terms))):
        same = terms[away:] == terms[:-away]
        if not bool(same.any()):
            break
        one, other = rows[away:][same], rows[:-away][same]
        found.append((torch.minimum(one, other) * num_rows + torch.maximum(one, other)).unique())
    return torch.cat(found)


def coloured(edges: Tensor, num_rows: int, name: str = "rows") -> Tensor:
    """A colour for each row, such that the two of an edge have different ones.

    :param edges: ``first * num_rows + second``.
    :param name: of the plates, for the message.
    :raises SeveralRowsError: if more than :data:`MOST_COLOURS` are needed.

    Example::

        >>> coloured(torch.tensor([0 * 4 + 1, 1 * 4 + 2, 2 * 4 + 3, 0 * 4 + 3]), 4).tolist()  # a ring
        [0, 1, 0, 1]
    """
    colours = [-1] * num_rows
    if not len(edges):
        return torch.zeros(num_rows, dtype=torch.long)
    first, second = edges // num_rows, edges % num_rows
    ends, others = torch.cat([first, second]), torch.cat([second, first])
    degree = ends.bincount(minlength=num_rows)
    starts, sorted_others = [0, *degree.cumsum(0).tolist()], others[ends.argsort(stable=True)].tolist()
    for row in degree.argsort(descending=True, stable=True).tolist():
        taken = {colours[other] for other in sorted_others[starts[row] : starts[row + 1]]}
        colours[row] = next(colour for colour in range(num_rows + 1) if colour not in taken)
    num = max(colours) + 1
    if num > MOST_COLOURS:
        raise SeveralRowsError(
            f"terms of the model read several rows of plate '{name}' at once, and so many of them together that these "
            f"fall into {num} groups of independent rows, of which there may be {MOST_COLOURS}"
        )
    return torch.tensor(colours)
