r"""Whether many short chains have settled: each has forgotten where it began, and shorter steps change nothing."""

import math
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..diagnostics.mixing import worst_of
from ..diagnostics.moves import Settled
from ..diagnostics.verdict import ENOUGH
from ..diagnostics.worth import effective
from ..engine import OutOfTime
from ..layers.base import Layer
from ..objectives.draws import Draws
from .chains import Hamiltonian
from .refined import MIXED

#: Draws of each chain that are kept, and trajectories between them.
NUM_KEPT, SPACING = 16, 2
#: How far apart chains with steps of a size and of half of it may be: means, in standard deviations; these, as a ratio;
#: and both in standard errors.
APART, NOISE = (0.1, 1.1), 4.5
#: How often chains that have not settled go on, each time twice as far; and how often more, where R-hat is at most so
#: many times as far from 1 as that of chains that agree: each time about halves what is left.
MAX_TRIES, MORE_TRIES, NEARLY = 3, 2, 4.0
#: Coordinates whose R-hat is computed: those of the largest spread between chains.
MOST_LATENTS = 100


class Spread(NamedTuple):
    """Means and standard deviations of each latent, ``(D,)``, with the standard errors of the means and of the others'
    logarithms."""

    mean: Tensor
    sd: Tensor
    mean_se: Tensor
    log_sd_se: Tensor

    @classmethod
    def of_draws(cls, draws: Draws) -> "Spread":
        """Of weighted draws."""
        weights, z = draws.log_weight.double().softmax(0)[:, None], draws.z.double()
        mean = (weights * z).sum(0)
        square = (z - mean).square()
        sd = (weights * square).sum(0).sqrt()
        kurtosis = ((weights * square.square()).sum(0) / sd.pow(4)).clamp(min=3)
        share = 1 / (effective(draws.log_weight) * len(z))
        return cls(mean, sd, sd * share**0.5, ((kurtosis - 1) * share / 4).sqrt())

    @classmethod
    def of_chains(cls, z: Tensor) -> "Spread":
        """Of independent chains, ``(num_chains, num_samples, D)``."""
        z = z.double()
        mean, num = z.mean((0, 1)), len(z)
        square = (z - mean).square()
        sd = square.mean((0, 1)).sqrt()
        return cls(mean, sd, (z.mean(1).var(0) / num).sqrt(), (square.mean(1).var(0) / num).sqrt() / (2 * sd.square()))


class Kept(NamedTuple):
    """Chains with the draws they have left, ``(num_chains, NUM_KEPT, D)``, and their log densities."""

    chains: Hamiltonian
    z: Tensor
    log_p: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, chains: Hamiltonian, layer: Layer, spacing: int, num: int = NUM_KEPT, until: float = math.inf
    ) -> "Kept":
        """What chains leave.

        :param chains: where they are.
        :param layer: in whose coordinates they move.
        :param spacing: trajectories between two draws.
        :param num: draws of each chain.
        :param until: when they have to end, by ``time.process_time``.
        :raises OutOfTime: if they have not ended by then.
        """
        kept, log_p = list[Tensor](), list[Tensor]()
        for _ in range(num):
            if time.process_time() > until:
                raise OutOfTime
            chains = chains.after(spacing)
            z, log_weight = layer(chains.points.x)
            kept.append(z)
            log_p.append(chains.points.log_p - log_weight)
        return cls(chains, torch.stack(kept, 1), torch.stack(log_p, 1))

    def all_moved(self) -> bool:
        """Whether no chain has stayed at one point, as one does where its steps are too long; many others hide it."""
        return bool((self.z != self.z[:, :1]).flatten(1).any(1).all())

    def draws(self) -> Draws:
        """All of them; those that the chains have left at the same time follow each other."""
        log_p = self.log_p.T.flatten().double()
        return Draws(self.z.transpose(0, 1).flatten(0, 1), log_p, log_p)


