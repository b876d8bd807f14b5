r"""Which row of a plate each term of a log joint reads: found from its derivatives, however the model looks it up.

A term :math:`\ell_k` that reads one row :math:`z_u` of a block has a derivative along a direction in which each row
moves by :math:`t_u c` of :math:`t_u` times that along :math:`c`. So the ratio of two derivatives is :math:`t_u`, and
with the digits of :math:`u` for :math:`t_u`, some of them, for all terms at once, tell the row. One more, of random
numbers, tells whether there is one row only.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..system.gradients import pulled
from .hierarchy import Hierarchy

#: Digits are to this base; ratios may be off by so much, of random numbers between one and two.
BASE, TOLERANCE = 16, 0.02
#: How often other directions are tried where derivatives cancel.
NUM_TRIES = 3


class SeveralRowsError(ValueError):
    """A term reads more than one row of a block."""


def row_owners(terms: Callable[[Tensor], Tensor], z: Tensor, hierarchy: Hierarchy) -> list[Tensor]:
    """For each block, the row that each term reads, ``(terms,)``; -1 for none.

    :param terms: ``(dim,)`` to ``(terms,)``.
    :param z: where, ``(dim,)``: a typical point, at which derivatives are not zero by chance.
    :param hierarchy: which coordinates are rows of which blocks.
    :raises SeveralRowsError: if a term reads more than one.

    Example::

        >>> from pyro_nflows.model.hierarchy import Outline
        >>> outlines = {"a": Outline((3,), {"user": 0}), "b": Outline((4,), {"item": 0})}
        >>> hierarchy = Hierarchy.of_outlines(outlines, joined=frozenset())
        >>> user, item = torch.tensor([2, 0, 1, 2]), torch.tensor([0, 3, 2, 2])
        >>> owners = row_owners(lambda z: (z[:3][user] * z[3:][item]).sin(), torch.randn(7), hierarchy)
        >>> [owner.tolist() for owner in owners]
        [[2, 0, 1, 2], [0, 3, 2, 2]]
    """
    return owners_in(terms, z, {" x ".join(block.plates): block.columns for block in hierarchy.blocks})


def owners_in(terms: Callable[[Tensor], Tensor], z: Tensor, groups: Mapping[str, Tensor]) -> list[Tensor]:
    """The same for rows of any kind.

    :param groups: by the names of plates, where each row's coordinates are, ``(rows, d)``.
    """
    derivatives, found = Derivatives(terms, z), list[Tensor]()
    for name, columns in groups.items():
        owner, known = owners_along(derivatives, columns, torch.arange(len(columns)))
        if not bool(known.all()):
            raise SeveralRowsError(f"a term of the model reads several rows of plate '{name}' at once")
        found.append(owner)
    return found


class Derivatives:
    """Derivatives of all terms along some directions, ``(num, dim)`` to ``(num, terms)``.

    :param terms: ``(dim,)`` to ``(terms,)``.
    :param z: where.
    """

    def __init__(self, terms: Callable[[Tensor], Tensor], z: Tensor):
        self.z = z.detach()
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            value = terms(at)
            self.num, self._cotangent = value.numel(), torch.zeros_like(value).requires_grad_()
            self._pulled = None
            if value.requires_grad:
                inputs = value, at, self._cotangent
                (self._pulled,) = torch.autograd.grad(*inputs, create_graph=True, materialize_grads=True)

    def __call__(self, tangents: Tensor) -> Tensor:
        if self._pulled is None or not self._pulled.requires_grad:
            return tangents.new_zeros(len(tangents), self.num)
        return pulled(self._pulled, self._cotangent, tangents)


def owners_along(derivatives: Derivatives, columns: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """The row among some that each term reads, -1 for none; and whether that is known: if there is not more than one.

    :param columns: of each row's coordinates, ``(rows, d)``.
    :param which: the numbers of those rows; others are held fixed.
    """
    num_rows, row_dim = columns.shape
    places, digits, rest = list[int](), list[Tensor](), num_rows - 1
    while rest or not digits:
        place = BASE ** len(places)
        places.append(place)
        digits.append(which // place % BASE)
        rest //= BASE
    z, at = derivatives.z, columns[which]
    owner, known = torch.tensor(-1), torch.zeros(derivatives.num, dtype=torch.bool)
    for _ in range(NUM_TRIES):
        check = torch.zeros(num_rows)
        check[which] = 1 + torch.rand(len(which))
        factors = torch.stack([torch.ones(len(which)), *digits, check[which]]).to(z)
        tangents = z.new_zeros(len(factors), len(z))
        tangents[:, at] = factors[..., None] * (0.5 + torch.rand(row_dim)).to(z)
        one, *found, checked = derivatives(tangents)
        none = (one == 0) & (checked == 0)
        ratios = torch.stack(found) / one
        row = (ratios.nan_to_num(0.0, 0.0, 0.0).round().long() * torch.tensor(places)[:, None]).sum(0)
        row = row.clamp(0, num_rows - 1)
        fits = none | ((checked / one - check.to(z)[row]).abs() < TOLERANCE)
        owner = torch.where(known, owner, torch.where(none, -1, row))
        known = known | fits
        if bool(known.all()):
            break
    return owner, known
