r"""Can these draws be trusted? Everything that can be read from their log-weights.

A draw :math:`z_s \sim q` of a guide carries the log-weight :math:`\log w_s = \log p(x, z_s) - \log q(z_s)`. If
:math:`q` is the posterior, every weight is the evidence :math:`p(x)`; how far they are from equal says how far
:math:`q` is from the posterior *where q has mass*. What :math:`q` never visits leaves no trace in them.

==================== ============================================== =================================
:func:`elbo`         :math:`\frac1S \sum_s \log w_s`                a lower bound of the log evidence
:func:`log_evidence` :math:`\log \frac1S \sum_s w_s`                the same, tighter (IWAE)
:func:`ess`          :math:`(\sum_s w_s)^2 / (S \sum_s w_s^2)`      share of the draws that count
:func:`pareto_k`     shape :math:`\hat k` of the weights' tail      trust below :func:`k_threshold`
==================== ============================================== =================================

Log-weights lie along the last dimension; leading dimensions are separate problems, such as several starts. Whatever
the dtype of the input, the work is done in float64, since weights are exponentials of large numbers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import is_number
from ..system.memory import enough_for
from .tails import Tail, check_log_weight, fit_tail, gpd_fit, smooth, tail_length

__all__ = [
    "Estimate",
    "Tail",
    "elbo",
    "ess",
    "fit_tail",
    "gpd_fit",
    "k_threshold",
    "log_evidence",
    "min_num_samples",
    "pareto_k",
    "psis",
    "psis_resample",
    "tail_length",
]


class Estimate(NamedTuple):
    """A Monte-Carlo estimate and its standard error."""

    value: Tensor
    se: Tensor


def ess(log_weight: Tensor) -> Tensor:
    r"""Effective sample size of importance weights, as a fraction of their number.

    .. math:: \left(\sum_s w_s\right)^2 / \left(S \sum_s w_s^2\right) \in [1/S, 1]

    :param log_weight: log-weights, shape ``(..., num_samples)``.
    :return: shape ``(...)``; 1 if all weights are equal.

    Example::

        >>> ess(torch.tensor([0.0, 0.0, 0.0, -math.inf]))
        tensor(0.7500, dtype=torch.float64)
    """
    log_weight = check_log_weight(log_weight)
    total = 2 * log_weight.logsumexp(-1) - (2 * log_weight).logsumexp(-1)
    return (total - math.log(log_weight.shape[-1])).exp().clamp(max=1)


def elbo(log_weight: Tensor) -> Estimate:
    r"""Mean log-weight: the evidence lower bound, with its standard error.

    :param log_weight: log-weights, shape ``(..., num_samples)``. One ``-inf`` makes the bound ``-inf``.
    :raises ValueError: if there are fewer than two samples.

    Example::

        >>> elbo(torch.tensor([-1.0, -3.0]))
        Estimate(value=tensor(-2.0000, dtype=torch.float64), se=tensor(1.0000, dtype=torch.float64))
    """
    log_weight = check_log_weight(log_weight, at_least=2)
    value = log_weight.mean(-1)
    se = log_weight.std(-1) / math.sqrt(log_weight.shape[-1])
    return Estimate(value, torch.where(value.isinf(), math.inf, se))


def log_evidence(log_weight: Tensor) -> Estimate:
    r"""Log of the mean weight: the importance-weighted bound (IWAE) over all samples, with its standard error.

    The standard error is the delta method's, :math:`\mathrm{sd}(w) / (\sqrt S\, \bar w)`, which a tail heavier than
    :math:`\hat k = 0.5` makes too small: read it beside :func:`pareto_k`.

    :param log_weight: log-weights, shape ``(..., num_samples)``.
    :raises ValueError: if there are fewer than two samples.

    Example::

        >>> log_evidence(torch.tensor([1.0, 3.0]).log()).value.exp()
        tensor(2.0000, dtype=torch.float64)
    """
    log_weight = check_log_weight(log_weight, at_least=2)
    num_samples = log_weight.shape[-1]
    value = log_weight.logsumexp(-1) - math.log(num_samples)
    relative = (log_weight - value.unsqueeze(-1)).exp()
    return Estimate(value, relative.std(-1) / math.sqrt(num_samples))


def pareto_k(log_weight: Tensor, r_eff: float = 1.0, *, num_tail: int | None = None) -> Tensor:
    r"""The shape :math:`\hat k` of the tail of the weights, see :func:`psis`: 1/k of their moments are finite.

    :param log_weight: log-weights, shape ``(..., num_samples)``; other arguments are those of :func:`psis`.
    :return: shape ``(...)``.

    Example::

        >>> p = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        >>> pareto_k(-0.6 * p.log()).round(decimals=1)  # P(w > t) = t^(-1/.6)
        tensor(0.6000, dtype=torch.float64)
    """
    return psis(log_weight, r_eff, num_tail=num_tail)[1]


def psis(log_weight: Tensor, r_eff: float = 1.0, *, num_tail: int | None = None) -> tuple[Tensor, Tensor]:
    r"""Pareto-smoothed importance sampling [1].

    The largest weights are replaced by the expected order statistics of the generalized Pareto distribution fitted to
    them [2], truncated at the largest weight; then the weights are normalised. If the tail has fewer than five distinct
    members, so if all weights are equal, nothing is smoothed and :math:`\hat k = \infty`, as in ArviZ.

    Equal to ``arviz.psislw`` of ArviZ 0.2x. ArviZ 1.x rounds the length of the tail down, so there pass
    ``num_tail=math.floor(3 * (num_samples / r_eff) ** 0.5)``; both agree where that is whole, as for 10,000 draws.

    :param log_weight: log-weights, shape ``(..., num_samples)``; ``-inf`` is a weight of zero.
    :param r_eff: relative efficiency of the draws, 1 if they are independent.
    :param num_tail: length of the tail, by default :func:`tail_length`.
    :return: smoothed log-weights that add up to one, same shape, and :math:`\hat k`, shape ``(...)``.
    :raises ValueError: if a log-weight is NaN or ``+inf``, or all of a row are ``-inf``.

    Example::

        >>> smoothed, k_hat = psis(torch.randn(4, 1000))
        >>> smoothed.exp().sum(-1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000], dtype=torch.float64)

    **References**

    [1] A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry (2024). Pareto Smoothed Importance Sampling.
    [2] J. Zhang, M. Stephens (2009). A New and Efficient Estimation Method for the Generalized Pareto Distribution.
    """
    log_weight = check_log_weight(log_weight)
    rows = [smooth(row, r_eff, num_tail) for row in log_weight.reshape(-1, log_weight.shape[-1])]
    smoothed, k_hat = (torch.stack(part) for part in zip(*rows))
    return smoothed.reshape(log_weight.shape), k_hat.reshape(log_weight.shape[:-1])


def psis_resample(
    log_weight: Tensor,
    num_samples: int,
    generator: torch.Generator | None = None,
    *,
    r_eff: float = 1.0,
) -> Tensor:
    r"""Choose draws in proportion to their smoothed weights.

    Systematic sampling over the draws in random order: draw :math:`s` is expected :math:`N \tilde w_s` times and
    chosen that often rounded down or up. So means are unbiased, with the least variance in the counts; and a draw is
    repeated only where its weight demands it, without the bias of sampling without replacement, which under-rates the
    large weights. The result is in random order, so any part of it is a fair sample too.

    :param log_weight: log-weights, shape ``(S,)``.
    :param num_samples: how many indices to return, more or fewer than :math:`S`.
    :param generator: source of randomness, on the device of ``log_weight``; by default torch's own.
    :param r_eff: relative efficiency of the draws, 1 if they are independent.
    :return: indices into the draws, shape ``(num_samples,)``.
    :raises ValueError: if ``log_weight`` is not one-dimensional or ``num_samples < 1``.

    Example::

        >>> psis_resample(torch.tensor([0.0, -math.inf, 0.0]), 4).bincount()
        tensor([2, 0, 2])
    """
    log_weight = _check_resample(log_weight, num_samples)
    with enough_for("psis_resample", "indices", (num_samples,), 2, torch.zeros((), dtype=torch.int64)):
        return _resampled(psis(log_weight, r_eff)[0].exp(), num_samples, generator)


def _resampled(weights: Tensor, num_samples: int, generator: torch.Generator | None) -> Tensor:
    order = torch.randperm(len(weights), generator=generator, device=weights.device)
    cdf = weights[order].cumsum(0)
    start = torch.rand(1, generator=generator, device=weights.device, dtype=cdf.dtype)
    # 1 - u and the division keep every position in (0, 1], so none falls on a draw of weight zero.
    positions = (torch.arange(num_samples, device=weights.device) + 1 - start) / num_samples
    chosen = order[torch.searchsorted(cdf / cdf[-1], positions)]
    return chosen[torch.randperm(num_samples, generator=generator, device=weights.device)]


def k_threshold(num_samples: int) -> float:
    r"""The largest :math:`\hat k` to trust, :math:`\min(1 - 1 / \log_{10} S, 0.7)`.

    :param num_samples: how many draws :math:`S` there are.
    :raises ValueError: if there are fewer than two.

    Example::

        >>> k_threshold(100), k_threshold(10_000)
        (0.5, 0.7)
    """
    if not is_number(num_samples) or not num_samples >= 2:
        raise ValueError(f"num_samples: got {num_samples!r}, expected a number of at least 2. Draw more samples.")
    return min(1 - 1 / math.log10(num_samples), 0.7)


def min_num_samples(k: float) -> float:
    r"""How many samples a tail of shape ``k`` needs, :math:`10^{1 / (1 - \max(0, k))}`; infinitely many from 1 on.

    :param k: the shape, of :func:`pareto_k`.
    :raises ValueError: if it is no number.

    Example::

        >>> round(min_num_samples(0.5)), min_num_samples(1.2)
        (100, inf)
    """
    if not is_number(k):
        raise ValueError(f"k: got {k!r}, expected a number. Take that of pareto_k(log_weight).")
    return math.inf if k >= 1 else 10 ** (1 / (1 - max(float(k), 0.0)))


def _check_resample(log_weight: Tensor, num_samples: int) -> Tensor:
    log_weight = check_log_weight(log_weight)
    if log_weight.dim() != 1:
        raise ValueError(
            f"log_weight: got shape {tuple(log_weight.shape)}, expected (S,). "
            "Flatten chains first: log_weight.reshape(-1)."
        )
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples: got {num_samples!r}, expected a whole number of at least 1. Ask for one.")
    return log_weight
