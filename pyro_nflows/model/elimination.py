r"""In which order the latents of a sparse log density are drawn, and which of the others each of them depends on then.

A Gaussian with precision :math:`\Lambda` can be drawn one latent after the other, each given some of those before it:
those that the Cholesky factor of :math:`\Lambda` has entries for, if latents are eliminated in the opposite order. The
order decides how many there are. Multiple elimination by minimum degree [1] keeps them few, and as it eliminates
latents all over the pattern at once, a chain of :math:`T` latents is drawn in about :math:`\log_2 T` rounds rather than
in :math:`T` steps. (SciPy has the method too, in SuperLU; but it begins at both ends of a chain, and needs
:math:`T / 2` rounds.) Latents that depend on the same others, or nearly so, make one *node*, with a triangular matrix
of its own; nodes whose turn comes in the same round make a :class:`Group`.

**References**

[1] J. Liu (1985). Modification of the Minimum-Degree Algorithm by Multiple Elimination.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .pattern import Pattern

#: Zeros that may be stored for the sake of fewer nodes, as a share of the other numbers.
RELAXED = 0.15
#: A group is divided while padding makes it larger than its nodes by more than this factor.
PADDED = 1.5


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that are drawn at once, given those in groups before it; padded with the number of latents.

    :param columns: the latents of each node, ``(num_nodes, width)``.
    :param above: the latents that it depends on, ``(num_nodes, num_above)``.
    """

    columns: Tensor
    above: Tensor

    @property
    def size(self) -> int:
        """Numbers in the matrices of its nodes."""
        num, width = self.columns.shape
        return num * width * (width + self.above.shape[1])


@dataclass(frozen=True, eq=False)
class Elimination:
    """The groups in the order of drawing, the first depending on none.

    Example::

        >>> from pyro_nflows.model.pattern import Pattern
        >>> chain = Pattern(4, torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]), torch.tensor([], dtype=int))
        >>> order = Elimination.of(chain)
        >>> sum(int((group.columns < 4).sum()) for group in order.groups)
        4
    """

    pattern: Pattern
    groups: tuple[Group, ...]

    @staticmethod
    def of(pattern: Pattern) -> "Elimination":
        """That of a pattern, by an order with little fill."""
        nodes = _merged(_ties(pattern))
        levels = _levels(nodes)
        groups = list[Group]()
        for level in range(max(levels) + 1):
            members = [node for node, its in zip(nodes, levels) if its == level]
            groups += [_group(part, pattern.dim) for part in _divided(members)]
        return Elimination(pattern, tuple(groups))

    @property
    def dim(self) -> int:
        """Number of latents."""
        return self.pattern.dim

    @property
    def size(self) -> int:
        """Numbers in all matrices."""
        return sum(group.size for group in self.groups)

    def buffers(self) -> dict[str, Tensor]:
        """What a layer looks up: of each group, its latents, what they depend on, and that in the order of drawing.

        Numbers in that order begin at one, since a zero stands for nothing; ``places`` finds each latent in it.
        """
        found, at, start = dict[str, Tensor](), torch.zeros(self.dim + 1, dtype=torch.long), 1
        for number, group in enumerate(self.groups):
            found |= {f"columns_{number}": group.columns, f"upper_{number}": group.above}
            found[f"made_{number}"] = at[group.above]
            at[group.columns.flatten()] = torch.arange(start, start + group.columns.numel())
            at[-1], start = 0, start + group.columns.numel()
        return found | {"places": at[:-1]}

    def listed(self) -> list[Any]:
        """As plain values, for a state; :meth:`unlisted` reads them."""
        return [self.dim, self.pattern.pairs.tolist(), self.pattern.hubs.tolist()]

    @staticmethod
    def unlisted(listed: Sequence[Any]) -> "Elimination":
        """What :meth:`listed` was made of."""
        dim, pairs, hubs = listed
        return Elimination.of(Pattern(dim, torch.tensor(pairs).long().reshape(2, -1), torch.tensor(hubs).long()))


