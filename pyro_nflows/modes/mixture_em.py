r"""A Gaussian mixture fitted to draws, with the number of components chosen by the Bayesian information criterion.

Expectation-maximisation from many components, of which those that two do no better than one are merged: as long as it
improves the Bayesian information criterion

.. math:: \log L - \tfrac{1}{2} P K \log N, \qquad P = 1 + D + \tfrac{1}{2} D (D + 1) .

Where there are too few draws for covariances of so many dimensions, components that share one are tried too: these
have :math:`(1 + D) K + \tfrac{1}{2} D (D + 1)` numbers. A mixture model's classes may change places, and five hundred
draws in thirteen dimensions show that as plainly as in two.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from ..numerics import standard_normal_log_prob

#: Components to begin with, and passes.
MAX_COMPONENTS, NUM_PASSES = 30, 50
#: Nearest pairs that are tried before merging ends.
NUM_TRIES = 5
#: Draws for each number of a component to begin with, and so many components that there are always enough.
EACH, PLENTY = 5, 6


class Clusters(NamedTuple):
    """Weights ``(K,)``, means ``(K, D)`` and lower Cholesky factors ``(K, D, D)``."""

    weights: Tensor
    locs: Tensor
    scale_trils: Tensor


def fit_clusters(draws: Tensor, max_components: int = MAX_COMPONENTS) -> Clusters:
    """The mixture.

    :param draws: ``(N, D)``.
    :param max_components: how many to begin with.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> len(fit_clusters(torch.cat([torch.randn(500, 2) - 5, torch.randn(500, 2) + 5])).weights)
        2
    """
    most = min(max_components, len(draws) // (EACH * _num_params(draws)))
    found = _fitted(draws, max(1, most), tied=False)
    few = min(max_components, PLENTY, len(draws) // (EACH * (1 + draws.shape[1])))
    if most < few and draws.shape[1] > 1:
        shared = _fitted(draws, few, tied=True)
        found = shared if criterion(draws, shared) > criterion(draws, found) else found
    return found


def _fitted(draws: Tensor, num_seeds: int, tied: bool) -> Clusters:
    """From so many components, with a covariance each or all with one."""
    spread = draws.var(0) + torch.finfo(draws.dtype).tiny
    locs = _seeds(draws / spread.sqrt(), num_seeds) * spread.sqrt()
    scales = torch.diag((0.1 * spread).sqrt()).repeat(len(locs), 1, 1)
    start = Clusters(torch.full((len(locs),), 1 / len(locs)).to(draws), locs, scales)
    found = _improve(draws, start, tied)
    while (better := _merge(draws, found, tied)) is not None:
        found = better
    return found


def _num_params(draws: Tensor) -> int:
    return 1 + draws.shape[1] + draws.shape[1] * (draws.shape[1] + 1) // 2


def criterion(draws: Tensor, found: Clusters) -> float:
    """The Bayesian information criterion, the larger the better; see the module's page."""
    likelihood = log_densities(draws, found).logsumexp(-1).sum()
    num, dim = len(found.weights), draws.shape[1]
    num_covariances = 1 if torch.equal(found.scale_trils, found.scale_trils[:1].expand_as(found.scale_trils)) else num
    num_free = num * (1 + dim) + num_covariances * (dim * (dim + 1) // 2)
    return float(likelihood) - 0.5 * num_free * math.log(len(draws))


def _improve(draws: Tensor, found: Clusters, tied: bool, num_passes: int = NUM_PASSES) -> Clusters:
    for _ in range(num_passes):
        found = _pass(draws, found, tied)
    return found


def _merge(draws: Tensor, found: Clusters, tied: bool) -> Clusters | None:
    """With two components made one, if that is better."""
    now = criterion(draws, found)
    for i, j in _nearest_pairs(found)[:NUM_TRIES]:
        merged = _improve(draws, _merged(found, i, j), tied, 5)
        if criterion(draws, merged) > now:
            return merged
    return None


def _nearest_pairs(found: Clusters) -> list[tuple[int, int]]:
    covariance = found.scale_trils @ found.scale_trils.mT

    def distance(pair: tuple[int, int]) -> float:
        i, j = pair
        away = found.locs[i] - found.locs[j]
        return float(away @ torch.linalg.solve(covariance[i] + covariance[j], away))

    return sorted(itertools.combinations(range(len(found.weights)), 2), key=distance)


def _merged(found: Clusters, i: int, j: int) -> Clusters:
    """Of the same mean and covariance."""
    pair = torch.tensor([i, j])
    weights, locs, scales = (part[pair] for part in found)
    share = weights / weights.sum()
    loc = share @ locs
    inside = torch.einsum("k,kil,kjl->ij", share, scales, scales)
    between = torch.einsum("k,ki,kj->ij", share, locs - loc, locs - loc)
    rest = [k for k in range(len(found.weights)) if k not in (i, j)]
    scale = torch.linalg.cholesky(inside + between)
    new = (weights.sum(), loc, scale)
    return Clusters(*(torch.cat([part[rest], one[None]]) for part, one in zip(found, new)))


def _seeds(draws: Tensor, num: int) -> Tensor:
    """Draws far from one another: each picked with probability proportional to its squared distance (k-means++)."""
    picked = [draws[torch.randint(len(draws), ())]]
    distance = (draws - picked[0]).square().sum(-1)
    for _ in range(num - 1):
        picked.append(draws[distance.clamp(min=1e-30).multinomial(1)[0]])
        distance = torch.minimum(distance, (draws - picked[-1]).square().sum(-1))
    return torch.stack(picked)


def log_densities(draws: Tensor, found: Clusters) -> Tensor:
    """``(N, K)``, weights included."""
    return _of_each(draws, found).T


def _of_each(draws: Tensor, found: Clusters) -> Tensor:
    """``(K, N)``, weights included."""
    away, scales = (draws - found.locs[:, None]).mT, found.scale_trils
    x = away / scales if draws.shape[1] == 1 else solve_triangular(scales, away, upper=False)
    log_det = scales.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return standard_normal_log_prob(x.mT) + (found.weights.log() - log_det)[:, None]


def _pass(draws: Tensor, found: Clusters, tied: bool) -> Clusters:
    """Expectation and maximisation; components that are left with hardly a draw go."""
    share = _of_each(draws, found)
    share = (share - share.logsumexp(0)).exp()
    share = share[share.sum(1) > draws.shape[1] + 1]
    total = share.sum(1)
    locs = share @ draws / total[:, None]
    away = draws - locs[:, None]
    covariance = (share[:, None] * away.mT) @ away / total[:, None, None]
    if tied:
        covariance = (covariance * (total / total.sum())[:, None, None]).sum(0).expand_as(covariance)
    covariance = covariance + 1e-6 * torch.diag(draws.var(0))
    return Clusters(total / total.sum(), locs, torch.linalg.cholesky(covariance))
