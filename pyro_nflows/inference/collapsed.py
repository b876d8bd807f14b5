r"""Evidence about a fit of many rows: weights of what is outside of the plate, and of each row by itself.

The weights of whole draws fall off exponentially with the number of rows, however good each row's fit is. So rows are
integrated out, by a random rule over the base points :math:`x` of each [1]:

.. math:: w(g) = \frac{p(g)}{q(g)} \prod_i \sum_k c_{ik} \frac{p(z_{ik}, y_i | g)}{q(z_{ik} | g)} .

All draws of :math:`g` have the same points for their rows, so that most of the noise in the sums is the same for all.
What is not, and adds up over the rows to a slope or a curvature in :math:`g`, would move the weighted draws, all
together and unseen. The rules (:mod:`~pyro_nflows.inference.row_rules`) have no noise from a row's location and scale,
and several of them say how much is left. What the rows themselves are worth is seen one by one, from draws of their
own. Where a row's weights are uneven, each of its draws is one of several candidates, chosen by these weights [2].

**References**

[1] L. Tran, M. Scharth, D. Gunawan, R. Kohn, S. Brown, G. Hawkins (2021). Robustly Estimating the Marginal
Likelihood for Cognitive Models via Importance Sampling.

[2] D. Rubin (1987). The Calculation of Posterior Distributions by Data Augmentation: Comment: A Noniterative
Sampling/Importance Resampling Alternative.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..diagnostics.worth import effective, tail_index
from ..engine import Engine
from ..engine.row_ratios import Ratios, RowRatios
from ..flows.whitened import Whitened
from ..layers import PlateAffine, TriangularAffine
from ..model.hierarchy import Hierarchy
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..numerics import quasi_normal
from ..system.randomness import forked
from ..triangles import log_scale_and_lower
from .encoded import EncodedRows
from .row_rules import RowRules
from .row_team import RowTeam

#: Rules for each row, at first and at most.
NUM_RULES, MAX_RULES = 3, 24
#: Nats of noise in the weights, as a share of their standard deviation where that is above one, before more are taken.
UNEVEN = 0.05
#: A row's ESS below which its draws are chosen among candidates; the most of these, and the variance that they leave.
EVEN, MAX_CANDIDATES, LEFT = 0.95, 32, 0.05
#: Rows of a minibatch whose k-hats are found: those of the lowest ESS.
NUM_WORST = 3
#: An ESS up to which weights are flattened before moments are taken.
FLATTENED = 0.2
#: Numbers of a minibatch's ratios at once.
AT_ONCE = 2**22


class Outside(NamedTuple):
    """Draws of what is outside of the plate: base points ``(S, width)``, and collapsed log-weights ``(S,)``.

    ``uneven`` is the noise that the rows' integrals leave in the weights, in nats.
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
    :param engine: asked for, or None for the fastest.
    :param team: who goes through the minibatches.
    """

    layer: Whitened | EncodedRows
    terms: RowTerms
    rows: Callable[[Tensor], Rows]
    engine: Engine | None = None
    team: RowTeam = field(default_factory=RowTeam)

    @cached_property
    def ratios(self) -> RowRatios:
        """What runs the layer and the model on a minibatch."""
        return RowRatios(self.layer, self.terms, self.rows, self.engine)

    @torch.no_grad()
    def weigh(self, num_samples: int, seed: int = 0, until: float = math.inf) -> Outside:
        """Draws of what is outside of the plate, with their collapsed weights.

        The rows have three rules each, and then twice as many, as long as their noise differs between draws of what is
        outside by more than 0.05 nats. The logarithm of a mean over rules is too low, by half of its variance: that is
        told from single rules, and taken off.

        :param until: when no more rules are begun, by ``time.perf_counter``.
        """
        base, found = self.base(num_samples, seed), list[Tensor]()
        total, num = torch.zeros(num_samples, dtype=torch.float64), NUM_RULES
        while True:
            began = time.perf_counter()
            single, mean = self._integrated(base, num)
            total += num * (mean + (mean - single.mean(0)) / (num - 1))
            found += single
            num = len(found)
            uneven = _uneven(torch.stack(found))
            is_late = 3 * time.perf_counter() - 2 * began > until  # the next ones take twice as long
            if not uneven > UNEVEN * max(1.0, float((total / num).std())) or num >= MAX_RULES or is_late:
                return Outside(base, total / num, uneven)

    @cached_property
    def rules(self) -> RowRules:
        """By which the rows of a minibatch are integrated out."""
        return RowRules(self.terms.hierarchy, self.terms.plate)

    def expect(self, num: int) -> None:
        """Be ready for so many draws times rows, here and where others have a part in them."""
        self.team.tell(self.layer, num)
        self.ratios.expect(num)

    def _integrated(self, base: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Collapsed log-weights by each of so many rules for every row, ``(num, S)``, and by all of them."""
        self.expect(len(base) * (1 + 2 * num * self.rules.num_directions) * self.terms.num_rows)
        found = self.team.over("collapser", Collapser.integrals, self, self._seeded(base, num))
        single, mean = (torch.zeros(*shape, len(base), dtype=torch.float64) for shape in ((num,), ()))
        for part in found:
            single, mean = single + part[0], mean + part[1]
        return single, mean

    @torch.no_grad()
    def integrals(self, base: Tensor, num: int, numbers: Tensor, counts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """What the rows of one minibatch add to both; the first one has what is outside of the plate, too.

        :param numbers: of the rows.
        :param counts: how often each is to be counted.
        :param seed: of their rules.
        """
        single, mean = (torch.zeros(*shape, len(base), dtype=torch.float64) for shape in ((num,), ()))
        with forked(seed):
            points, stretch = self.rules.draw(num)
        size = max(1, AT_ONCE // (len(points) * self.terms.hierarchy.dim))
        for at in torch.arange(len(base)).split(size):
            given = base[at].repeat(len(points), 1), points.to(base).repeat_interleave(len(at), 0)
            found = self.ratios(numbers, *given)
            alone, both = self.rules.integrals(found.rows.unflatten(0, (len(points), -1)), stretch)
            single[:, at], mean[at] = alone @ counts, both @ counts
            if numbers[0] == 0:
                single[:, at] += found.outside[: len(at)]
                mean[at] += found.outside[: len(at)]
        return single, mean

    @torch.no_grad()
    def draws(self, base: Tensor, seed: int = 0, most: int = MAX_CANDIDATES) -> tuple[Tensor, Tensor, dict[int, float]]:
        """Whole draws ``(S, D)`` from base points; of each row of the plate, the ESS; and the worst rows' k-hats.

        :param most: candidates among which draws of uneven rows are chosen. Where that is fewer than they ask for, the
            k-hat of the worst of them is infinite, since its draws are not to be relied on.
        """
        z = base.new_zeros(len(base), self.layer.input_dim)
        ess, worst = torch.ones(self.terms.num_rows, dtype=torch.float64), dict[int, float]()
        self.expect(len(base) * self.terms.num_rows)
        with forked(seed + 1):
            given = [(*piece, most) for piece in self._seeded(base)]
        for (_, numbers, *_), found in zip(given, self.team.over("collapser", Collapser.drawn, self, given)):
            z[:, self.rows(numbers).columns], ess[numbers], tails = found
            worst.update(tails)
        return z, ess, worst

    @torch.no_grad()
    def drawn(
        self, base: Tensor, numbers: Tensor, counts: Tensor, seed: int, most: int
    ) -> tuple[Tensor, Tensor, dict[int, float]]:
        """Draws of what is outside of the plate and of the rows of one minibatch, these rows' ESS and worst k-hats.

        :param numbers: of the rows.
        :param counts: how often each is counted elsewhere.
        :param seed: of the draws.
        :param most: see :meth:`draws`.
        """
        generator = torch.Generator().manual_seed(seed)
        found = self._candidate(numbers, base, generator)
        weight = (found.rows - found.rows.amax(0)).double().exp()
        ess = (weight.sum(0).square() / (len(weight) * weight.square().sum(0))).nan_to_num(0.0)
        worst = ess.argsort()[:NUM_WORST].tolist()
        tails = {int(numbers[row]): tail_index(found.rows[:, row].double()) for row in worst}
        if most < min(MAX_CANDIDATES, num_candidates(ess)):
            tails[int(numbers[ess.argmin()])] = math.inf
        return self._chosen(numbers, base, generator, found, ess, most), ess, tails

    def _candidate(self, numbers: Tensor, base: Tensor, generator: torch.Generator) -> Ratios:
        """Draws of some rows, one for each base point."""
        width = self.terms.hierarchy.dim - len(self.terms.hierarchy.top)
        return self.ratios(numbers, base, torch.randn(len(base), width, generator=generator, device="cpu").to(base))

    def _chosen(
        self, numbers: Tensor, base: Tensor, generator: torch.Generator, first: Ratios, ess: Tensor, most: int
    ) -> Tensor:
        """Draws whose uneven rows are chosen among candidates, by their weights given what is outside of the plate."""
        uneven, owner, z, total = ess < EVEN, self.owner, first.z, first.rows.double()
        for _ in range(min(MAX_CANDIDATES, most, num_candidates(ess)) - 1):
            other = self._candidate(numbers, base, generator)
            total = torch.logaddexp(total, other.rows.double())
            chance = torch.rand(total.shape, generator=generator, device="cpu").to(total)
            taken = (chance.log() < other.rows - total) & uneven
            z = torch.where((owner >= 0) & taken[:, owner], other.z, z)
        return z

    @cached_property
    def owner(self) -> Tensor:
        """For each coordinate of a minibatch, the row that it is of; -1 for what is outside of the plate."""
        hierarchy, plate = self.terms.hierarchy, self.terms.plate
        owner = torch.full((hierarchy.dim,), -1)
        for block in hierarchy.blocks:
            owner[block.columns] = hierarchy.index_in(block, plate)[:, None].expand_as(block.columns)
        return owner

    def base(self, num_samples: int, seed: int) -> Tensor:
        """Base points of what is outside, with the noise of its flow."""
        width = len(self.terms.hierarchy.top) + self.layer.noise_dim
        like = next(self.layer.parameters())
        return quasi_normal(num_samples, width, seed).to(like) if width else like.new_zeros(num_samples, 0)

    def minibatches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows, and how often each is to be counted; every row is counted once."""
        terms = self.terms
        for start in range(0, terms.num_rows, terms.size):
            place = torch.arange(start, start + terms.size)
            yield place % terms.num_rows, (place < terms.num_rows).double()

    def _seeded(self, *given: Any) -> Iterator[tuple[Any, ...]]:
        """What is given, with each minibatch and a seed of its own."""
        batches = list(self.minibatches())
        for batch, seed in zip(batches, torch.randint(2**62, (len(batches),)).tolist()):
            yield *given, *batch, seed


def num_candidates(ess: Tensor) -> int:
    """Among how many candidates draws of rows are to be chosen, by the ESS of each row; 0 where all are even.

    Example::

        >>> num_candidates(torch.tensor([0.99, 0.96])), num_candidates(torch.tensor([0.99, 0.5]))
        (0, 20)
    """
    uneven = ess[ess < EVEN]
    return math.ceil(float((1 / uneven.clamp(min=1e-3) - 1).max()) / LEFT) if len(uneven) else 0


def _uneven(found: Tensor) -> float:
    """The noise of a mean over rules, ``(rules, S)``, that is not the same for all draws: in nats."""
    away = found - found.mean(0)
    return float(away.var(1).sum() / (len(found) * (len(found) - 1))) ** 0.5


def collapser_of(
    layer: Whitened | EncodedRows,
    terms: RowTerms,
    whole: Hierarchy | None = None,
    engine: Engine | None = None,
    team: RowTeam | None = None,
) -> Collapser:
    """What weighs draws of a layer over all rows.

    :param layer: the flow; of all rows, or of those that the model is at.
    :param terms: the model on chosen rows.
    :param whole: the hierarchy of all rows; by default that of the flow's end.
    :param engine: asked for, or None for the fastest.
    :param team: who goes through the minibatches; by default this process alone.
    """
    known = cast(PlateAffine, layer.end).hierarchy if whole is None else whole
    return Collapser(layer, terms, lambda numbers: Rows.of(known, {terms.plate: numbers}), engine, team or RowTeam())


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
