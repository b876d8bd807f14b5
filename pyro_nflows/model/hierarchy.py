r"""A model's latents by the plates they are in: what is common to all, and rows that are independent given that.

Given the latents outside of plates, the rows of a plate are independent, in the prior and in the posterior, if each row
has data of its own. Rows of a plate within another one are so given their outer row as well:

.. math:: p(g, z | y) = p(g | y) \prod_i p(z_i | g, y_i) .

:class:`Hierarchy` reads that off the plates of the sites. Sites in the same plates make a :class:`Block`, whose rows
hold what all these sites have in one index of the plates.

Rows of plates that cross, such as students and items, are not independent given the rest alone. The latents of the
smaller plate are then counted with those outside of plates, as long as there are no more than :data:`MAX_CROSSED`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..system.shapes import unravel_index
from .latents import Latents

#: Most coordinates of a crossed plate that are counted with the latents outside of plates.
MAX_CROSSED = 256


class Above(NamedTuple):
    """A block that another one is within.

    :param block: its number.
    :param row: for each row of the inner block, the outer row that it is in; ``(num_rows,)``.
    """

    block: int
    row: Tensor


class Outline(NamedTuple):
    """All that a hierarchy is made of: for each site, its unconstrained shape and the axis of each of its plates.

    ``subsampled`` are those of the plates of which one run of the model has some rows only.
    """

    shape: tuple[int, ...]
    plates: Mapping[str, int]
    subsampled: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Block:
    """The latents in one set of plates.

    :param plates: their names.
    :param columns: where a flat latent holds each row, ``(num_rows, row_dim)``.
    :param above: the blocks that it is within.
    """

    plates: tuple[str, ...]
    columns: Tensor
    above: tuple[Above, ...] = ()

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.columns)

    @property
    def row_dim(self) -> int:
        """Coordinates of a row."""
        return self.columns.shape[1]


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """The latents outside of plates, and blocks of rows, each after those that it is within.

    :param top: where a flat latent holds what is outside of plates.
    :param blocks: the rest.
    :param outlines: what it was made of.
    :param joined: plates whose latents are counted with those outside of plates.
    :param tied: whether rows of one block share observations, such as games of two players.

    Example::

        >>> sites = {"mu": Outline((), {}), "z": Outline((3, 2), {"groups": 0})}
        >>> hierarchy = Hierarchy.of_outlines(sites)
        >>> hierarchy.top.tolist(), hierarchy.blocks[0].columns.tolist()
        ([0], [[1, 2], [3, 4], [5, 6]])
    """

    top: Tensor
    blocks: tuple[Block, ...]
    outlines: Mapping[str, Outline]
    joined: frozenset[str] = frozenset()
    tied: bool = False

    @staticmethod
    def of(latents: Latents) -> "Hierarchy":
        """The hierarchy of a model's latents."""
        sites = latents.sites.items()
        outlines = {name: Outline(tuple(at.shape), at.axes, at.subsampled) for name, at in sites}
        return Hierarchy.of_outlines(outlines)

    @staticmethod
    def of_outlines(outlines: Mapping[str, Outline], joined: frozenset[str] | None = None) -> "Hierarchy":
        """The hierarchy of sites of these shapes and plates, held by a flat latent in their order.

        :param joined: plates to be counted with what is outside of plates; by default small ones that cross others.
        """
        columns, start = dict[str, Tensor](), 0
        for name, outline in outlines.items():
            size = torch.Size(outline.shape).numel()
            columns[name] = torch.arange(start, start + size).reshape(outline.shape)
            start += size
        joined = _joined(outlines) if joined is None else joined
        groups = _grouped(outlines, joined)
        blocks = list[Block]()
        top = [columns[name].reshape(-1) for name in groups.pop(frozenset(), [])]
        for plates in sorted(groups, key=len):
            names = tuple(sorted(plates, key=lambda plate: outlines[groups[plates][0]].plates[plate]))
            sizes = [outlines[groups[plates][0]].shape[outlines[groups[plates][0]].plates[plate]] for plate in names]
            rows = [_rows(columns[name], [outlines[name].plates[plate] for plate in names]) for name in groups[plates]]
            blocks.append(Block(names, torch.cat(rows, 1), _above(names, sizes, blocks)))
        return Hierarchy(torch.cat([torch.zeros(0, dtype=torch.long), *top]), tuple(blocks), dict(outlines), joined)

    @property
    def dim(self) -> int:
        """The length of the flat latent."""
        return len(self.top) + sum(block.columns.numel() for block in self.blocks)

    @property
    def order(self) -> Tensor:
        """Where a flat latent holds what is outside of plates, then the blocks one after the other, row by row."""
        return torch.cat([self.top, *(block.columns.reshape(-1) for block in self.blocks)])

    def sizes(self) -> list[int]:
        """How many coordinates are outside of plates, and in each block."""
        return [len(self.top), *(block.columns.numel() for block in self.blocks)]

    def split(self, x: Tensor) -> list[Tensor]:
        """Vectors in that order: what is outside of plates, then each block as ``(..., num_rows, row_dim)``."""
        top, *rest = x.split(self.sizes(), -1)
        return [top, *(part.unflatten(-1, block.columns.shape) for part, block in zip(rest, self.blocks))]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of :meth:`split`."""
        return torch.cat([parts[0], *(part.flatten(-2) for part in parts[1:])], -1)

    @property
    def subsampled(self) -> tuple[str, ...]:
        """The plates of which one run of the model has some rows only."""
        return tuple(dict.fromkeys(plate for outline in self.outlines.values() for plate in outline.subsampled))

    @property
    def crosses(self) -> bool:
        """Whether there are blocks that have no plate in common, such as users and items."""
        return any(not set(one.plates) & set(other.plates) for one in self.blocks for other in self.blocks)

    @property
    def shares(self) -> bool:
        """Whether rows share observations, so that they are not independent given what is outside of plates."""
        return self.crosses or self.tied

    def index_in(self, block: Block, plate: str) -> Tensor:
        """For each row of a block, its place along one of the block's plates."""
        outline = next(at for at in self.outlines.values() if set(at.plates) == set(block.plates))
        sizes = tuple(outline.shape[outline.plates[name]] for name in block.plates)
        return unravel_index(torch.arange(block.num_rows), sizes)[block.plates.index(plate)]

    def width_above(self, block: Block) -> int:
        """How many coordinates a row of a block may depend on: those outside of plates, and of its outer rows."""
        return len(self.top) + sum(self.blocks[above.block].row_dim for above in block.above)

    def listed(self) -> dict[str, Any]:
        """As plain values, for a state; :meth:`unlisted` reads them."""
        return {n: [list(at.shape), dict(at.plates), list(at.subsampled)] for n, at in self.outlines.items()}

    @staticmethod
    def unlisted(listed: Mapping[str, Any]) -> "Hierarchy":
        """What :meth:`listed` was made of."""
        outlines = {
            name: Outline(tuple(shape), plates, tuple(subsampled))
            for name, (shape, plates, subsampled) in listed.items()
        }
        return Hierarchy.of_outlines(outlines)


