r"""Leave-one-group-out for a plate that others cross: the data of a user are those of many items, too.

Given the draws of all else, the items' latents among them, the latents of a user are integrated out, and the draws are
weighed by one over what that gives (:mod:`~pyro_nflows.inference.groups_left_out`). The integral is over importance
draws from a Gaussian at the user's mode given that draw of all else, which a few steps of Newton's method find: users
are independent given the rest, so one product with the Hessian is one for each of them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..flows.whitened import Whitened
from ..model.crossed_terms import CrossedTerms
from ..model.group_terms import owner_of
from ..model.latents import Latents
from ..model.row_owners import SeveralRowsError, owners_in
from .conditionals import Conditionals
from .crossed_derivatives import CrossedDerivatives, RowPlaces
from .groups_left_out import Part

#: Steps of Newton's method for each draw of all else; the longest, in standard deviations, and one that is none.
NUM_NEWTON, LONGEST, SETTLED = 4, 10.0, 0.1
#: Latents of a row, with all that is within it, at most.
MOST_LATENTS = 64


def crossed_parts(plate: str, layer: Whitened, terms: CrossedTerms, latents: Latents) -> Iterator[Part]:
    """All rows of a plate.

    :param plate: its name.
    :param layer: the fitted flow.
    :param terms: the model.
    :param latents: of all rows.
    :raises ValueError: if no latents are in it, its rows have data in common, or a row has too many latents.
    """
    named = sorted({name for at in latents.sites.values() for name in at.axes})
    if plate not in named:
        raise ValueError(f"leave_one_group_out: this model has latents in plates {named}, got {plate!r}")
    yield RowsLeftOut(plate, layer, terms, owner_of(latents, plate)).part


class RowsLeftOut:
    """What each row of a plate adds to the log joint, and where its latents are given all else.

    :param owner: of each coordinate of a flat latent, the row that it is of; -1 for all others.
    """

    def __init__(self, plate: str, layer: Whitened, terms: CrossedTerms, owner: Tensor):
        self.plate, self.terms, self.owner = plate, terms, owner
        self.evidence, self.num_rows = Conditionals(layer, terms), int(owner.max()) + 1
        places = (owner >= 0).nonzero()[:, 0]
        self.places = places[owner[places].argsort(stable=True)].view(self.num_rows, -1)
        if self.places.shape[1] > MOST_LATENTS:
            raise ValueError(
                f"leave_one_group_out: a row of plate '{plate}' has {self.places.shape[1]} latents, with those within "
                f"it, and at most {MOST_LATENTS} can be integrated out; leave out rows of a plate within it"
            )
        self._model = CrossedDerivatives(terms)
        self._of_terms: list[Tensor] = []

    @property
    def part(self) -> Part:
        """All rows."""
        columns = torch.arange(len(self.owner))
        return Part(torch.arange(self.num_rows), columns, self.owner, self.density, self.proposal)

    @torch.no_grad()
    def density(self, z: Tensor) -> Tensor:
        """Flat latents ``(K, D)`` to the parts of the log joint that read each row, ``(K, rows)``."""
        total = torch.zeros(len(z), self.num_rows + 1, dtype=torch.float64)
        for chunk, owner in zip(self.terms.chunks, self._owners(z[0])):
            values = self.evidence.run(z[:, chunk.rows.columns], chunk)
            total.index_add_(1, owner, values.double())
        return total[:, :-1]

    @torch.no_grad()
    def proposal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of each draw ``(S, D)`` and row: the mode given all else ``(S, rows, r)``, and a root of the covariance."""
        self._owners(z[0])
        found = [self._at(draw) for draw in z]
        return torch.stack([mean for mean, _ in found]), torch.stack([root for _, root in found])

    def _at(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        at = draw
        for _ in range(NUM_NEWTON):
            gradient, root = self._model.of_rows(at, RowPlaces(self.places))
            white = (root.mT @ gradient[..., None])[..., 0]
            longest = float(white.norm(dim=-1).max())
            white = white * (LONGEST / white.norm(dim=-1, keepdim=True).clamp(min=LONGEST))
            at = at.clone()
            at[self.places] += (root @ white[..., None])[..., 0].to(at)
            if longest < SETTLED:
                break
        return at[self.places].double(), root

    def _owners(self, z: Tensor) -> list[Tensor]:
        """Of each run of the model, the row that each of its terms reads; the number after the last for none."""
        if not self._of_terms:
            try:
                self._of_terms = [self._owners_in(z, number) for number in range(len(self.terms.chunks))]
            except SeveralRowsError as error:
                raise ValueError(f"leave_one_group_out: {error}, so that no row has data of its own") from error
        return self._of_terms

    def _owners_in(self, z: Tensor, number: int) -> Tensor:
        chunk = self.terms.chunks[number]
        here = self.owner[chunk.rows.columns]
        rows = here[here >= 0].unique()
        places = (here >= 0).nonzero()[:, 0]
        places = places[here[places].argsort(stable=True)].view(len(rows), -1)
        at = z[chunk.rows.columns]
        (found,) = owners_in(lambda x: self.terms.of_one(x, *chunk.visit.tensors), at, {self.plate: places})
        return torch.where(found < 0, self.num_rows, rows[found.clamp(min=0)])
