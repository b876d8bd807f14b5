r"""What to do about several modes: a wide start that holds them all, and a flow whose base has them already.

Tempered draws (:mod:`~pyro_nflows.modes.tempering`) are summed up by a Gaussian mixture, either of whole points or a
product of one-dimensional mixtures, whichever has the better Bayesian information criterion; it becomes the base of
the guide's flow, which then has no mode left to find, only shapes and shares to get right.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from ..flows.whitened import Whitened
from ..layers import Mixture
from ..triangles import log_scale_and_lower
from .gaussians import Gaussian
from .mixture_em import Clusters, criterion, fit_clusters

#: How much wider than the modes that were found the tempered start is.
INFLATION = 1.5
#: Most components of a one-dimensional mixture.
MAX_SINGLE = 6
#: The weight, in logs, of a component that only fills a block up to the number of another.
ABSENT = -20.0


def hull(draws: Tensor, modes: Sequence[Gaussian]) -> Gaussian:
    """A wide Gaussian around draws and modes, each counted once.

    :param draws: ``(N, D)``.
    :param modes: that are elsewhere.
    """
    locs = torch.stack([draws.mean(0), *(mode.loc for mode in modes)])
    inside = [torch.cov(draws.T).reshape(draws.shape[1], -1), *(mode.scale_tril @ mode.scale_tril.T for mode in modes)]
    away = locs - locs.mean(0)
    covariance = torch.stack(inside).mean(0) + away.T @ away / len(locs)
    return Gaussian(locs.mean(0), INFLATION * torch.linalg.cholesky(covariance))


class Modes(NamedTuple):
    """Mixtures ``(blocks, K, ...)`` in coordinates ``x`` of which ``frame`` makes the draws."""

    blocks: Clusters
    frame: Gaussian

    @property
    def num_components(self) -> int:
        """Number of components in each block."""
        return self.blocks.weights.shape[1]

    @property
    def block_dim(self) -> int:
        """Coordinates of each block."""
        return self.blocks.locs.shape[2]

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of components and of coordinates in each block, as the mixture layer takes them."""
        return self.num_components, self.block_dim

    @torch.no_grad()
    def place(self, layer: Whitened) -> None:
        """Put the base of such a flow at the mixtures, and its end at the frame."""
        if self.num_components > 1:
            place_mixture(cast(Mixture, layer.base), self.blocks)
        self.frame.place(layer)


def find_modes(draws: Tensor, is_full_rank: bool = True) -> Modes:
    """The mixture with the best Bayesian information criterion.

    :param draws: ``(N, D)``, equally weighted.
    :param is_full_rank: whether the frame may be.
    """
    (jointly, joint), (singly, single) = _joint(draws, is_full_rank), _single(draws)
    return joint if jointly >= singly else single


def _joint(draws: Tensor, is_full_rank: bool) -> tuple[float, Modes]:
    loc, covariance = draws.mean(0), torch.cov(draws.T).reshape(draws.shape[1], -1)
    if not is_full_rank:
        covariance = torch.diag(covariance.diagonal())
    scale = torch.linalg.cholesky(covariance + 1e-9 * torch.diag(covariance.diagonal()))
    x = solve_triangular(scale, (draws - loc).T, upper=False).T
    found = fit_clusters(x)
    value = criterion(x, found) - len(draws) * float(scale.diagonal().log().sum())
    return value, Modes(Clusters(*(part[None] for part in found)), Gaussian(loc, scale))


def _single(draws: Tensor) -> tuple[float, Modes]:
    loc, sd = draws.mean(0), draws.std(0)
    columns = ((draws - loc) / sd).split(1, 1)
    found = [fit_clusters(x, MAX_SINGLE) for x in columns]
    value = sum(criterion(x, part) for x, part in zip(columns, found)) - len(draws) * float(sd.log().sum())
    most = max(len(part.weights) for part in found)
    filled = [_filled(part, most) for part in found]
    return value, Modes(Clusters(*(torch.stack(parts) for parts in zip(*filled))), Gaussian(loc, torch.diag(sd)))


def _filled(found: Clusters, num: int) -> Clusters:
    """With components of next to no weight, up to a number."""
    more = num - len(found.weights)
    ones = torch.ones(more, *found.scale_trils.shape[1:]).to(found.scale_trils)
    return Clusters(
        torch.cat([found.weights, torch.full((more,), ABSENT).to(found.weights).exp()]),
        torch.cat([found.locs, torch.zeros(more, found.locs.shape[1]).to(found.locs)]),
        torch.cat([found.scale_trils, ones]),
    )


@torch.no_grad()
def place_mixture(layer: Mixture, blocks: Clusters) -> None:
    """Put a mixture layer at given mixtures."""
    log_scale, lower = log_scale_and_lower(blocks.scale_trils)
    layer.logits.copy_(blocks.weights.log())
    layer.loc.copy_(blocks.locs)
    layer.log_scale.copy_(log_scale)
    layer.lower.copy_(lower)