def settled(first: Kept, layer: Layer, until: float = math.inf) -> tuple[Kept, Settled | None]:
    """What chains that go on have left in the end, and how they have settled; None if they have not.

    :param first: what the chains have left so far.
    :param layer: in whose coordinates they move.
    :param until: when they have to end, by ``time.process_time``.
    """
    spacing, last, before = SPACING, first, Spread.of_chains(first.z)
    chains, most = replace(first.chains, step_size=first.chains.step_size / 2), most_r_hat(*first.z.shape[:2])
    for tries in range(1, MAX_TRIES + MORE_TRIES + 1):
        began = time.process_time()
        try:
            last = Kept.of(chains, layer, spacing, until=until)
        except OutOfTime:
            break
        now, (r_hat, ess) = Spread.of_chains(last.z), _mixing(last.z)
        agree = r_hat < most and furthest(before, now, *APART) is None and last.all_moved()
        if agree and ess >= ENOUGH:
            return last, Settled(len(last.z), r_hat, ess, spacing, chains.step_size, chains.widths)
        ended = time.process_time()
        if ended + 2 * (ended - began) > until or (tries >= MAX_TRIES and r_hat - 1 > NEARLY * (most - 1)):
            break
        before, chains, spacing = now, last.chains, 2 * spacing
    return last, None


def most_r_hat(num_chains: int, num_samples: int) -> float:
    r"""R-hat below which chains agree: 1.01, and what the noise of short chains adds.

    Of chains in halves, :math:`m = 2 \times` ``num_chains`` of :math:`n =` ``num_samples`` :math:`/ 2` draws,
    :math:`\hat R^2 = 1 + (B / W - 1) / n` with :math:`B / W` the spread of their means over what independent draws
    would give, which is 1 with a standard error of :math:`\sqrt{2 / m}`.

    Example::

        >>> round(most_r_hat(4, 1000), 3), round(most_r_hat(256, 16), 3)
        (1.012, 1.028)
    """
    return MIXED + NOISE * num_chains**-0.5 / num_samples


def _mixing(z: Tensor) -> tuple[float, float]:
    """The largest R-hat of a latent, and the least number of independent draws."""
    spread = z.mean(1).var(0) / z.var(1).mean(0)
    worst = spread.nan_to_num(math.inf).argsort(descending=True)[:MOST_LATENTS]
    ratio, worth = worst_of(z[..., worst].unbind(-1))
    return ratio, min(worth, float(z.shape[0] * z.shape[1]))


def furthest(before: Spread, after: Spread, far: float, ratio: float) -> tuple[int, float, float] | None:
    """Of the latent that moved most: its number, its mean's way in standard deviations, and how much wider it is.

    None if that is not too far, or no more than noise.

    :param before: means and standard deviations.
    :param after: those that they have become.
    :param far: which way of a mean is too far.
    :param ratio: which ratio of standard deviations is too much.

    Example::

        >>> one = Spread(torch.zeros(2), torch.ones(2), torch.full((2,), 0.01), torch.full((2,), 0.01))
        >>> furthest(one, one._replace(mean=torch.tensor([0.0, 0.2])), 0.25, 1.25) is None
        True
        >>> furthest(one, one._replace(mean=torch.tensor([0.0, -0.5])), 0.25, 1.25)
        (1, -0.5, 1.0)
    """
    shift, wider = (after.mean - before.mean) / before.sd, after.sd / before.sd
    most = (NOISE * torch.hypot(before.mean_se, after.mean_se) / before.sd).clamp(min=far)
    most_wider = (NOISE * torch.hypot(before.log_sd_se, after.log_sd_se)).clamp(min=math.log(ratio))
    away = torch.maximum(shift.abs() / most, wider.log().abs() / most_wider).nan_to_num(0.0)
    column = int(away.argmax())
    return (column, float(shift[column]), float(wider[column])) if away[column] > 1 else None
