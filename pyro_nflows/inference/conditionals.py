r"""Evidence about a fit of rows of plates that cross: what one step of Gibbs sampling would make of its draws.

Weights of whole draws fall off exponentially with the number of rows, and rows of crossed plates cannot be integrated
out one by one, since they are not independent given the rest. But given the draws of all other latents, the rows of one
block are, in the posterior too. So each block :math:`b` in turn is drawn again from the posterior given the others as
they are drawn, among candidates :math:`x_{ic}` from the guide with weights

.. math:: w_{ic} = p(z_{ic}, y_i \mid z_{-b}) / q(z_{ic} \mid g),

which leaves the posterior, if the draws are from it, as it is [1]. What is outside of plates is one more block, with
which rows move along. In coordinates of the guide's base, let :math:`v` be the mean of the conditional variance, and
:math:`c` the variance of the conditional mean, from two halves of the candidates, whose noise is independent. The guide
has conditionals of its own, of variance :math:`v_q`, whose means vary by :math:`c_q`, which is nothing where blocks are
independent in it. One step leads from :math:`v_q + c_q` to :math:`v + c`, which are alike if the guide is right; and of
two normal blocks, fitted as well as independent ones can be, the posterior's variance over the guide's is

.. math:: \frac{v}{v_q + c_q - c} .

The same is found of what all rows of a block share: sums of their coordinates, and of these times their locations, such
as a rotation of factors, in which the rows' own widths may be right and that of the sum much too small.

**References**

[1] C. Andrieu, A. Lee, M. Vihola (2018). Uniform Ergodicity of the Iterated Conditional SMC and Geometric Ergodicity of
Particle Gibbs Samplers.
"""

import math
from typing import cast

import torch
from torch import Tensor

from ..diagnostics.findings import Block as BlockFit
from ..engine.tape import Tape
from ..flows.by_row import ByRow, draw_by_row
from ..flows.whitened import Whitened
from ..layers import PlateAffine, SharedAffine
from ..model.crossed_terms import Chunk, CrossedTerms
from ..model.row_owners import row_owners
from ..numerics import standard_normal_log_prob
from ..objectives.draws import Draws, concatenate
from .block_sums import BlockSums, Part
from .shared_widths import MOST_WIDTH, split_shared

#: Candidates for each block of a draw, beside what it is; an even number.
NUM_CANDIDATES = 8
#: Terms of the log joint that are evaluated in all, about; draws that are judged at least, and at most.
EVALUATIONS, FEWEST, MOST = 1_500_000_000, 32, 400
#: Numbers at once.
AT_ONCE = 2**22
#: Coordinates of a row of which what all rows share is looked at.
MAX_SHARED = 12


