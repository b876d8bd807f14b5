"""Integrals of positive functions, with an error that can be trusted."""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ..layers.base import Layer
from .law import LawError, Make, perturbed

_NUM_DRAWS = 5000


class TooFewDrawsError(Exception):
    """Hardly any draws reach where the integrand is, so that no error could be told."""


def integral(log_integrand: Callable[[Tensor], Tensor], points: Tensor, num_rounds: int = 5) -> Tensor:
    """Terms whose mean is the integral of a positive function.

    Importance sampling from Student's t, fitted to ``points`` and then, again and again, to its own weighted draws.
    A quarter of the draws stay as wide as ``points``: they tell if part of the integral is far from the rest.

    :param log_integrand: the function's logarithm, ``(N, D) -> (N,)``.
    :param points: where to look first, ``(M, D)``.
    :raises TooFewDrawsError: if a few draws make up the whole result.
    """
    wide = proposal = _student(points, torch.full_like(points[:, 0], 1 / len(points)))
    for _ in range(num_rounds):
        points = torch.cat([wide.sample((_NUM_DRAWS // 4,)), proposal.sample((_NUM_DRAWS * 3 // 4,))])
        log_proposals = [math.log(0.25) + wide.log_prob(points), math.log(0.75) + proposal.log_prob(points)]
        log_weight = log_integrand(points) - torch.logaddexp(*log_proposals)
        if not _ess(log_weight) > 2:
            raise TooFewDrawsError
        power = next((power for power in (1, 1 / 2, 1 / 4) if _ess(power * log_weight) > 0.05 * len(points)), 1 / 8)
        proposal = _student(points, (power * log_weight).softmax(0))
    if not _ess(log_weight) > 0.2 * len(points):
        raise TooFewDrawsError
    return log_weight.exp()


def _ess(log_weight: Tensor) -> Tensor:
    return 1 / log_weight.softmax(0).square().sum()


def _student(points: Tensor, weights: Tensor) -> TorchDistribution:
    """A Student's t, somewhat wider than the weighted points."""
    loc = weights @ points
    offset = points - loc
    covariance = 1.5 * offset.T @ (weights[:, None] * offset)
    covariance.diagonal().add_(1e-6)
    return dist.MultivariateStudentT(5.0, loc, torch.linalg.cholesky(covariance))


def far_from_start(make: Make, check: Callable[[Layer], None]) -> None:
    """Run a check on a layer as far from its start as integrals can still be told."""
    for size in (1.5, 0.7, 0.35, 0.15):
        try:
            check(perturbed(make, size))
        except TooFewDrawsError:
            continue
        return
    raise LawError("too few draws count to tell; check the layer in fewer dimensions")
