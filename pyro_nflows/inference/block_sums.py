"""What the conditionals of a block of rows say of its fit, draw after draw of all else."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..diagnostics.findings import Block as BlockFit
from ..diagnostics.worth import tail_index

#: Rows whose k-hats are found: those of the lowest ESS; of weights of so many candidates at most.
NUM_WORST, MOST_WEIGHTS = 20, 2**26
#: Standard errors by which what rows share is taken for less than it seems: there are several directions.
NUM_ERRORS = 3.0


class Part(NamedTuple):
    """Rows of a block that are independent given all else: what is outside of plates is the first, and has one row.

    :param number: of the block.
    :param plates: of it.
    :param places: of the rows' coordinates in the base, ``(rows, d)``.
    :param rows: which rows of the block, where these are not all.
    :param colour: theirs.
    """

    number: int
    plates: tuple[str, ...]
    places: Tensor
    rows: Tensor | None = None
    colour: int = 0

    @property
    def which(self) -> Tensor | slice:
        """To take these rows of all."""
        return slice(None) if self.rows is None else self.rows


class BlockSums:
    """What is known of a block's conditionals, draw after draw.

    :param part: the block.
    :param before: the guide's conditional variances in it.
    :param shared: directions of what all rows share.
    :param along: the guide's conditional variances along these.
    """

    def __init__(self, part: Part, before: Tensor, shared: Tensor, along: Tensor):
        self.part, self.before, self.shared, self.along = part, before.double(), shared.double(), along.double()
        self.num, self.ess = 0, torch.zeros(len(before)).double()
        self.first, self.second, self.both, self.variance = (torch.zeros(before.shape).double() for _ in range(4))
        self.gains, self.log_weights, self.sums = list[Tensor](), list[Tensor](), list[Tensor]()

    def add(self, candidates: Sequence[Tensor], log_weights: Sequence[Tensor], middle: Tensor) -> None:
        """Candidates ``(K, rows, d)`` each around the guide's mean, with log-weights ``(K, rows)``."""
        x, log_weight = torch.stack(list(candidates)).double(), _with_some_weight(torch.stack(list(log_weights)))
        weight, middle, half = log_weight.softmax(0)[..., None], middle.double(), len(x) // 2
        first, second = (
            (_with_some_weight(log_weight[at]).softmax(0)[..., None] * x[at]).sum(0)
            for at in (slice(half), slice(half, None))
        )
        mean, square = (weight * x).sum(0), weight.square().sum(0)
        spread = (weight * (x - mean).square()).sum(0) / (1 - square).clamp(min=1e-2)
        self.num += x.shape[1]
        self.first += (first - middle).sum(0)
        self.second += (second - middle).sum(0)
        self.both += ((first - middle) * (second - middle)).sum(0)
        self.variance += spread.sum(0)
        self.ess += ((1 / square[..., 0] - 1) / (len(x) - 1)).sum(0)
        self.gains.append((first * second - middle.square()).mean((-2, -1)))
        one, other, own = (torch.einsum("krd,rn->kdn", part, self.shared) for part in (first, second, middle))
        self.sums.append(one * other - own.square())
        if sum(part.numel() for part in self.log_weights) < MOST_WEIGHTS:
            self.log_weights.append((log_weight - log_weight.logsumexp(0)).flatten(0, 1).float())

    def fit(self, is_undetermined: bool) -> BlockFit:
        """How the block is fitted.

        :param is_undetermined: whether something that its rows share has no width.
        """
        num, gains = self.num, torch.cat(self.gains)
        first, second, variance = self.first / num, self.second / num, self.variance / num
        shift = first * second - (self.both - num * first * second) / (num * (num - 1))
        ess, log_weight = self.ess / num, torch.cat(self.log_weights)
        worst = ess.argsort()[:NUM_WORST].tolist()
        tails = {row: tail_index(log_weight[:, row].double()) for row in worst}
        row = max(worst, key=lambda row: (tails[row] > 0.7 and float(ess[row]) < 0.5, -float(ess[row])))
        return BlockFit(
            self.part.plates,
            len(first),
            float(self.before.mean()),
            float(variance.mean()),
            float(gains.mean()),
            float(gains.std() / num**0.5),
            max(0.0, float(shift.mean())) ** 0.5,
            math.inf if is_undetermined else self._shared_ratio(variance),
            row,
            float(ess[row]),
            tails[row],
        )

    def _shared_ratio(self, variance: Tensor) -> float:
        """Of the worst direction that all rows share: standard deviations over the guide's, at least."""
        if not self.shared.shape[1]:
            return 1.0
        gains, scale = torch.cat(self.sums), torch.einsum("rd,rn->dn", variance, self.shared.square())
        least = gains.mean(0) - NUM_ERRORS * gains.std(0) / self.num**0.5
        return float((scale / (self.along - least).clamp(min=1e-3)).max()) ** 0.5


def _with_some_weight(log_weight: Tensor) -> Tensor:
    """Where no candidate is possible, all weight is on the first, as where one is much better than the others."""
    found = torch.where(log_weight.isnan(), -math.inf, log_weight)
    none = found.amax(0, keepdim=True) == -math.inf
    return torch.cat([torch.where(none, 0.0, found[:1]), found[1:]])


def joined(parts: Sequence[Part], fits: Sequence[BlockFit], shared_ratio: float) -> BlockFit:
    """How a block is fitted of whose rows those of several colours were drawn again one after the other.

    :param shared_ratio: of what rows of all colours share.
    """
    if len(fits) == 1:
        return fits[0]
    num = sum(fit.num_rows for fit in fits)

    def mean(values: Sequence[float]) -> float:
        return sum(fit.num_rows * value for fit, value in zip(fits, values)) / num

    worst = max(range(len(fits)), key=lambda n: (fits[n].pareto_k > 0.7 and fits[n].ess < 0.5, -fits[n].ess))
    rows = parts[worst].rows
    return BlockFit(
        fits[0].plates,
        num,
        mean([fit.before for fit in fits]),
        mean([fit.variance for fit in fits]),
        mean([fit.between for fit in fits]),
        mean([fit.noise**2 for fit in fits]) ** 0.5,
        mean([fit.shift**2 for fit in fits]) ** 0.5,
        max(shared_ratio, *(fit.shared_ratio for fit in fits)),
        fits[worst].row if rows is None else int(rows[fits[worst].row]),
        fits[worst].ess,
        fits[worst].pareto_k,
    )
