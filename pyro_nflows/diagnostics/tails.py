r"""The tail of importance weights: its generalized Pareto fit, and the smoothing that follows from it.

See :mod:`pyro_nflows.diagnostics.weights` for what to make of it. Work is done in float64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_sizes, is_number, numbers_in

__all__ = ["Tail", "check_log_weight", "fit_tail", "gpd_fit", "smooth", "tail_length"]


class Tail(NamedTuple):
    """The largest weights of a sample, and the generalized Pareto distribution fitted to their exceedances.

    Weights are relative to the largest, which is 1.
    """

    members: Tensor  # their positions in the sample, in order of weight
    exceedances: Tensor
    cutoff: Tensor
    k_hat: Tensor
    sigma: Tensor


def tail_length(num_samples: int, r_eff: float = 1.0) -> int:
    r"""How many of the largest weights make the tail, :math:`\lceil \min(S / 5, 3 \sqrt{S / r_\mathrm{eff}}) \rceil`.

    :param num_samples: how many draws :math:`S` there are.
    :param r_eff: relative efficiency of the draws, 1 if they are independent.
    :raises ValueError: if one is not positive.

    Example::

        >>> tail_length(100), tail_length(10_000)
        (20, 300)
    """
    check_sizes("tail_length", num_samples=num_samples)
    if not is_number(r_eff) or not r_eff > 0:
        raise ValueError(f"r_eff: got {r_eff!r}, expected a number of more than 0. Independent draws have 1.")
    return math.ceil(min(num_samples / 5, 3 * (num_samples / r_eff) ** 0.5))


def gpd_fit(exceedances: Tensor) -> tuple[Tensor, Tensor]:
    r"""Fit a generalized Pareto distribution, :math:`P(X > x) = (1 + k x / \sigma)^{-1/k}`.

    The profile likelihood is averaged over a grid (Zhang and Stephens 2009), and :math:`k` is shrunk to 0.5 with the
    weight of ten observations, as in ArviZ.

    :param exceedances: positive values, shape ``(num_tail,)``, in any order.
    :return: :math:`k` and :math:`\sigma`, float64 scalars.

    Example::

        >>> u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        >>> k, sigma = gpd_fit(2 * ((1 - u) ** -0.3 - 1) / 0.3)
        >>> round(k.item(), 1), round(sigma.item(), 1)
        (0.3, 2.0)
    """
    x = numbers_in("gpd_fit", "exceedances", exceedances).detach().double().sort().values
    if x.dim() != 1 or not len(x) or not x[0] > 0:
        raise ValueError(
            f"exceedances: got shape {tuple(x.shape)}, smallest {x.flatten()[:1].tolist()}, expected positive "
            "numbers in one dimension. Subtract the cutoff and keep what is above it."
        )
    num, num_grid = len(x), 30 + int(len(x) ** 0.5)
    grid = torch.arange(1, num_grid + 1, dtype=x.dtype, device=x.device) - 0.5
    theta = (1 - (num_grid / grid).sqrt()) / (3 * x[int(num / 4 + 0.5) - 1]) + 1 / x[-1]
    k = torch.log1p(-theta.unsqueeze(-1) * x).mean(-1)
    weights = (num * ((-theta / k).log() - k - 1)).softmax(0)
    weights = torch.where(weights >= 10 * torch.finfo(x.dtype).eps, weights, 0)
    theta_hat = (weights * theta).sum() / weights.sum()
    k_hat = torch.log1p(-theta_hat * x).mean()
    return (num * k_hat + 10 * 0.5) / (num + 10), -k_hat / theta_hat


def fit_tail(log_weight: Tensor, r_eff: float = 1.0, *, num_tail: int | None = None) -> Tail:
    r"""The tail of the weights and the Pareto distribution fitted to it: what PSIS smooths with, and the plot shows.

    :param log_weight: log-weights, shape ``(num_samples,)``.
    :param r_eff: relative efficiency of the draws, 1 if they are independent.
    :param num_tail: length of the tail, by default :func:`tail_length`.

    Example::

        >>> fit_tail(torch.randn(1000)).members.shape
        torch.Size([95])
    """
    x = check_log_weight(log_weight)
    if x.dim() != 1:
        raise ValueError(f"fit_tail: expected log-weights of shape (num_samples,), got {tuple(x.shape)}")
    x = x - x.max()
    if num_tail is not None and (isinstance(num_tail, bool) or not isinstance(num_tail, int)):
        raise ValueError(f"num_tail: got {num_tail!r}, expected a whole number. Leave it out for the usual length.")
    num_tail = min(tail_length(len(x), r_eff) if num_tail is None else max(num_tail, 0), len(x) - 1)
    cutoff = x.sort().values[-num_tail - 1].clamp(min=math.log(torch.finfo(x.dtype).tiny))
    # Strictly above: ties with the cutoff would be exceedances of zero.
    members = (x > cutoff).nonzero().squeeze(-1)
    members = members[x[members].argsort(stable=True)]
    exceedances = x[members].exp() - cutoff.exp()
    k_hat, sigma = gpd_fit(exceedances) if len(members) > 4 else x.new_tensor([math.inf, math.nan])
    return Tail(members, exceedances, cutoff.exp(), k_hat, sigma)


def smooth(x: Tensor, r_eff: float, num_tail: int | None) -> tuple[Tensor, Tensor]:
    """One row of log-weights with its tail smoothed, normalised, and its shape."""
    tail = fit_tail(x, r_eff, num_tail=num_tail)
    x = x - x.max()
    if tail.k_hat.isfinite():
        x[tail.members] = (tail.cutoff + _expected_order_statistics(tail)).log().clamp(max=0)
    return x.log_softmax(0), tail.k_hat


def _expected_order_statistics(tail: Tail) -> Tensor:
    num = len(tail.members)
    p = (torch.arange(num, dtype=tail.sigma.dtype, device=tail.sigma.device) + 0.5) / num
    exponential = -torch.log1p(-p)
    if tail.k_hat.abs() < torch.finfo(p.dtype).eps:
        return tail.sigma * exponential
    return tail.sigma * torch.expm1(tail.k_hat * exponential) / tail.k_hat


def check_log_weight(log_weight: Tensor, at_least: int = 1) -> Tensor:
    """Detached and in float64, or an error that says what is wrong with them."""
    log_weight = numbers_in("diagnostics", "log_weight", log_weight).detach().double()
    num_samples = log_weight.shape[-1] if log_weight.dim() else 0
    if num_samples < at_least:
        raise ValueError(
            f"log_weight: got shape {tuple(log_weight.shape)}, expected (..., num_samples) with "
            f"num_samples at least {at_least}. Draw more samples."
        )
    if not (log_weight < math.inf).all():
        nans, infs = int(log_weight.isnan().sum()), int((log_weight == math.inf).sum())
        raise ValueError(
            f"log_weight: got {nans} NaN and {infs} +inf among {log_weight.numel()}, expected numbers or "
            "-inf. Look for a log density that is undefined at these draws; do not drop them unseen."
        )
    if log_weight.isneginf().all(-1).any():
        raise ValueError(
            "log_weight: got only -inf, expected at least one draw where the model has density. "
            "Check the data against the support of the likelihood, or start elsewhere."
        )
    return log_weight
