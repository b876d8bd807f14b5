r"""The posterior of the hubs by itself, and points all over it.

It has few dimensions, and its density is known but for a constant (:mod:`~pyro_nflows.modes.conditional_modes`): so it
is found by adaptive importance sampling [1]. Points of a mixture, half of them of a Gaussian and half of a wider one,
are weighed, and the Gaussian is moved to their moments, or to the maximum of a quadratic function that is fitted to the
log density there, until the weights are even enough. Points that were there
before count too, all of them as draws of the mixture of all that they were drawn from. Where the posterior is not
Gaussian, a flow is fitted to its log density there (:mod:`~pyro_nflows.inference.hub_flow`).

**References**

[1] J.-M. Cornuet, J.-M. Marin, A. Mira, C. Robert (2012). Adaptive Multiple Importance Sampling.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..diagnostics.worth import effective
from ..modes.conditional_modes import Conditional, ConditionalModes
from ..numerics import quasi_normal, standard_normal_log_prob
from .moments import tempered

#: Points of a move, how many points all must be worth for each hub, moves at most, and a worth that needs no other.
NUM_POINTS, WORTH, MAX_MOVES, ENOUGH = 192, 8, 20, 64
#: How many times as wide as the Gaussian its mixture is.
WIDTHS = (1.2, 2.4)
#: A hub's variance has this share of the old one at least: a few points may be all of the weight.
NARROWEST = 0.05
#: The share of the largest weight from which on a point counts for a quadratic function, and the longest step to its
#: maximum.
COUNTS, LONGEST = 1e-3, 4.0
#: Points of the Gaussian in the end, and of each flow.
NUM_LAST = 512
#: An ESS of the Gaussian that needs no flow.
GAUSSIAN = 0.9


class Points:
    """Values of the hubs from several densities, weighed as draws of the mixture of these [1].

    A point that a density has made by chance, where it has next to no mass, counts little once another one has more.

    :param modes: of the others.
    """

    def __init__(self, modes: ConditionalModes):
        self.modes = modes
        self.hubs: Tensor = torch.zeros(0)
        self.log_marginal: Tensor = torch.zeros(0)
        self.log_weight: Tensor = torch.zeros(0)
        self._densities: list[tuple[int, Callable[[Tensor], Tensor]]] = []

    def add(self, hubs: Tensor, log_density: Callable[[Tensor], Tensor]) -> Conditional:
        """Further points.

        :param hubs: ``(N, num_hubs)``.
        :param log_density: that they were drawn from, normalised.
        :return: the others there.
        """
        given = self.modes.at(hubs)
        is_first = not self._densities
        self.hubs = hubs if is_first else torch.cat([self.hubs, hubs])
        self.log_marginal = given.log_marginal if is_first else torch.cat([self.log_marginal, given.log_marginal])
        self._densities.append((len(hubs), log_density))
        log_q = [density(self.hubs) + math.log(num / len(self.hubs)) for num, density in self._densities]
        self.log_weight = self.log_marginal - torch.stack(log_q).logsumexp(0)
        return given

    @property
    def worth(self) -> float:
        """How many draws of the posterior they are worth."""
        return effective(self.log_weight) * len(self.log_weight)


class Coordinates(NamedTuple):
    """Those in which a flow sees the hubs: others than theirs by an affine map.

    :param seen: of hubs, ``(N, num_hubs)``.
    :param hubs: the way back.
    :param log_scale: the logarithm of its determinant.
    """

    seen: Callable[[Tensor], Tensor]
    hubs: Callable[[Tensor], Tensor]
    log_scale: float


class Marginal(NamedTuple):
    """A Gaussian of about the posterior of the hubs, and weighed points.

    :param loc: ``(num_hubs,)``.
    :param root: its lower factor.
    :param points: all that were made.
    :param given: the others at the last of them.
    :param log_weight: of these, by themselves.
    """

    loc: Tensor
    root: Tensor
    points: Points
    given: Conditional
    log_weight: Tensor

    @property
    def ess(self) -> float:
        r"""Of the Gaussian: of draws weighed by the posterior.

        With :math:`r = p / q`, up to a constant: :math:`E_q[r]^2 / E_q[r^2] = 1 / (E_p[r] E_p[1 / r])`.
        """
        e = torch.linalg.solve_triangular(self.root, (self.given.hubs - self.loc).T, upper=False).T
        log_ratio = self.given.log_marginal - standard_normal_log_prob(e)
        known = self.log_weight > -math.inf
        log_weight, log_ratio = self.log_weight[known].log_softmax(0), log_ratio[known]
        return float((-(log_weight + log_ratio).logsumexp(0) - (log_weight - log_ratio).logsumexp(0)).exp())


def hub_marginal(modes: ConditionalModes, loc: Tensor, root: Tensor) -> Marginal | None:
    """The posterior of the hubs from a Gaussian that may be far from it; None where it is not found.

    :param modes: of the others.
    :param loc: where to begin, ``(num_hubs,)``.
    :param root: with which lower factor.
    """
    points, dim = Points(modes), len(loc)
    for number in range(MAX_MOVES):
        points.add(*points_of(loc, root, NUM_POINTS, number))
        if not int((points.log_weight > -math.inf).sum()) > WORTH * dim:
            return None
        log_weight = points.log_weight.clamp(min=float(points.log_weight.max()) - 1e4)
        power = tempered(log_weight, WORTH * dim)
        weight = (power * points.log_weight).softmax(0)
        moved = _moments(points.hubs, weight, root)
        if moved is None:
            return None
        loc, root = moved
        if power == 1.0 and points.worth >= ENOUGH:
            hubs, log_density = points_of(loc, root, NUM_LAST, MAX_MOVES)
            given = points.add(hubs, log_density)
            loc, root = _moments(points.hubs, points.log_weight.softmax(0), root) or (loc, root)
            return Marginal(loc, root, points, given, given.log_marginal - log_density(hubs))
        loc, root = _peak(points, weight, loc, root) or (loc, root)
    return None


def points_of(loc: Tensor, root: Tensor, num: int, seed: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Even points of the mixture, an even number of them, and its log density."""
    e = quasi_normal(num, len(loc), seed).to(loc)
    e = e * torch.tensor(WIDTHS, dtype=e.dtype, device=e.device).repeat_interleave(num // 2)[:, None]

    def log_density(x: Tensor) -> Tensor:
        e = torch.linalg.solve_triangular(root, (x - loc).T, upper=False).T
        parts = [standard_normal_log_prob(e / width) - len(loc) * math.log(width) for width in WIDTHS]
        return torch.stack(parts).logsumexp(0) - math.log(2) - root.diagonal().log().sum()

    return loc + e @ root.T, log_density


def _moments(hubs: Tensor, weight: Tensor, before: Tensor) -> tuple[Tensor, Tensor] | None:
    """The mean and the lower factor of the covariance of weighed points."""
    loc = weight @ hubs
    centered = hubs - loc
    covariance = centered.T @ (weight[:, None] * centered)
    floor = NARROWEST * (before @ before.T).diagonal()
    lacking = (floor - covariance.diagonal()).clamp(min=0.0)
    root, failed = torch.linalg.cholesky_ex(covariance + lacking.diag())
    return None if failed else (loc, root)


def _peak(points: Points, weight: Tensor, loc: Tensor, root: Tensor) -> tuple[Tensor, Tensor] | None:
    """Where a quadratic function fitted to the log density has its maximum, and the lower factor of its covariance.

    None where there are too few points for one, or it has none.

    :param points: which it is fitted to.
    :param weight: how much each of them matters.
    :param loc: of a Gaussian near there, from which it is at most :data:`LONGEST` widths away.
    :param root: its lower factor.
    """
    dim, which = len(loc), (weight > COUNTS * weight.max()) & (points.log_marginal > -math.inf)
    x = torch.linalg.solve_triangular(root, (points.hubs[which] - loc).T, upper=False).T
    i, j = torch.tril_indices(dim, dim, device="cpu")
    terms = torch.cat([x.new_ones(len(x), 1), x, x[:, i] * x[:, j]], 1)
    if len(terms) < 2 * terms.shape[1]:
        return None
    size = weight[which, None].sqrt()
    found = torch.linalg.lstsq(size * terms, size * points.log_marginal[which, None]).solution[:, 0]
    precision = x.new_zeros(dim, dim)
    precision[i, j] = -found[1 + dim :]
    factor, failed = torch.linalg.cholesky_ex(precision + precision.T)
    if failed or not bool(factor.isfinite().all()):
        return None
    step = torch.cholesky_solve(found[1 : 1 + dim, None], factor)[:, 0]
    step = step * (LONGEST / step.norm()).clamp(max=1.0)
    there, failed = torch.linalg.cholesky_ex(root @ torch.cholesky_inverse(factor) @ root.T)
    return None if failed else (loc + root @ step, there)