#: Latents of a node in the order of elimination, and those that it depends on.
Node = tuple[list[int], set[int]]


def _ties(pattern: Pattern) -> tuple[list[int], list[set[int]]]:
    """Latents in the order of elimination, hubs last, and for each the later ones that it is then tied to.

    In each round, of the latents with at most the median number of ties those are eliminated of which no two are tied,
    those with the fewest ties first; the others of a latent's ties are then tied to each other.
    """
    ties: list[set[int]] = [set() for _ in range(pattern.dim)]
    for i, j in zip(*pattern.pairs.tolist()):
        ties[i].add(j)
    hubs = pattern.hubs.tolist()
    left = sorted(set(range(pattern.dim)) - set(hubs))
    order = list[int]()
    while left:
        chosen = _independent(left, ties)
        for column in chosen:
            for other in ties[column]:
                ties[other] |= ties[column]
                ties[other] -= {column, other}
        order += chosen
        left = sorted(set(left) - set(chosen))
    for number, hub in enumerate(hubs):  # all of them in one node
        ties[hub] = set(hubs[number + 1 :])
    return order + hubs, ties


def _independent(left: list[int], ties: list[set[int]]) -> list[int]:
    """Latents with few ties, none of which are tied to each other."""
    sizes = sorted((len(ties[column]), column) for column in left)
    most = sizes[len(sizes) // 2][0]
    chosen, refused = list[int](), set[int]()
    for size, column in sizes:
        if size > most:
            break
        if column not in refused:
            chosen.append(column)
            refused |= ties[column]
    return chosen


def _merged(tied: tuple[list[int], list[set[int]]]) -> list[Node]:
    """Nodes of latents that depend on nearly the same others, in the order of elimination."""
    order, ties = tied
    place = {column: number for number, column in enumerate(order)}
    nodes: dict[int, Node] = {column: ([column], ties[column]) for column in order}
    for column in order:
        own, above = nodes[column]
        if not above:
            continue
        parent = min(above, key=place.__getitem__)
        its, its_above = nodes[parent]
        both = len(own) + len(its)
        apart = _size(len(own), len(above)) + _size(len(its), len(its_above))
        if _size(both, len(its_above)) <= (1 + RELAXED) * apart:
            nodes[parent] = (own + its, its_above)
            del nodes[column]
    return list(nodes.values())


def _size(width: int, num_above: int) -> int:
    return width * (width + 1) // 2 + width * num_above


def _levels(nodes: Sequence[Node]) -> list[int]:
    """The round in which each node is drawn."""
    level_of: dict[int, int] = {}
    levels = [0] * len(nodes)
    for number in reversed(range(len(nodes))):
        own, above = nodes[number]
        levels[number] = 1 + max((level_of[column] for column in above), default=-1)
        level_of.update(dict.fromkeys(own, levels[number]))
    return levels


def _divided(nodes: list[Node]) -> list[list[Node]]:
    """Nodes of about one size together."""
    width, num_above = (max(len(node[part]) for node in nodes) for part in (0, 1))
    padded = len(nodes) * width * (width + num_above)
    actual = sum(len(own) * (len(own) + len(above)) for own, above in nodes)
    small = [node for node in nodes if 2 * len(node[0]) <= width or 2 * len(node[1]) < num_above]
    if padded <= PADDED * actual or not small or len(small) == len(nodes):
        return [nodes]
    large = [node for node in nodes if not any(node is other for other in small)]
    return [*_divided(small), *_divided(large)]


def _group(nodes: list[Node], dim: int) -> Group:
    place = functools.partial(_padded, pad=dim)
    return Group(place([list(reversed(own)) for own, _ in nodes]), place([sorted(above) for _, above in nodes]))


def _padded(rows: list[list[int]], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long).reshape(len(rows), width)
