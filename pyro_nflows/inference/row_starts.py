r"""Where the rows of a subsampled plate start: at their modes given what is outside, with the curvature there.

.. math:: z_i | g \approx N\big(\hat z_i - \Lambda_i^{-1} P_{ig} (g - \hat g),\ \Lambda_i^{-1}\big)

with :math:`\Lambda_i` and :math:`P_{ig}` minus the second derivatives of the row's part of the log joint.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import PlateAffine
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..modes.gaussians import put_rows, put_top
from ..modes.plate_curvature import conditionals, precision, probes, root_of
from .row_team import RowTeam

#: Steps of Newton's method, and halvings of a row's step.
NUM_NEWTON, NUM_HALVINGS = 12, 6
#: A step of a row, in its own standard deviations, that is no step any more.
SETTLED = 1e-3


class RowStart(NamedTuple):
    """Where chosen rows start: their numbers, and the Gaussian of them and of what is outside, as an affine end."""

    numbers: Tensor
    end: PlateAffine


@torch.no_grad()
def row_starts(
    terms: RowTerms,
    scale_tril: Tensor,
    loc: Callable[[Tensor], Tensor],
    team: RowTeam | None = None,
    until: float = math.inf,
) -> Iterator[RowStart]:
    """Where all rows start, minibatch after minibatch; the model is then at its rows.

    :param terms: the model on chosen rows.
    :param scale_tril: of what is outside of the plate, lower triangular.
    :param loc: where Newton's method begins: the flat latent of chosen rows, by their numbers.
    :param team: who goes through the minibatches; by default this process alone.
    :param until: when to leave the other rows where they are, by ``time.perf_counter``.
    """
    numbers = [torch.arange(at, at + terms.size) % terms.num_rows for at in range(0, terms.num_rows, terms.size)]
    given = ((scale_tril, at, loc(at)) for at in numbers)
    for at, end in zip(numbers, (team or RowTeam()).over("terms", start_of, terms, given, until)):
        terms.choose(at)
        yield RowStart(at, end)


@torch.no_grad()
def start_of(terms: RowTerms, scale_tril: Tensor, numbers: Tensor, loc: Tensor) -> PlateAffine:
    """Where the rows of one minibatch start, as an affine end.

    :param terms: the model on chosen rows.
    :param scale_tril: of what is outside of the plate, lower triangular.
    :param numbers: of the rows.
    :param loc: where Newton's method begins.
    """
    terms.choose(numbers)
    z, products = _newton(terms, loc)
    _, parts = precision(terms.hierarchy, -products.double())
    end = PlateAffine(terms.hierarchy, z).to(z)
    put_top(end, scale_tril)
    put_rows(end, Rows.of(terms.hierarchy, {}), conditionals(terms.hierarchy, scale_tril.double(), parts))
    return end


@torch.no_grad()
def place_rows(
    end: PlateAffine,
    terms: RowTerms,
    rows_of: Callable[[Tensor], Rows],
    team: RowTeam | None = None,
    until: float = math.inf,
) -> None:
    """Start all rows of a guide's affine end, given where what is outside is.

    :param end: over all rows; what it has outside of the plate stays.
    :param terms: the model on chosen rows.
    :param rows_of: makes chosen rows of their numbers.
    :param team: who goes through the minibatches; by default this process alone.
    :param until: see :func:`row_starts`.
    """
    loc, scale_tril = end.loc.detach().clone(), end.top_scale_tril()
    for numbers, found in row_starts(terms, scale_tril, lambda numbers: loc[rows_of(numbers).columns], team, until):
        rows = rows_of(numbers)
        end.loc[rows.columns] = found.loc
        end.log_scale[rows.columns] = found.log_scale
        for table, own in ((end.within, found.within), (end.above, found.above)):
            for number in table:
                table[number][rows.numbers[int(number)]] = own[number]


def _newton(terms: RowTerms, z: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' modes, and products with the Hessian of their parts there."""
    hierarchy, vectors = terms.hierarchy, probes(terms.hierarchy).to(z)
    value = terms(z[None])[1][0]
    for _ in range(NUM_NEWTON):
        grad, products = _derivatives(terms, z, vectors)
        _, parts = precision(hierarchy, -products.double())
        step = torch.zeros_like(z)
        largest = 0.0
        for block, (square, _) in zip(hierarchy.blocks, parts):
            root = root_of(square)
            white = (root.mT @ grad[block.columns].double()[..., None])[..., 0]
            white = white * (5 / white.norm(dim=-1, keepdim=True).clamp(min=5))
            largest = max(largest, float(white.abs().max()))
            step[block.columns] = (root @ white[..., None])[..., 0].to(z)
        if largest < SETTLED:
            break
        z, value = _climb(terms, z, step, value)
    return z, _derivatives(terms, z, vectors)[1]


def _climb(terms: RowTerms, z: Tensor, step: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Each row takes its step, or as much of it as does not make it worse."""
    share = torch.ones_like(value)
    for _ in range(NUM_HALVINGS):
        trial = z + _spread(terms, share, z) * step
        found = terms(trial[None])[1][0]
        worse = ~(found >= value - 1e-5 * value.abs())
        if not bool(worse.any()):
            break
        share = torch.where(worse, 0.5 * share, share)
    share = torch.where(worse, 0.0, share)
    z = z + _spread(terms, share, z) * step
    return z, terms(z[None])[1][0]


def _spread(terms: RowTerms, share: Tensor, z: Tensor) -> Tensor:
    """A number for each row of the plate, for each coordinate that it holds."""
    found = torch.zeros_like(z)
    for block in terms.hierarchy.blocks:
        number = terms.hierarchy.index_in(block, terms.plate)
        found[block.columns] = share[number][:, None].expand(block.columns.shape)
    return found


def _derivatives(terms: RowTerms, z: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Of the sum of the rows' parts: the gradient, and products of the Hessian with vectors."""
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(terms(at[None])[1].sum(), at, create_graph=True)
        if not grad.requires_grad:
            return grad.detach(), torch.zeros_like(vectors)
        products = torch.autograd.grad(grad, at, vectors, is_grads_batched=True)[0]
    return grad.detach(), products