class Conditionals:
    """Judges draws of a layer over all rows of several plates.

    :param layer: the flow.
    :param terms: the model.
    """

    def __init__(self, layer: Whitened, terms: CrossedTerms):
        self.shared, self.layer = split_shared(layer)
        self.terms = terms
        self.end = cast(PlateAffine, layer.end)
        whole = self.end.hierarchy
        start, self.parts = len(whole.top), list[Part]()
        if start or layer.noise_dim:
            places = torch.cat([torch.arange(start), whole.dim + torch.arange(layer.noise_dim)])
            self.parts.append(Part(-1, (), places[None]))
        for number, block in enumerate(whole.blocks):
            places = start + torch.arange(block.columns.numel()).view(block.columns.shape)
            self.parts.append(Part(number, block.plates, places))
            start += block.columns.numel()
        self._tapes: dict[int, Tape | None] = {}
        self._owners: list[list[Tensor]] | None = None

    @property
    def num_samples(self) -> int:
        """Draws that are judged."""
        each = (NUM_CANDIDATES + 1) * len(self.parts) * self.terms.num_terms
        return max(FEWEST, min(MOST, EVALUATIONS // each))

    @torch.no_grad()
    def weighed(self, num_samples: int) -> Draws:
        """Draws with their log densities over all rows."""
        found = list[Draws]()
        for x in self._base(num_samples).split(self._size):
            found.append(self._first(x)[0])
        return concatenate(found)

    @torch.no_grad()
    def judged(self, num_samples: int | None = None) -> tuple[Draws, list[BlockFit]]:
        """Draws with their log densities, and how each block of them is fitted.

        :raises SeveralRowsError: if a term of the log joint reads several rows of a block.
        """
        num_samples = num_samples or self.num_samples
        if self._owners is None:
            z = self._draw(self._base(1)).z[0]
            self._owners = [self._owners_in(chunk, z) for chunk in self.terms.chunks]
        found, sums = list[Draws](), [BlockSums(part, *self._known(part)) for part in self.parts]
        for x in self._base(num_samples).split(self._size):
            draws, x = self._first(x)
            found.append(draws)
            for part, known in zip(self.parts, sums):
                x = self._again(x, part, known)
        return concatenate(found), [known.fit(self._is_undetermined(known.part)) for known in sums]

    def _is_undetermined(self, part: Part) -> bool:
        """Whether rows of a block share what is as wide as any width may be."""
        if self.shared is None or part.number < 0:
            return False
        return float(self.shared.log_widths.max()) > math.log(0.99 * MOST_WIDTH)

    def _first(self, x: Tensor) -> tuple[Draws, Tensor]:
        """Draws of the whole flow from its base, and where they are in that of the rows."""
        at, change = x, torch.zeros(len(x), dtype=torch.float64)
        if self.shared is not None:
            inside, noise = x.split([self.end.input_dim, self.layer.noise_dim], -1)
            moved, log_weight = self.shared(inside)
            at = torch.cat([moved, noise], -1)
            change = (standard_normal_log_prob(inside) - standard_normal_log_prob(moved) - log_weight).double()
        drawn = self._draw(at)
        return Draws(drawn.z, self._sums(drawn.z)[0], _log_q(drawn) + change), at

    # ---- one block --------------------------------------------------------------------------------------------

    def _again(self, x: Tensor, part: Part, known: BlockSums) -> Tensor:
        """Base points with a block drawn again given the rest."""
        middle = self._middle(x, part)
        candidates = [x[:, part.places], *(middle + torch.randn_like(middle) for _ in range(NUM_CANDIDATES))]
        log_weights = list[Tensor]()
        for candidate in candidates:
            other = x.clone()
            other[:, part.places] = candidate
            far = (middle * (0.5 * middle - candidate)).sum(-1)
            log_weights.append(self._log_weight(other, part) + far)
        known.add(candidates[1:], log_weights[1:], middle)
        log_weight = torch.stack(log_weights)
        chance = -torch.log(-torch.log(torch.rand_like(log_weight).clamp(1e-30, 1 - 1e-7)))
        best = (log_weight + chance).argmax(0)
        taken = torch.stack(candidates).gather(0, best[None, ..., None].expand(1, *candidates[0].shape))[0]
        x = x.clone()
        x[:, part.places] = taken
        return x

    def _middle(self, x: Tensor, part: Part) -> Tensor:
        """The guide's mean of a block given the rest, ``(K, rows, d)``: zero but for what rows share."""
        if self.shared is None or part.number < 0:
            return torch.zeros_like(x[:, part.places])
        own, inner = self._inner(part)
        rows = x[:, len(self.end.hierarchy.top) : self.end.input_dim]
        rest = rows @ self.shared.directions.T - x[:, part.places].flatten(1) @ own.T
        return -(rest @ inner.T @ own).unflatten(-1, part.places.shape)

    def _inner(self, part: Part) -> tuple[Tensor, Tensor]:
        r"""Of a block: the directions in it, ``(K, rows d)``, and :math:`A = (I + D G)^{-1} D`.

        Its precision in the guide is :math:`I + U_b D U_b^\top`, with :math:`D = T^{-2} - I` and :math:`G` the products
        of directions in the block; the covariance is :math:`I - U_b A U_b^\top`.
        """
        shared = cast(SharedAffine, self.shared)
        own = shared.directions[:, part.places.flatten() - len(self.end.hierarchy.top)]
        scale = torch.expm1(-2 * shared.log_widths)[:, None]
        matrix = torch.eye(len(own)).to(own) + scale * (own @ own.T)
        return own, torch.linalg.solve(matrix, torch.diag(scale[:, 0]))

    def _log_weight(self, x: Tensor, part: Part) -> Tensor:
        """Of each row of a block, ``(K, rows)``, up to what does not depend on it."""
        drawn = self._draw(x)
        if part.number < 0:
            return (self._sums(drawn.z)[0] - _log_q(drawn))[:, None]
        log_q = drawn.rows[part.number].double()
        for inner, block in enumerate(self.end.hierarchy.blocks):
            for above in block.above:
                if above.block == part.number:
                    log_q = log_q.index_add(-1, above.row, drawn.rows[inner].double())
        return self._sums(drawn.z, part.number)[1] - log_q

    # ---- the layer and the model ------------------------------------------------------------------------------

    @property
    def _size(self) -> int:
        widest = max(self.terms.hierarchy.dim, self.terms.num_terms // len(self.terms.chunks), self.end.input_dim)
        return max(1, min(64, AT_ONCE // widest))

    def _base(self, num: int) -> Tensor:
        return torch.randn(num, self.end.input_dim + self.layer.noise_dim).to(next(self.layer.parameters()))

    def _noise(self, x: Tensor) -> list[Tensor]:
        return [x[:, self.end.input_dim :]] if self.layer.noise_dim else []

    def _draw(self, x: Tensor) -> ByRow:
        return draw_by_row(self.layer, x[:, : self.end.input_dim], *self._noise(x))

    def _sums(self, z: Tensor, number: int | None = None) -> tuple[Tensor, Tensor]:
        """The log joint over all rows of the data, and what of it each row of a block has, in double precision."""
        blocks = self.end.hierarchy.blocks
        total = torch.zeros(len(z), dtype=torch.float64)
        rows = torch.zeros(len(z), 1 + (blocks[number].num_rows if number is not None else 0), dtype=torch.float64)
        for place, chunk in enumerate(self.terms.chunks):
            values = self.run(z[:, chunk.rows.columns], chunk)
            if number is None:
                total += values.double().sum(-1)
            else:
                part = rows.new_zeros(rows.shape, dtype=values.dtype)
                rows += part.index_add_(1, self._owners[place][number], values)  # type: ignore[index]
        return total, rows[:, :-1]

    def run(self, z: Tensor, chunk: Chunk) -> Tensor:
        """The terms of a run of the model at latents of its rows, ``(K, terms)``."""
        given = [z, *chunk.visit.tensors]
        if len(z) not in self._tapes:
            self._tapes[len(z)] = self._record(given)
        tape = self._tapes[len(z)]
        return self.terms.at(*given) if tape is None else tape.run(given)[0]

    def _record(self, given: list[Tensor]) -> Tape | None:
        try:
            tape = Tape(lambda *inputs: [self.terms.at(*inputs)], given)
            other = [given[0], *self.terms.chunks[-1].visit.tensors]
            same = torch.allclose(tape.run(other)[0], self.terms.at(*other), 1e-3, 1e-3, equal_nan=True)
            return tape if same and not tape.is_random else None
        except Exception:  # what cannot be recorded, for whatever reason, runs as it is
            return None

    def _owners_in(self, chunk: Chunk, z: Tensor) -> list[Tensor]:
        """For each block, the row among all that each term of a run is a part of, through inner rows too.

        Terms of no row have the number after the last.
        """
        blocks, rows = self.end.hierarchy.blocks, chunk.rows
        found = row_owners(lambda at: self.terms.of_one(at, *chunk.visit.tensors), z[rows.columns], rows.hierarchy)
        owners = [torch.where(own < 0, -1, at[own.clamp(min=0)]) for own, at in zip(found, rows.numbers)]
        for inner in reversed(range(len(blocks))):
            for above in blocks[inner].above:
                through = torch.where(owners[inner] < 0, -1, above.row[owners[inner].clamp(min=0)])
                owners[above.block] = torch.where(owners[above.block] < 0, through, owners[above.block])
        return [torch.where(own < 0, block.num_rows, own) for own, block in zip(owners, blocks)]

    def _known(self, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """Of a block in the guide given the rest: variances, directions ``(rows, n)`` that rows share, variances there.

        The directions are the same number for all rows, and the rows' locations.
        """
        rows, dim = part.places.shape
        if part.number < 0:
            return torch.ones(rows, dim), torch.zeros(rows, 0), torch.zeros(dim, 0)
        loc = self.end.loc.detach()[self.end.hierarchy.blocks[part.number].columns]
        found = torch.cat([torch.ones(rows, 1), loc / loc.std(0).clamp(min=1e-30)], 1)
        found = found / found.norm(dim=0) if dim <= MAX_SHARED else found[:, :0]
        if self.shared is None:
            return torch.ones(rows, dim), found, torch.ones(dim, found.shape[1])
        own, inner = self._inner(part)
        lost = torch.einsum("ki,kl,li->i", own, inner, own).view(rows, dim)
        along = torch.einsum("krd,rn->kdn", own.view(-1, rows, dim), found)
        return 1 - lost, found, 1 - torch.einsum("kdn,kl,ldn->dn", along, inner, along)


def _log_q(drawn: ByRow) -> Tensor:
    return drawn.outside.double() + torch.stack([part.double().sum(-1) for part in drawn.rows]).sum(0)