def _by_plates(outlines: Mapping[str, Outline]) -> dict[frozenset[str], list[str]]:
    groups: dict[frozenset[str], list[str]] = {}
    for name, outline in outlines.items():
        groups.setdefault(frozenset(outline.plates), []).append(name)
    return groups


def _joined(outlines: Mapping[str, Outline]) -> frozenset[str]:
    """Small plates that cross others, and are there as a whole in each run."""
    groups = _by_plates(outlines)
    size = {plates: sum(torch.Size(outlines[n].shape).numel() for n in names) for plates, names in groups.items()}
    partial = {plate for outline in outlines.values() for plate in outline.subsampled}
    moved: set[str] = set()
    for plates in sorted(groups, key=lambda plates: size[plates]):
        others = [other for other in groups if other != plates and other and not moved & other]
        if plates & partial or not _crosses(plates, others):
            continue
        if sum(size[frozenset({p})] for p in moved if frozenset({p}) in size) + size[plates] <= MAX_CROSSED:
            moved |= plates if len(plates) == 1 else set()
    return frozenset(moved)


def _grouped(outlines: Mapping[str, Outline], joined: frozenset[str]) -> dict[frozenset[str], list[str]]:
    """Sites by their plates; those of joined plates are put with the sites outside of plates."""
    found: dict[frozenset[str], list[str]] = {}
    for plates, names in _by_plates(outlines).items():
        found.setdefault(frozenset() if plates <= joined else plates, []).extend(names)
    order = {name: number for number, name in enumerate(outlines)}
    return {plates: sorted(names, key=order.__getitem__) for plates, names in found.items()}


def _crosses(plates: frozenset[str], others: Sequence[frozenset[str]]) -> bool:
    return bool(plates) and any(not (plates <= other or other <= plates) for other in others)


def _rows(columns: Tensor, axes: Sequence[int]) -> Tensor:
    """A site's columns, one row for each index of the plates."""
    moved = columns.movedim(tuple(axes), tuple(range(len(axes))))
    return moved.reshape(torch.Size(moved.shape[: len(axes)]).numel(), -1)


def _above(names: Sequence[str], sizes: Sequence[int], blocks: Sequence[Block]) -> tuple[Above, ...]:
    """The blocks whose plates are among those of a new one."""
    index = torch.arange(torch.Size(sizes).numel()).reshape(tuple(sizes))
    places = dict(zip(names, unravel_index(index.reshape(-1), tuple(sizes))))
    found = []
    for number, block in enumerate(blocks):
        if set(block.plates) < set(names):
            row = torch.zeros_like(index.reshape(-1))
            for plate in block.plates:
                row = row * sizes[list(names).index(plate)] + places[plate]
            found.append(Above(number, row))
    return tuple(found)
