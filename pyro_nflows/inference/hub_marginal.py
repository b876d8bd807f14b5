r"""The posterior of the hubs by itself, and points all over it.

It has few dimensions, and its density is known but for a constant (:mod:`~pyro_nflows.modes.conditional_modes`): so it
is found by adaptive importance sampling [1]. Points of a mixture, half of them of a Gaussian and half of a wider one,
are weighed, and the Gaussian is moved to their moments, until the weights are even enough. Where the posterior is not
Gaussian, a flow is fitted to weighed points by their likelihood.

**References**

[1] J.-M. Cornuet, J.-M. Marin, A. Mira, C. Robert (2012). Adaptive Multiple Importance Sampling.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..diagnostics.worth import effective
from ..layers.base import Layer
from ..modes.conditional_modes import Conditional, ConditionalModes
from ..numerics import quasi_normal, standard_normal_log_prob
from .moments import tempered

#: Points of a move, how many points they must be worth for each hub, moves at most, and an ESS that needs no other.
NUM_POINTS, WORTH, MAX_MOVES, ENOUGH = 192, 8, 20, 0.2
#: How many times as wide as the Gaussian its mixture is.
WIDTHS = (1.2, 2.4)
#: A hub's variance has this share of the old one at least: a few points may be all of the weight.
NARROWEST = 0.05
#: Points that a flow is fitted to, and the share of them that tells when to stop.
NUM_FITTED, HELD_OUT = 1024, 0.25
#: An ESS of the Gaussian that needs no flow.
GAUSSIAN = 0.9
#: Steps at most, and those without a gain after which there is no other; how often that is looked at.
NUM_STEPS, PATIENCE, LOOKS, STEP_SIZE = 500, 120, 20, 5e-3


class Marginal(NamedTuple):
    """A Gaussian of about the posterior of the hubs, and weighed points.

    :param loc: ``(num_hubs,)``.
    :param root: its lower factor.
    :param given: the others at points.
    :param log_weight: of these points, ``(N,)``.
    """

    loc: Tensor
    root: Tensor
    given: Conditional
    log_weight: Tensor

    @property
    def ess(self) -> float:
        """Of the Gaussian: of draws weighed by the posterior."""
        e = torch.linalg.solve_triangular(self.root, (self.given.hubs - self.loc).T, upper=False).T
        log_q = standard_normal_log_prob(e) - self.root.diagonal().log().sum()
        weight = self.log_weight.softmax(0)
        log_ratio = self.given.log_marginal - log_q
        known = log_ratio > -torch.inf
        top = float(log_ratio[known].max())
        ratio = torch.where(known, (log_ratio - top).exp(), 0.0)
        # With r = p / q up to a constant: E_q[r]^2 / E_q[r^2] = 1 / (E_p[r] E_p[1 / r]) for a normalised p.
        inverse = torch.where(known & (weight > 0), 1 / ratio.clamp(min=1e-30), 0.0)
        return float(1 / ((weight * ratio).sum() * (weight * inverse).sum()))


def hub_marginal(modes: ConditionalModes, loc: Tensor, root: Tensor) -> Marginal | None:
    """The posterior of the hubs from a Gaussian that may be far from it; None where it is not found.

    :param modes: of the others.
    :param loc: where to begin, ``(num_hubs,)``.
    :param root: with which lower factor.
    """
    dim = len(loc)
    for number in range(MAX_MOVES):
        given, log_weight = _weighed(modes, loc, root, NUM_POINTS, number)
        if not int((log_weight > -math.inf).sum()) > WORTH * dim:
            return None
        power = tempered(log_weight.clamp(min=float(log_weight.max()) - 1e4), WORTH * dim)
        is_found = power == 1.0 and effective(log_weight) >= ENOUGH
        weight = (power * log_weight).softmax(0)
        moved = _moments(given.hubs, weight, root)
        if moved is None:
            return None
        loc, root = moved
        if is_found:
            given, log_weight = _weighed(modes, loc, root, NUM_FITTED, MAX_MOVES)
            loc, root = _moments(given.hubs, log_weight.softmax(0), root) or (loc, root)
            return Marginal(loc, root, given, log_weight)
    return None


def points_of(loc: Tensor, root: Tensor, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Even points of the mixture, an even number of them, and its log density there."""
    e = quasi_normal(num, len(loc), seed).to(loc)
    e = e * torch.tensor(WIDTHS, dtype=e.dtype, device=e.device).repeat_interleave(num // 2)[:, None]
    parts = [standard_normal_log_prob(e / width) - len(loc) * math.log(width) for width in WIDTHS]
    log_q = torch.stack(parts).logsumexp(0) - math.log(2) - root.diagonal().log().sum()
    return loc + e @ root.T, log_q


def _weighed(modes: ConditionalModes, loc: Tensor, root: Tensor, num: int, seed: int) -> tuple[Conditional, Tensor]:
    points, log_q = points_of(loc, root, num, seed)
    given = modes.at(points)
    return given, given.log_marginal - log_q


def _moments(hubs: Tensor, weight: Tensor, before: Tensor) -> tuple[Tensor, Tensor] | None:
    """The mean and the lower factor of the covariance of weighed points."""
    loc = weight @ hubs
    centered = hubs - loc
    covariance = centered.T @ (weight[:, None] * centered)
    floor = NARROWEST * (before @ before.T).diagonal()
    lacking = (floor - covariance.diagonal()).clamp(min=0.0)
    root, failed = torch.linalg.cholesky_ex(covariance + lacking.diag())
    return None if failed else (loc, root)


def fit_flow(flow: Layer, x: Tensor, log_weight: Tensor, check: Callable[[], None] = lambda: None) -> None:
    """Fit a flow to weighed points by their likelihood; the best one for points that it was not fitted to is kept.

    :param flow: is fitted in place.
    :param x: the points, ``(N, num_hubs)``.
    :param log_weight: their weights.
    :param check: called now and then; it may raise an error where there is no time left.
    """
    like = next(flow.parameters())
    x, weight = x.to(like), log_weight.softmax(0).to(like)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0), device="cpu")
    held_out = (order < HELD_OUT * len(x)).to(x.device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=STEP_SIZE)

    def loss(rows: Tensor) -> Tensor:
        u, log_slope = flow.inverse(x[rows])
        log_q = standard_normal_log_prob(u) - log_slope
        return -(weight[rows] * log_q).sum() / weight[rows].sum()

    with torch.no_grad():
        best, at, kept = float(loss(held_out)), 0, copy.deepcopy(flow.state_dict())
    for number in range(1, NUM_STEPS + 1):
        with torch.enable_grad():
            optimizer.zero_grad()
            now = loss(~held_out)
            now.backward()
        optimizer.step()
        if number % LOOKS:
            continue
        check()
        with torch.no_grad():
            value = float(loss(held_out))
        if value < best:
            best, at, kept = value, number, copy.deepcopy(flow.state_dict())
        elif number - at > PATIENCE:
            break
    flow.zero_grad()
    flow.load_state_dict(kept)
