r"""Evidence about a fit of many rows: weights of what is outside of the plate, and of each row by itself.

The weights of whole draws fall off exponentially with the number of rows, however good each row's fit is. So rows are
integrated out, by importance draws of each given what is outside [1]:

.. math:: w(g) = \frac{p(g)}{q(g)} \prod_i \frac1K \sum_k \frac{p(z_{ik}, y_i | g)}{q(z_{ik} | g)} .

All draws of :math:`g` have the same base points for their rows, so that what noise there is in the sums is the same for
all, and their ratios are close. What the rows themselves are worth is seen one by one, from draws of their own.

**References**

[1] L. Tran, M. Scharth, D. Gunawan, R. Kohn, S. Brown, G. Hawkins (2021). Robustly Estimating the Marginal Likelihood
for Cognitive Models via Importance Sampling.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..diagnostics.verdict import effective, tail_index
from ..flows.by_row import ByRow, draw_by_row
from ..flows.whitened import Whitened
from ..layers import PlateAffine, TriangularAffine
from ..model.hierarchy import Hierarchy
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..nets.views import on_rows
from ..numerics import log_scale_and_lower, quasi_normal
from .encoded import EncodedRows

#: Draws of each row for each draw of what is outside, at first and at most.
NUM_INNER, MAX_INNER = 2, 64
#: Nats by which weights may be distorted before more are taken.
UNEVEN = 0.1
#: Rows of a minibatch whose k-hats are found: those of the lowest ESS.
NUM_WORST = 3
#: An ESS up to which weights are flattened before moments are taken.
FLATTENED = 0.2
#: Numbers at once.
AT_ONCE = 2**22


class Outside(NamedTuple):
    """Draws of what is outside of the plate: base points ``(S, width)``, and collapsed log-weights ``(S,)``.

    ``uneven`` is how much the weights may still be distorted by the rows' integrals, in nats.
    """

    base: Tensor
    log_weight: Tensor
    uneven: float


@dataclass(frozen=True)
class Collapser:
    """Weighs draws of a layer over all rows, minibatch after minibatch.

    :param layer: the flow; of all rows, or of those that the model is at.
    :param terms: the model on chosen rows.
    :param rows: makes chosen rows of their numbers.
    """

    layer: Whitened | EncodedRows
    terms: RowTerms
    rows: Callable[[Tensor], Rows]

    @torch.no_grad()
    def weigh(self, num_samples: int, seed: int = 0) -> Outside:
        """Draws of what is outside of the plate, with their collapsed weights.

        The logarithm of a mean over :math:`K` draws is too low, by about :math:`V / 2 K` for all rows together, with
        :math:`V` the sum of their variances; for one draw by :math:`V / 2`. Where that is not the same for all draws of
        what is outside, so that it would distort their weights, more draws of each row are taken.
        """
        base, num_inner = self._base(num_samples, seed), NUM_INNER
        while True:
            single, mean = self._integrated(base, num_inner)
            uneven = float(((mean - single) / (num_inner - 1)).std())
            if not uneven > UNEVEN or num_inner >= MAX_INNER:
                return Outside(base, mean, uneven)
            num_inner *= 2

    def _integrated(self, base: Tensor, num_inner: int) -> tuple[Tensor, Tensor]:
        """Collapsed log-weights by one draw of each row, on average, and by the mean over so many draws."""
        single, mean = (torch.zeros(len(base), dtype=torch.float64) for _ in range(2))
        for numbers, counts, view in self._minibatches():
            alone, both = torch.zeros(()), torch.tensor(-math.inf)
            for point in self._row_points(num_inner):
                outside, ratios = self._pieces(view, base, point.expand(len(base), -1))
                ratios = ratios.double()
                alone, both = alone + ratios / num_inner, torch.logaddexp(both, ratios)
            single += (alone * counts).sum(-1)
            mean += ((both - math.log(num_inner)) * counts).sum(-1)
            if numbers[0] == 0:
                single, mean = single + outside, mean + outside
        return single, mean

    @torch.no_grad()
    def draws(self, base: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, dict[int, float]]:
        """Whole draws ``(S, D)`` from base points; of each row of the plate, the ESS; and the worst rows' k-hats."""
        z = base.new_zeros(len(base), self.layer.input_dim)
        ess, worst = torch.ones(self.terms.num_rows, dtype=torch.float64), dict[int, float]()
        generator = torch.Generator().manual_seed(seed + 1)
        width = self.terms.hierarchy.dim - len(self.terms.hierarchy.top)
        for numbers, _, view in self._minibatches():
            inner = torch.randn(len(base), width, generator=generator).to(base)
            found = self._draw(view, base, inner)
            _, ratios = self._ratios(found)
            z[:, self.rows(numbers).columns] = found.z
            weight = (ratios - ratios.amax(0)).double().exp()
            share = weight.sum(0).square() / (len(weight) * weight.square().sum(0))
            ess[numbers] = share.nan_to_num(0.0)
            for row in share.argsort()[:NUM_WORST].tolist():
                worst[int(numbers[row])] = tail_index(ratios[:, row].double())
        return z, ess, worst

    def _base(self, num_samples: int, seed: int) -> Tensor:
        """Base points of what is outside, with the noise of its flow."""
        width = len(self.terms.hierarchy.top) + self.layer.noise_dim
        like = next(self.layer.parameters())
        return quasi_normal(num_samples, width, seed).to(like) if width else like.new_zeros(num_samples, 0)

    def _row_points(self, num: int) -> Tensor:
        like = next(self.layer.parameters())
        return torch.randn(num, self.terms.hierarchy.dim - len(self.terms.hierarchy.top)).to(like)

    def _minibatches(self) -> Iterator[tuple[Tensor, Tensor, Whitened]]:
        """Rows, how often each is to be counted, and the layer over them; every row is counted once."""
        terms = self.terms
        for start in range(0, terms.num_rows, terms.size):
            place = torch.arange(start, start + terms.size)
            numbers, counts = place % terms.num_rows, (place < terms.num_rows).double()
            terms.choose(numbers)
            yield numbers, counts, cast(Whitened, on_rows(self.layer, self.rows(numbers)))

    def _pieces(self, view: Whitened, base: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        size = max(1, AT_ONCE // self.terms.hierarchy.dim)
        parts = [self._ratios(self._draw(view, a, b)) for a, b in zip(base.split(size), inner.split(size))]
        outside, ratios = zip(*parts)
        return torch.cat(outside), torch.cat(ratios)

    def _draw(self, view: Whitened, base: Tensor, inner: Tensor) -> ByRow:
        num_top = len(self.terms.hierarchy.top)
        noise = base[:, num_top:] if view.noise_dim else None
        return draw_by_row(view, torch.cat([base[:, :num_top], inner], -1), noise)

    def _ratios(self, found: ByRow) -> tuple[Tensor, Tensor]:
        """Log ratios of the model to the guide: outside ``(S,)``, and of each row of the plate ``(S, rows)``."""
        terms = self.terms
        outside, rows = terms(found.z)
        log_q = torch.zeros_like(rows)
        for block, part in zip(terms.hierarchy.blocks, found.rows):
            log_q = log_q.index_add(-1, terms.hierarchy.index_in(block, terms.plate), part)
        return outside - found.outside, rows - log_q


def collapser_of(layer: Whitened | EncodedRows, terms: RowTerms, whole: Hierarchy | None = None) -> Collapser:
    """What weighs draws of a layer over all rows.

    :param layer: the flow; of all rows, or of those that the model is at.
    :param terms: the model on chosen rows.
    :param whole: the hierarchy of all rows; by default that of the flow's end.
    """
    known = cast(PlateAffine, layer.end).hierarchy if whole is None else whole
    return Collapser(layer, terms, lambda numbers: Rows.of(known, {terms.plate: numbers}))


@torch.no_grad()
def move(affine: TriangularAffine, found: Outside) -> None:
    """Compose an affine layer, the first of a flow, with the weighted moments of its base points.

    Where a few draws have all the weight, weights are flattened until these are worth a part of all draws.
    """
    base, log_weight = found.base[:, : affine.input_dim].double(), found.log_weight
    power = 1.0
    while effective(power * log_weight) < FLATTENED and power > 1e-3:
        power *= 0.7
    weight = (power * log_weight).softmax(0)
    mean = weight @ base
    away = base - mean
    covariance = (away.T * weight) @ away / (1 - weight.square().sum())
    root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(len(mean)).double())
    matrix = affine.scale_tril().double()
    affine.loc.add_((matrix @ mean).to(affine.loc))
    log_scale, lower = log_scale_and_lower(matrix @ root)
    affine.log_scale.copy_(log_scale)
    affine.lower.copy_(lower)
