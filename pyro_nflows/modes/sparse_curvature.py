r"""The curvature of a density with a sparse Hessian, and the Gaussian of it: a sparse Cholesky factorisation.

Entries of the Hessian are read from a few products with it, one for each color of its pattern
(:meth:`~pyro_nflows.model.pattern.Pattern.colors`). Nodes are then eliminated in the order that the layer knows, all
those of a group at once: a node's own block is inverted, and what it says of the others that it is tied to is taken off
theirs. Time is linear in the numbers of the factor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.elimination import Elimination
from .plate_curvature import root_of
from .plate_moments import ridged

#: For each group: its nodes' lower factors ``(..., nodes, a, a)``, and how they depend on what is above,
#: ``(..., nodes, a, b)``.
Nodes = Sequence[tuple[Tensor, Tensor]]


class _Places(NamedTuple):
    """Where the numbers of a group are in a flat vector of all; its last number stands for none."""

    own: Tensor
    cross: Tensor
    others: Tensor


class SparseCurvature:
    """How to read a Hessian of a pattern, and to factor it.

    :param elimination: made of its pattern.
    """

    def __init__(self, elimination: Elimination):
        self.pattern, self.elimination = elimination.pattern, elimination
        pattern, self.colors = self.pattern, self.pattern.colors()
        dim, keys = elimination.dim, list[Tensor]()
        for group in elimination.groups:
            columns = torch.cat([group.columns, group.above], 1)
            pairs = _pairs(dim, group.columns, columns)
            keys.append(pairs[pairs >= 0])
        self.keys = torch.cat(keys).sort().values
        self.places = [
            _Places(
                self._find(_pairs(dim, group.columns, group.columns)),
                self._find(_pairs(dim, group.columns, group.above)),
                self._find(_pairs(dim, group.above, group.above)),
            )
            for group in elimination.groups
        ]
        self._rows, self._columns = self.keys // dim, self.keys % dim
        flat = torch.cat([pattern.pairs[0] * dim + pattern.pairs[1], torch.arange(dim) * (dim + 1)]).sort().values
        at = torch.searchsorted(flat, self.keys).clamp(max=len(flat) - 1)
        self._known = flat[at] == self.keys

    def _find(self, keys: Tensor) -> Tensor:
        at = torch.searchsorted(self.keys, keys.clamp(min=0)).clamp(max=len(self.keys) - 1)
        return torch.where((keys >= 0) & (self.keys[at] == keys), at, len(self.keys))

    def probes(self) -> Tensor:
        """Vectors by whose products with the Hessian it is known, ``(colors, D)``."""
        vectors = torch.zeros(int(self.colors.max()) + 1, self.elimination.dim)
        vectors[self.colors, torch.arange(self.elimination.dim)] = 1.0
        return vectors

    def read(self, products: Tensor) -> Tensor:
        """The numbers of matrices, with a zero at the end, by their products with :meth:`probes`, ``(..., C, D)``."""
        rows, columns, hubs = self._rows, self._columns, len(self.pattern.hubs)
        turned = (self.colors[rows] < hubs) & (self.colors[columns] >= hubs)
        rows, columns = torch.where(turned, columns, rows), torch.where(turned, rows, columns)
        values = products[..., self.colors[columns], rows] * self._known
        return torch.cat([values, values.new_zeros(*values.shape[:-1], 1)], -1)

    def factors(self, values: Tensor) -> Nodes:
        """Of matrices with these numbers: Gaussians of these precisions, as each node depends on those before it."""
        values, found = values.clone(), list[tuple[Tensor, Tensor]]()
        for group, places in reversed(list(zip(self.elimination.groups, self.places))):
            square = values[..., places.own]
            pads = group.columns == self.elimination.dim
            square = 0.5 * (square + square.mT) + torch.diag_embed(pads.to(values))
            root, cross = root_of(square), values[..., places.cross]
            slope = root @ (root.mT @ cross)
            found.append((root, -slope))
            values.index_add_(-1, places.others.flatten(), -(cross.mT @ slope).flatten(-3))
            values[..., -1] = 0.0
        return found[::-1]

    def covariances(self, nodes: Nodes) -> Tensor:
        """Numbers of the covariance where the factor has any, as :meth:`read` has them of a matrix.

        A node's are known from those of what it depends on, which are tied to each other.
        """
        like = nodes[0][0]
        values = like.new_zeros(*like.shape[:-3], len(self.keys) + 1)
        for places, (root, slope) in zip(self.places, nodes):
            others = places.others  # a pair of nodes has its numbers in one order only
            cross = slope @ values[..., torch.where(others == len(self.keys), others.mT, others)]
            values[..., places.cross] = cross
            values[..., places.own] = root @ root.mT + cross @ slope.mT
            values[..., -1] = 0.0
        return values

    def variances(self, covariances: Tensor) -> Tensor:
        """Of each latent, ``(..., D)``."""
        dim = self.elimination.dim
        return covariances[..., self._find(torch.arange(dim, device="cpu") * (dim + 1))]

    def summands(self, covariances: Tensor) -> tuple[Tensor, Tensor]:
        r"""Vectors of which the covariance is a sum of products, :math:`\sum_c v_c w_c^\top`, one a color.

        That holds wherever the Hessian has numbers. In either vector, no number is above a latent's standard deviation.

        :return: ``(..., C, D)`` both.
        """
        dim, num = self.elimination.dim, int(self.colors.max()) + 1
        width = self.variances(covariances).sqrt()
        rows, columns = self._rows[self._known], self._columns[self._known]
        numbers = covariances[..., :-1][..., self._known]
        once = self._find(columns * dim + rows) == len(self.keys)
        v = width[..., None, :] * self.probes().to(width)
        w = width.new_zeros(*width.shape[:-1], num * dim)
        w.index_add_(-1, self.colors[rows] * dim + columns, numbers / width[..., rows])
        rows, columns = columns[once], rows[once]
        w.index_add_(-1, self.colors[rows] * dim + columns, numbers[..., once] / width[..., rows])
        return v, w.unflatten(-1, (num, dim))


def drawn(elimination: Elimination, nodes: Nodes, x: Tensor) -> Tensor:
    """Standard normal rows ``(N, D)`` as draws of centered Gaussians, one each."""
    x = torch.cat([x, x.new_zeros(len(x), 1)], -1)
    y = torch.zeros_like(x)
    for group, (root, slope) in zip(elimination.groups, nodes):
        made = _applied(root, x[:, group.columns]) + _applied(slope, y[:, group.above])
        y[:, group.columns.flatten()] = made.flatten(1)
        y[:, -1] = 0.0
    return y[:, :-1]


def solved(elimination: Elimination, nodes: Nodes, b: Tensor) -> Tensor:
    """Covariances of Gaussians times rows ``(N, D)``, one each."""
    b = torch.cat([b, b.new_zeros(len(b), 1)], -1)
    x = torch.zeros_like(b)
    for group, (root, slope) in reversed(list(zip(elimination.groups, nodes))):
        part = b[:, group.columns].masked_fill(group.columns == elimination.dim, 0.0)
        x[:, group.columns.flatten()] = _applied(root.mT, part).flatten(1)
        b.index_add_(1, group.above.flatten(), _applied(slope.mT, part).flatten(1))
    return drawn(elimination, nodes, x[:, :-1])


def log_widths(elimination: Elimination, nodes: Nodes) -> Tensor:
    """The logarithms of each latent's width given those before it, ``(..., D)``."""
    like = nodes[0][0]
    found = like.new_zeros(*like.shape[:-3], elimination.dim + 1)
    for group, (root, _) in zip(elimination.groups, nodes):
        found[..., group.columns.flatten()] = root.diagonal(dim1=-2, dim2=-1).log().flatten(-2)
    return found[..., :-1]


