"""The Gaussian of draws whose rows are taken as independent given what they are within."""

import torch
from torch import Tensor

from ..model.hierarchy import Block, Hierarchy
from .plate_curvature import Rows

#: What is added to a variance, as a share of it.
RIDGE = 1e-6


def moments(hierarchy: Hierarchy, z: Tensor) -> tuple[Tensor, Tensor, Rows]:
    """Means, and lower factors as :func:`~pyro_nflows.modes.plate_curvature.factors` gives them, of draws ``(N, D)``.

    Each row's coordinates are regressed on those that it is within.
    """
    loc = z.mean(0)
    top, *parts = hierarchy.split((z - loc)[:, hierarchy.order].double())
    scale_tril = _root(top.mT @ top / len(z)) if top.shape[1] else top.new_zeros(0, 0)
    base = [torch.linalg.solve_triangular(scale_tril, top.T, upper=False).T if top.shape[1] else top]
    found: list[tuple[Tensor, Tensor]] = []
    for block, part in zip(hierarchy.blocks, parts):
        slope, rest = _regressed(block, base, part)
        root = _root(torch.einsum("nri,nrj->rij", rest, rest) / len(z))
        base.append(torch.linalg.solve_triangular(root, rest.permute(1, 2, 0), upper=False).permute(2, 0, 1))
        found.append((root, slope))
    return loc, scale_tril, found


def _regressed(block: Block, base: list[Tensor], part: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients ``(rows, d, width)`` on what rows are within, and what is left of the rows ``(N, rows, d)``."""
    top, num = base[0], len(part)
    outer = [base[1 + above.block][:, above.row] for above in block.above]
    if not outer:
        if not top.shape[1]:
            return part.new_zeros(*part.shape[1:], 0), part
        slope = torch.linalg.solve(ridged(top.mT @ top / num), (top.mT @ part.flatten(1)) / num)
        return slope.mT.unflatten(0, part.shape[1:]), part - (top @ slope).unflatten(1, part.shape[1:])
    given = torch.cat([top[:, None].expand(-1, part.shape[1], -1), *outer], -1)
    gram = ridged(torch.einsum("nri,nrj->rij", given, given) / num)
    slope = torch.linalg.solve(gram, torch.einsum("nri,nrj->rij", given, part) / num)
    return slope.mT, part - torch.einsum("nri,rij->nrj", given, slope)


def ridged(covariance: Tensor) -> Tensor:
    """Covariances with a little more on their diagonals; ones where those are zero."""
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    return covariance + torch.diag_embed(torch.where(diagonal > 0, RIDGE * diagonal, 1.0))


def _root(covariance: Tensor) -> Tensor:
    return torch.linalg.cholesky(ridged(covariance))
