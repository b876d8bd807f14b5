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

Where terms read several rows of a block, as games between two players do, its rows are not independent given the rest.
They have colours then (:mod:`~pyro_nflows.model.row_reads`), and those of each colour are drawn again given all else,
rows of other colours included. A sum over rows of one colour says little of the sum over all, of which the curvature
of the log density along it says how wide it is given all else.

**References**

[1] C. Andrieu, A. Lee, M. Vihola (2018). Uniform Ergodicity of the Iterated Conditional SMC and Geometric Ergodicity of
Particle Gibbs Samplers.
"""

import math
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from ..diagnostics.findings import Block as BlockFit
from ..engine.pace import portions
from ..engine.tape import Tape
from ..flows.by_row import ByRow, draw_by_row
from ..flows.whitened import Whitened
from ..layers import PlateAffine, SharedAffine
from ..model.crossed_terms import Chunk, CrossedTerms
from ..model.row_reads import RowReads
from ..numerics import standard_normal_log_prob
from ..objectives.draws import Draws, concatenate
from .block_sums import BlockSums, Part, joined
from .shared_curvature import SharedCurvature, shared_along
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
        start, self._places = len(whole.top), list[Tensor]()
        for block in whole.blocks:
            self._places.append(start + torch.arange(block.columns.numel()).view(block.columns.shape))
            start += block.columns.numel()
        self._tapes: dict[int, Tape | None] = {}

    @cached_property
    def reads(self) -> RowReads:
        """Which rows the terms of the log joint read.

        :raises SeveralRowsError: if one reads too many of a block.
        """
        return self.terms.reads_at(self._draw(self._base(1)).z[0])

    @cached_property
    def parts(self) -> list[Part]:
        """What is drawn again at once: what is outside of plates, and the rows of each colour of each block."""
        whole, found = self.end.hierarchy, list[Part]()
        num_top = len(whole.top)
        if num_top or self.layer.noise_dim:
            places = torch.cat([torch.arange(num_top), whole.dim + torch.arange(self.layer.noise_dim)])
            found.append(Part(-1, (), places[None]))
        for number, (block, at) in enumerate(zip(whole.blocks, self._places)):
            colours = self.reads.colours[number]
            num = int(colours.max()) + 1
            for colour in range(num):
                rows = (colours == colour).nonzero()[:, 0]
                found.append(Part(number, block.plates, at[rows], rows if num > 1 else None, colour))
        return found

    @property
    def num_samples(self) -> int:
        """Draws that are judged.

        :raises SeveralRowsError: see :attr:`reads`.
        """
        return self.affordable(len(self.parts))

    def affordable(self, num_parts: int) -> int:
        """Draws that are judged where so many parts of them are drawn again."""
        each = (NUM_CANDIDATES + 1) * num_parts * self.terms.num_terms
        return max(FEWEST, min(MOST, EVALUATIONS // each))

    @torch.no_grad()
    def weighed(self, num_samples: int) -> Draws:
        """Draws with their log densities over all rows."""
        found = list[Draws]()
        for x in self._base(num_samples).split(self._size):
            found.append(self._first(x)[0])
        return concatenate(found)

    @torch.no_grad()
    def judged(self, num_samples: int | None = None, until: float = math.inf) -> tuple[Draws, list[BlockFit]]:
        """Draws with their log densities, and how each block of them is fitted; no blocks where time was over before.

        :param until: when that is, by ``time.perf_counter``; some draws there are in any case.
        :raises SeveralRowsError: if a term of the log joint reads several rows of a block.
        """
        num_samples = num_samples or self.num_samples
        found, sums = list[Draws](), [BlockSums(part, *self._known(part)) for part in self.parts]
        several = self._of_several()
        for x in portions(self._base(num_samples), self._size, until):
            draws, x = self._first(x)
            found.append(draws)
            for curvature in several.values():
                if curvature.num < FEWEST:
                    curvature.add(x)
            for part, known in zip(self.parts, sums):
                x = self._again(x, part, known)
        drawn, blocks = concatenate(found), list[BlockFit]()
        if len(drawn.z) < num_samples:
            return drawn, blocks
        for number in sorted({part.number for part in self.parts}):
            own = [known for known in sums if known.part.number == number]
            fits = [known.fit(self._is_undetermined(known.part)) for known in own]
            blocks.append(
                joined([known.part for known in own], fits, several[number].ratio if number in several else 1.0)
            )
        return drawn, blocks

    def _of_several(self) -> dict[int, SharedCurvature]:
        """For blocks of several colours, what all rows share."""
        found = dict[int, SharedCurvature]()
        for number in {part.number for part in self.parts if part.rows is not None}:
            at, loc = self._places[number], self.end.loc.detach()[self.end.hierarchy.blocks[number].columns]
            dim, (along, varying) = at.shape[1], shared_along(loc)
            columns = torch.cat([torch.arange(dim), varying]) if dim <= MAX_SHARED else varying[:0]
            directions = loc.new_zeros(len(columns), self.end.input_dim + self.layer.noise_dim)
            values = torch.cat([along[:, :1].expand(-1, dim), along[:, 1:]], 1)[:, : len(columns)]
            directions[torch.arange(len(columns))[:, None], at[:, columns].T] = values.T
            own = torch.ones(len(directions), dtype=torch.float64)
            if self.shared is not None:
                along = directions[:, len(self.end.hierarchy.top) : self.end.input_dim] @ self.shared.directions.T
                own = own + (along.square() @ torch.expm1(-2 * self.shared.log_widths)).double()
            found[number] = SharedCurvature(self._log_p, directions, own)
        return found

    def _log_p(self, x: Tensor) -> Tensor:
        """The log joint at base points of the rows, with the log-determinant, up to a constant."""
        drawn = self._draw(x)
        inside = standard_normal_log_prob(x[:, : self.end.input_dim])
        return self._sums(drawn.z)[0] + inside.double() - _log_q(drawn)

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
        log_weight = torch.stack(log_weights).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
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
        return (self._sums(drawn.z, part)[1] - log_q)[:, part.which]

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

    def _sums(self, z: Tensor, part: Part | None = None) -> tuple[Tensor, Tensor]:
        """The log joint over all rows of the data, and what of it each row of a part has, in double precision."""
        blocks = self.end.hierarchy.blocks
        total = torch.zeros(len(z), dtype=torch.float64)
        rows = torch.zeros(len(z), 1 + (0 if part is None else blocks[part.number].num_rows), dtype=torch.float64)
        for place, chunk in enumerate(self.terms.chunks):
            values = self.run(z[:, chunk.rows.columns], chunk)
            if part is None:
                total += values.double().sum(-1)
            else:
                own = rows.new_zeros(rows.shape, dtype=values.dtype)
                rows += own.index_add_(1, self.reads.owners(place, part.number, part.colour), values)
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

    def _known(self, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """Of a block in the guide given the rest: variances, directions ``(rows, n)`` that rows share, variances there.

        The directions are those of :func:`~pyro_nflows.inference.shared_curvature.shared_along`.
        """
        rows, dim = part.places.shape
        if part.number < 0:
            return torch.ones(rows, dim), torch.zeros(rows, 0), torch.zeros(dim, 0)
        loc = self.end.loc.detach()[self.end.hierarchy.blocks[part.number].columns][part.which]
        found = shared_along(loc)[0][:, : None if dim <= MAX_SHARED else 0]
        if self.shared is None:
            return torch.ones(rows, dim), found, torch.ones(dim, found.shape[1])
        own, inner = self._inner(part)
        lost = torch.einsum("ki,kl,li->i", own, inner, own).view(rows, dim)
        along = torch.einsum("krd,rn->kdn", own.view(-1, rows, dim), found)
        return 1 - lost, found, 1 - torch.einsum("kdn,kl,ldn->dn", along, inner, along)


def _log_q(drawn: ByRow) -> Tensor:
    return drawn.outside.double() + torch.stack([part.double().sum(-1) for part in drawn.rows]).sum(0)
