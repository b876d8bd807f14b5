r"""A flow of the hubs is fitted to their log density, at points where that is known but for a constant.

By likelihood, points say of a density only how many of them lie where; their log densities say what it is. So the
flow's own is put where the log ratio of the two varies least over the points [1],

.. math:: \min_\phi \sum_i w_i \, (r_i - \bar r)^2, \qquad r_i = \log p(g_i) - \log q_\phi(g_i), \quad
    \bar r = \sum_i w_i r_i ,

which is zero where they are equal, whatever the points are drawn from. Points in the tails count as well, so that
tails are as heavy as the posterior's. Where there are no points, the flow may have some of its mass: :math:`\bar r`
is then more than the logarithm :math:`\log Z` of the constant, which weighed points give, and the square of what it is
more is added. The flow's own points tell what is left of it, and it is fitted again.

**References**

[1] L. Richter, A. Boustati, N. Nüsken, F. Ruiz, O. Akyildiz (2020). VarGrad: A Low-Variance Gradient Estimator for
Variational Inference.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..diagnostics.worth import effective
from ..layers.base import Layer
from ..modes.lbfgs import climb
from ..numerics import quasi_normal, standard_normal_log_prob
from .hub_marginal import NUM_LAST, Coordinates, Points

#: The share of all points that tells when to stop fitting a flow to them.
HELD_OUT = 0.2
#: An ESS of a flow that needs no other, and how many there are at most.
GOOD, MAX_FLOWS = 0.95, 3
#: Points count by their posterior and, by this share, by this power of it: the posterior of the logarithm of a variance
#: that may be zero has a tail that falls like an exponential function.
SHARE, FLATTER = 0.3, 0.4
#: Points so many nats below the highest say nothing.
FAR = 25.0
#: Iterations before points that were not fitted to are asked, how often they are, and the steps that are remembered.
NUM_ITERATIONS, MAX_LOOKS, MEMORY = 50, 8, 20
#: A variance of the log ratio that is small enough.
CLOSE = 1e-3


@torch.no_grad()
def fit_flows(points: Points, flow: Layer, coordinates: Coordinates, check: Callable[[], None] = lambda: None) -> None:
    """Fit a flow of the hubs to weighed points; and again, to points of its own too, until their weights are even.

    :param points: are added to.
    :param flow: is fitted in place.
    :param coordinates: in which it sees the hubs.
    :param check: called now and then; it may raise an error where there is no time left.
    """
    like = next(flow.parameters())
    for number in range(MAX_FLOWS):
        log_p = points.log_marginal + coordinates.log_scale
        fit_flow(flow, coordinates.seen(points.hubs), log_p, points.log_weight, check)
        if number + 1 < MAX_FLOWS:
            hubs = coordinates.hubs(flow(quasi_normal(NUM_LAST, points.hubs.shape[1], number).to(like))[0])
            log_density = _density(copy.deepcopy(flow), coordinates)
            given = points.add(hubs, log_density)
            if effective(given.log_marginal - log_density(hubs)) >= GOOD:
                return


@torch.no_grad()
def fit_flow(
    flow: Layer, x: Tensor, log_p: Tensor, log_weight: Tensor, check: Callable[[], None] = lambda: None
) -> None:
    """Fit a flow to a log density at points; the best one at points that it was not fitted to is kept.

    :param flow: is fitted in place.
    :param x: the points, ``(N, num_hubs)``.
    :param log_p: the log density, but for a constant.
    :param log_weight: the points' weights, as draws of it.
    :param check: called now and then; it may raise an error where there is no time left.
    """
    log_z = float(log_weight.logsumexp(0)) - math.log(len(log_weight))
    near = log_p > log_p.max() - FAR
    x, log_p, weight = x[near].double(), log_p[near].double(), _flattened(log_p[near], log_weight[near]).to(x.device)
    precise = copy.deepcopy(flow).to(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0), device="cpu")
    held_out = (order < HELD_OUT * len(x)).to(x.device)

    def loss(rows: Tensor) -> Tensor:
        u, log_slope = precise.inverse(x[rows])
        ratio, share = log_p[rows] - (standard_normal_log_prob(u) - log_slope), weight[rows] / weight[rows].sum()
        mean = (share * ratio).sum()
        return (share * (ratio - mean).square()).sum() + (mean - log_z).clamp(min=0.0).square()

    best, kept = float(loss(held_out)), copy.deepcopy(precise.state_dict())
    for _ in range(MAX_LOOKS):
        num = climb(list(precise.parameters()), lambda: loss(~held_out), NUM_ITERATIONS, check, memory=MEMORY)
        value = float(loss(held_out))
        if not value < best:
            break
        best, kept = value, copy.deepcopy(precise.state_dict())
        if num < NUM_ITERATIONS or value < CLOSE:
            break
    flow.load_state_dict(kept)


def _flattened(log_p: Tensor, log_weight: Tensor) -> Tensor:
    """Weights of a mixture of the density and of a flatter one, ``(N,)``."""
    parts = log_weight.double(), (log_weight - (1 - FLATTER) * log_p).double()
    return (1 - SHARE) * parts[0].softmax(0) + SHARE * parts[1].softmax(0)


def _density(flow: Layer, coordinates: Coordinates) -> Callable[[Tensor], Tensor]:
    """The log density of what a flow makes of a standard normal."""
    like = next(flow.parameters())

    def log_density(hubs: Tensor) -> Tensor:
        u, log_slope = flow.inverse(coordinates.seen(hubs).to(like))
        return (standard_normal_log_prob(u) - log_slope).double().cpu() - coordinates.log_scale

    return log_density
