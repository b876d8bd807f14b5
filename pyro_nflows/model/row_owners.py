r"""Which row of a plate each term of a log joint reads: found from its derivatives, however the model looks it up.

A term :math:`\ell_k` that reads one row :math:`z_u` of a block has a derivative along a direction in which each row
moves by :math:`t_u c` of :math:`t_u` times that along :math:`c`. So the ratio of two derivatives is :math:`t_u`, and
with the digits of :math:`u` for :math:`t_u`, some of them, for all terms at once, tell the row. One more, of random
numbers, tells whether there is one row only.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

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
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        value = terms(at)
        if not value.requires_grad:
            return [torch.full(value.shape, -1) for _ in groups]
        cotangent = torch.zeros_like(value).requires_grad_()
        (pulled,) = torch.autograd.grad(value, at, cotangent, create_graph=True, materialize_grads=True)

        def along(tangents: Tensor) -> Tensor:
            """Derivatives of all terms along some directions."""
            if not pulled.requires_grad:
                return torch.zeros(len(tangents), *value.shape)
            return torch.autograd.grad(pulled, cotangent, tangents, retain_graph=True, is_grads_batched=True)[0]

        return [_owners(along, name, columns, z) for name, columns in groups.items()]


def _owners(along: Callable[[Tensor], Tensor], name: str, columns: Tensor, z: Tensor) -> Tensor:
    num_rows, row_dim = columns.shape
    numbers, owner = torch.arange(num_rows), torch.tensor(-1)
    places, digits, rest = list[int](), list[Tensor](), num_rows - 1
    while rest or not digits:
        place = BASE ** len(places)
        places.append(place)
        digits.append(numbers // place % BASE)
        rest //= BASE
    known = torch.tensor(False)
    for _ in range(NUM_TRIES):
        check = 1 + torch.rand(num_rows)
        factors = torch.stack([torch.ones(num_rows), *digits, check]).to(z)
        tangents = z.new_zeros(len(factors), len(z))
        tangents[:, columns] = factors[..., None] * (0.5 + torch.rand(row_dim)).to(z)
        one, *found, checked = along(tangents)
        none = (one == 0) & (checked == 0)
        ratios = torch.stack(found) / one
        row = (ratios.nan_to_num(0.0, 0.0, 0.0).round().long() * torch.tensor(places)[:, None]).sum(0)
        row = row.clamp(0, num_rows - 1)
        fits = none | ((checked / one - check.to(z)[row]).abs() < TOLERANCE)
        owner = torch.where(known, owner, torch.where(none, -1, row))
        known = known | fits
        if bool(known.all()):
            return owner
    raise SeveralRowsError(f"a term of the model reads several rows of plate '{name}' at once")
