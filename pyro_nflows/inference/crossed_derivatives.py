"""The log joint over all rows of a model with latents in several plates, and its derivatives, run after run of it."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.tape import Tape
from ..model.crossed_terms import Chunk, CrossedTerms
from ..modes.plate_curvature import root_of


class RowPlaces(NamedTuple):
    """Where the coordinates of some rows are, such that products of the Hessian show each row's own curvature.

    :param places: ``(rows, d)``.
    :param colours: of each row; those of one colour are independent of each other given the rest. All are, by default.

    Example::

        >>> rows = RowPlaces(torch.tensor([[0], [1]]), torch.tensor([0, 1]))
        >>> hessian = torch.tensor([[-2.0, 1.0], [1.0, -2.0]])
        >>> rows.roots(rows.vectors(torch.zeros(2)) @ hessian)[:, 0, 0].square()  # the variances given the rest
        tensor([0.5000, 0.5000])
    """

    places: Tensor
    colours: Tensor | None = None

    @property
    def num(self) -> int:
        """How many products there are."""
        return self.places.shape[1] * (1 if self.colours is None else int(self.colours.max()) + 1)

    def vectors(self, like: Tensor) -> Tensor:
        """For each colour and coordinate of a row, a vector with a one there in every row of that colour.

        :param like: a flat latent.
        """
        dim = self.places.shape[1]
        found = like.new_zeros(self.num, len(like))
        which = torch.arange(dim).expand(self.places.shape)
        if self.colours is not None:
            which = which + dim * self.colours[:, None]
        found[which, self.places] = 1.0
        return found

    def roots(self, products: Tensor) -> Tensor:
        """Roots of rows' covariances given the rest, ``(rows, d, d)``.

        :param products: of the Hessian with :meth:`vectors`.
        """
        dim = self.places.shape[1]
        by_row = products.unflatten(0, (-1, dim))[:, :, self.places]  # colours, vectors, rows, coordinates
        colours = torch.zeros(len(self.places), dtype=torch.long) if self.colours is None else self.colours
        square = -by_row[colours, :, torch.arange(len(self.places))]
        return root_of(0.5 * (square + square.mT))


class CrossedDerivatives:
    """The log joint at flat latents of all rows.

    :param terms: the model.
    """

    def __init__(self, terms: CrossedTerms):
        self.terms = terms
        self._tapes: dict[int, Tape | None] = {}

    def value(self, z: Tensor) -> float:
        """The log joint."""
        found = [self._run(0, chunk, z[chunk.rows.columns])[0] for chunk in self.terms.chunks]
        return float(torch.stack(found).sum())

    def at(self, z: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient, and products of the Hessian with vectors, in double precision."""
        grad, products = (part.double() for part in (torch.zeros_like(z), torch.zeros_like(vectors)))
        for chunk in self.terms.chunks:
            columns = chunk.rows.columns
            _, part, found = self._run(len(vectors), chunk, z[columns], vectors[:, columns])
            grad.index_add_(0, columns, part.double())
            products.index_add_(1, columns, found.double())
        return grad, products

    @torch.no_grad()
    def product(self, z: Tensor, vector: Tensor) -> Tensor:
        """Of the Hessian at a flat latent with a vector."""
        return self.at(z, vector[None])[1][0]

    @torch.no_grad()
    def of_rows(self, z: Tensor, rows: RowPlaces) -> tuple[Tensor, Tensor]:
        """The gradient of some rows ``(rows, d)``, and roots of their covariances given the rest."""
        grad, products = self.at(z, rows.vectors(z))
        return grad[rows.places], rows.roots(products)

    def _run(self, num: int, chunk: Chunk, *inputs: Tensor) -> list[Tensor]:
        given = [*inputs, *chunk.visit.tensors]
        if num not in self._tapes:
            self._tapes[num] = self._record(given)
        tape = self._tapes[num]
        return self._direct(*given) if tape is None else tape.run(given)

    def _record(self, given: list[Tensor]) -> Tape | None:
        try:
            tape = Tape(lambda *inputs: self._direct(*inputs), given)
            other = [*given[: -len(self.terms.chunks[-1].visit.tensors)], *self.terms.chunks[-1].visit.tensors]
            pairs = zip(tape.run(other), self._direct(*other))
            same = all(torch.allclose(a, b, 1e-3, 1e-3, equal_nan=True) for a, b in pairs)
            return tape if same and not tape.is_random else None
        except Exception:  # what cannot be recorded, for whatever reason, runs as it is
            return None

    def _direct(self, *inputs: Tensor) -> list[Tensor]:
        num = 2 * len(self.terms.plates) + 1
        z, *vectors = inputs[:-num]
        with torch.set_grad_enabled(bool(vectors)):
            at = z.detach().requires_grad_() if vectors else z
            value = self.terms.of_one(at, *inputs[-num:]).double().sum()
            if not vectors:
                return [value]
            (grad,) = torch.autograd.grad(value, at, create_graph=True)
            if not grad.requires_grad:
                return [value.detach(), grad, torch.zeros_like(vectors[0])]
            products = torch.autograd.grad(
                grad, at, vectors[0], is_grads_batched=True, materialize_grads=True, allow_unused=True
            )[0]
        return [value.detach(), grad.detach(), products.detach()]
