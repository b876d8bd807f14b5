r"""Regions that are missed only as far as numbers can tell: so far out that a latent swallows all it is added to.

In double precision :math:`10^{16} + 5` is :math:`10^{16}`. A negative binomial of such a concentration has a density of
exactly one at any data, in single and in double precision alike, and smoothly so: neither another precision nor a small
move tells that it is wrong. But no posterior has a mode a million million times as far from zero as its draws are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..guides import AutoFlow
from ..modes.missed import Missed

#: How many times as large as usual a latent may be; a few thousand times more, and nothing is left of other numbers.
HUGE = 1e12


@torch.no_grad()
def not_swallowed(guide: AutoFlow, draws: Tensor, regions: Sequence[Missed]) -> list[Missed]:
    """The regions in which each latent is a number beside which others are not lost.

    :param guide: knows the sites.
    :param draws: of the fit, flat and unconstrained, which say how large each latent usually is; at least one.
    :param regions: that were found.
    """
    if not regions:
        return []
    usual = guide.constrain(draws)
    there = guide.constrain(torch.stack([region.gaussian.loc for region in regions]))
    lost = torch.zeros(len(regions), dtype=torch.bool, device=draws.device)
    for name, value in there.items():
        most = HUGE * usual[name][..., None].flatten(1).abs().double().median(0).values.clamp(min=1.0)
        lost |= (value[..., None].flatten(1).abs().double() > most).any(1)
    return [region for region, is_lost in zip(regions, lost.tolist()) if not is_lost]
