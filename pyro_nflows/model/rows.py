"""Some rows of the plates of a hierarchy: a hierarchy of these alone, and where they are among all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .all_rows import columns
from .hierarchy import Block, Hierarchy, Outline


@dataclass(frozen=True, eq=False)
class Rows:
    """Chosen rows of a hierarchy; making one costs as much as there are of them.

    :param hierarchy: of these rows alone.
    :param numbers: for each of its blocks, which of all rows they are.
    :param columns: where a flat latent of all rows holds a flat latent of these.
    :param is_all: whether these are all rows, in order.

    Example::

        >>> whole = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((9, 2), {"groups": 0})})
        >>> rows = Rows.of(whole, {"groups": torch.tensor([4, 0])})
        >>> rows.hierarchy.dim, rows.columns.tolist()
        (5, [0, 9, 10, 1, 2])
        >>> rows.numbers[0].tolist()
        [4, 0]
    """

    hierarchy: Hierarchy
    numbers: tuple[Tensor, ...]
    columns: Tensor
    is_all: bool = False

    @staticmethod
    def of(whole: Hierarchy, chosen: Mapping[str, Tensor]) -> "Rows":
        """Chosen rows of plates, by plate; of other plates, all.

        :param whole: the hierarchy of all rows.
        :param chosen: the rows' numbers.
        """
        outlines, found, start = dict[str, Outline](), list[Tensor](), 0
        for name, outline in whole.outlines.items():
            shape = torch.Size(outline.shape)
            taken = columns(shape, outline.plates, chosen, start)
            outlines[name] = outline._replace(shape=tuple(taken.shape))
            found.append(taken.reshape(-1))
            start += shape.numel()
        hierarchy = replace(Hierarchy.of_outlines(outlines, whole.joined), tied=whole.tied)
        numbers = tuple(_numbers(block, whole, chosen) for block in whole.blocks)
        return Rows(hierarchy, numbers, torch.cat(found), not chosen)

    @staticmethod
    def none(whole: Hierarchy) -> "Rows":
        """What is outside of plates alone."""
        top = Hierarchy(torch.arange(len(whole.top)), (), {}, whole.joined)
        return Rows(top, (), whole.top)


def _numbers(block: Block, whole: Hierarchy, chosen: Mapping[str, Tensor]) -> Tensor:
    """Which of a block's rows are chosen."""
    outline = next(at for at in whole.outlines.values() if set(at.plates) == set(block.plates))
    sizes = [outline.shape[outline.plates[plate]] for plate in block.plates]
    axes = {plate: axis for axis, plate in enumerate(block.plates)}
    return columns(torch.Size(sizes), axes, chosen, 0).reshape(-1)
