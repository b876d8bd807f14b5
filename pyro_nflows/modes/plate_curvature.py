r"""The curvature of a density whose rows are independent given what they are within, and the Gaussian of it.

The Hessian of such a density has a block for what is outside of plates, one for each row, and one for each row with
what it is within; the rest is zero. So a few products with it show all of it: with a unit vector for each coordinate
outside of plates, and, for each block of rows, with vectors that have a one in every row. Its inverse's factor is found
block by block, the innermost first, as a sparse Cholesky factorisation does: time is linear in the number of rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.hierarchy import Hierarchy

#: A curvature below this share of the largest is none.
FLAT = 1e-8
#: A number of a matrix of unit diagonal from which on it is of no use.
HUGE = 1e100

#: For each block: its rows' own curvature ``(rows, d, d)``, and that with what is above ``(rows, d, width)``.
Rows = Sequence[tuple[Tensor, Tensor]]


def probes(hierarchy: Hierarchy) -> Tensor:
    """Vectors by whose products with the Hessian its parts are known: rows of one block do not interact."""
    unit = torch.zeros(len(hierarchy.top), hierarchy.dim)
    unit[torch.arange(len(hierarchy.top)), hierarchy.top] = 1.0
    found = [unit]
    for block in hierarchy.blocks:
        ones = torch.zeros(block.row_dim, hierarchy.dim)
        for j in range(block.row_dim):
            ones[j, block.columns[:, j]] = 1.0
        found.append(ones)
    return torch.cat(found)


def precision(hierarchy: Hierarchy, products: Tensor) -> tuple[Tensor, Rows]:
    """The parts of a matrix by its products with :func:`probes`."""
    top, *of_blocks = products.split([len(hierarchy.top), *(block.row_dim for block in hierarchy.blocks)])
    found = []
    for block, own in zip(hierarchy.blocks, of_blocks):
        square = own[:, block.columns].permute(1, 2, 0)  # (rows, d, d)
        above = [top[:, block.columns].permute(1, 2, 0)]
        above += [of_blocks[outer.block][:, block.columns].permute(1, 2, 0) for outer in block.above]
        found.append((0.5 * (square + square.mT), torch.cat(above, -1)))
    square = top[:, hierarchy.top]
    return 0.5 * (square + square.T), found


def factors(hierarchy: Hierarchy, top: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
    """Lower factors of the covariance, and of each block's rows with what they take from above, in the base."""
    top, given = _eliminated(hierarchy, top, rows)
    scale_tril = root_of(top[None])[0] if len(top) else top
    return scale_tril, _in_base(hierarchy, scale_tril, given)


def conditionals(hierarchy: Hierarchy, scale_tril: Tensor, rows: Rows) -> Rows:
    """Lower factors of each block's rows with what they take from above, in a base in which that has a given factor."""
    return _in_base(hierarchy, scale_tril, _eliminated(hierarchy, 0 * scale_tril, rows)[1])


def _eliminated(hierarchy: Hierarchy, top: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
    """What remains of the precision outside of plates, and each block given what it is within."""
    num_top, blocks = len(top), hierarchy.blocks
    squares, crosses = [square.clone() for square, _ in rows], [cross.clone() for _, cross in rows]
    given: list[tuple[Tensor, Tensor]] = [(top, top)] * len(blocks)
    top = top.clone()
    for number in reversed(range(len(blocks))):  # what a block's rows say of what they are within
        root = root_of(squares[number])
        slope = root @ (root.mT @ crosses[number])  # minus the conditional mean's, (rows, d, width)
        given[number] = root, -slope
        schur = crosses[number].mT @ slope  # (rows, width, width)
        top -= schur[:, :num_top, :num_top].sum(0)
        places = _places(hierarchy, number)
        for above in blocks[number].above:
            at, its = places[above.block], _places(hierarchy, above.block)
            squares[above.block].index_add_(0, above.row, -schur[:, at, at])
            crosses[above.block][..., :num_top].index_add_(0, above.row, -schur[:, at, :num_top])
            for further, place in its.items():
                crosses[above.block][..., place].index_add_(0, above.row, -schur[:, at, places[further]])
    return top, given


def _in_base(hierarchy: Hierarchy, scale_tril: Tensor, given: Rows) -> Rows:
    """What rows take from above, in the coordinates of the base rather than of the draws."""
    num_top, found = len(scale_tril), list[tuple[Tensor, Tensor]]()
    for block, (root, slope) in zip(hierarchy.blocks, given):
        taken = torch.zeros_like(slope)
        taken[..., :num_top] = slope[..., :num_top] @ scale_tril
        places = _places(hierarchy, len(found))
        for above in block.above:
            of_outer, (outer_root, outer_taken) = slope[..., places[above.block]], found[above.block]
            taken[..., places[above.block]] += of_outer @ outer_root[above.row]
            taken[..., :num_top] += of_outer @ outer_taken[above.row][..., :num_top]
            for further, place in _places(hierarchy, above.block).items():
                taken[..., places[further]] += of_outer @ outer_taken[above.row][..., place]
        found.append((root, taken))
    return found


def _places(hierarchy: Hierarchy, number: int) -> dict[int, slice]:
    """Where what is above a block's rows has each of its outer blocks."""
    found, start = dict[int, slice](), len(hierarchy.top)
    for above in hierarchy.blocks[number].above:
        found[above.block] = slice(start, start + hierarchy.blocks[above.block].row_dim)
        start = found[above.block].stop
    return found


def root_of(square: Tensor) -> Tensor:
    """Lower Cholesky factors of the inverses; typical widths along directions that are not convex.

    One of many that is not finite, or as good as that, spoils no other.
    """
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    units = torch.where(diagonal > 0, diagonal.clamp(min=1e-300).rsqrt(), 1.0)
    scaled = units[..., None, :] * square * units[..., None]
    sound = (scaled.abs() < HUGE).all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(sound, scaled, torch.eye(square.shape[-1]).to(scaled)))
    floor = FLAT * values.abs().amax(-1, keepdim=True)
    root = units[..., None] * vectors * torch.where(values > floor, values.clamp(min=1e-300).rsqrt(), 1.0)[..., None, :]
    return torch.linalg.cholesky_ex(root @ root.mT)[0]