def _applied(matrix: Tensor, x: Tensor) -> Tensor:
    """Matrices ``(N, nodes, a, b)`` times vectors ``(N, nodes, b)``."""
    return (matrix @ x[..., None])[..., 0]


def moments(elimination: Elimination, z: Tensor) -> Nodes:
    """The same of draws ``(N, D)``: each node is regressed on what it depends on."""
    centered = torch.cat([z - z.mean(0), z.new_zeros(len(z), 1)], 1).double().cpu()
    found = list[tuple[Tensor, Tensor]]()
    for group in elimination.groups:
        own, above = centered[:, group.columns], centered[:, group.above]
        covariance, cross = _gram(above, above), _gram(own, above)
        slope = torch.linalg.solve(ridged(covariance), cross.mT).mT
        rest = own - torch.einsum("nki,kji->nkj", above, slope)
        found.append((torch.linalg.cholesky(ridged(_gram(rest, rest))), slope))
    return found


def _gram(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("nki,nkj->kij", a, b) / len(a)


def _pairs(dim: int, rows: Tensor, columns: Tensor) -> Tensor:
    """A number for each pair, ``(nodes, a, b)``; -1 where one of them is padding."""
    pairs = rows[:, :, None] * dim + columns[:, None, :]
    return torch.where((rows < dim)[:, :, None] & (columns < dim)[:, None, :], pairs, -1)
