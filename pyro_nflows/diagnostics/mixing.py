r"""Whether Markov chains agree, and what they are worth: rank-normalised R-hat and effective sample sizes [1].

Draws are replaced by the normal quantiles of their ranks, so that neither heavy tails nor the scale of a parameter
matter, and chains are split in halves. R-hat is the larger of that of the draws and that of their distances from the
median: chains may agree in location and not in spread. The effective sample size of the bulk is that of the ranks, that
of the tails the smaller one of the 5% and the 95% quantile. Numbers are those of ``az.rhat`` and ``az.ess``.

**References**

[1] A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Bürkner (2021). Rank-Normalization, Folding, and
Localization: An Improved R-hat for Assessing Convergence of MCMC.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..checks import numbers_in

#: The fewest draws of a chain that say anything.
FEWEST = 4


def r_hat(draws: Tensor) -> float:
    """Rank-normalised R-hat of a parameter; NaN where it is not defined, as for draws that are all the same.

    :param draws: ``(num_chains, num_samples)``; a single chain is compared with itself, in halves.
    :raises ValueError: if they are of another shape.

    Example::

        >>> torch.manual_seed(0).initial_seed()
        0
        >>> draws = torch.randn(4, 1000)
        >>> r_hat(draws) < 1.01, r_hat(draws + torch.arange(4.0)[:, None]) > 1.5
        (True, True)
    """
    draws = _checked("r_hat", draws)
    if draws.shape[1] < FEWEST or not bool(draws.isfinite().all()):
        return math.nan
    halves = _halves(draws.double())
    folded = (halves - halves.flatten().quantile(0.5)).abs()
    return max(_ratio(_normal_scores(halves)), _ratio(_normal_scores(folded)))


def ess_bulk(draws: Tensor) -> float:
    """Independent draws that location is known as well from; see :func:`r_hat` for the parameter.

    Example::

        >>> torch.manual_seed(0).initial_seed()
        0
        >>> 3000 < ess_bulk(torch.randn(4, 1000)) < 5000
        True
    """
    draws = _checked("ess_bulk", draws)
    if draws.shape[1] < FEWEST or not bool(draws.isfinite().all()):
        return math.nan
    return _effective(_normal_scores(_halves(draws.double())))


def ess_tail(draws: Tensor) -> float:
    """Independent draws that the 5% and the 95% quantile are known as well from, the smaller of the two."""
    draws = _checked("ess_tail", draws)
    if draws.shape[1] < FEWEST or not bool(draws.isfinite().all()):
        return math.nan
    draws = draws.double()
    limits = [draws.flatten().quantile(q) for q in (0.05, 0.95)]
    return min(_effective(_halves((draws <= limit).double())) for limit in limits)


def worst_of(parameters: Iterable[Tensor]) -> tuple[float, float]:
    """The largest R-hat of some parameters, and the least effective sample size of bulk or tails.

    Parameters that never vary are left out; where there is no other, or a number is NaN, it is as bad as can be.

    :param parameters: ``(num_chains, num_samples)`` each.

    Example::

        >>> torch.manual_seed(0).initial_seed()
        0
        >>> largest, least = worst_of([torch.randn(4, 1000), torch.ones(4, 1000)])
        >>> largest < 1.01, least > 3000
        (True, True)
        >>> worst_of([torch.ones(4, 1000)])
        (inf, 0.0)
    """
    varied = [draws for draws in parameters if bool((draws != draws[0, 0]).any())]
    ratios = [r_hat(draws) for draws in varied]
    worth = [min(ess_bulk(draws), ess_tail(draws)) for draws in varied]
    if not varied or any(math.isnan(number) for number in [*ratios, *worth]):
        return math.inf, 0.0
    return float(max(ratios)), float(min(worth))


def _checked(who: str, draws: Tensor) -> Tensor:
    draws = numbers_in(who, "draws", draws)
    if draws.dim() != 2:
        raise ValueError(f"{who}: expected draws of shape (num_chains, num_samples), got {tuple(draws.shape)}")
    return draws


def _halves(draws: Tensor) -> Tensor:
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _normal_scores(draws: Tensor) -> Tensor:
    """Normal quantiles of the ranks; draws that are the same share the mean of theirs."""
    _, place, counts = draws.flatten().unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0) - 0.5 * (counts - 1)
    return torch.special.ndtri((ranks[place] - 0.375) / (draws.numel() + 0.25)).view(draws.shape)


def _ratio(draws: Tensor) -> float:
    """Plain R-hat: the spread of all draws over that within chains."""
    num, within = draws.shape[1], draws.var(1).mean()
    return float(((num * draws.mean(1).var() / within + num - 1) / num).sqrt())


def _effective(draws: Tensor) -> float:
    """By Geyer's initial monotone sequence, of autocorrelations over all chains."""
    num_chains, num = draws.shape
    if float(draws.max() - draws.min()) < 1e-15:
        return float(draws.numel())
    covariance = _autocovariance(draws).mean(0)
    within = covariance[0] * num / (num - 1)
    total = covariance[0] + (draws.mean(1).var() if num_chains > 1 else 0.0)
    sums = _decreasing(((total - within + covariance) / total).tolist())
    return draws.numel() / max(sums, 1 / math.log10(draws.numel()))


def _autocovariance(draws: Tensor) -> Tensor:
    num = draws.shape[1]
    spectrum = torch.fft.rfft(draws - draws.mean(1, keepdim=True), n=2 * num)
    return torch.fft.irfft(spectrum.abs().square(), n=2 * num)[:, :num] / num


def _decreasing(rho: list[float]) -> float:
    """The sum of autocorrelations over all lags, positive and negative: that of pairs while they are positive.

    A pair is never more than the one before it.
    """
    rho[0], num, t = 1.0, len(rho), 1
    kept, even, odd = [rho[0], rho[1]] + [0.0] * (num - 2), rho[0], rho[1]
    while t < num - 3 and even + odd > 0:
        even, odd = rho[t + 1], rho[t + 2]
        if even + odd >= 0:
            kept[t + 1], kept[t + 2] = even, odd
        t += 2
    last = t - 2
    if even > 0:
        kept[last + 1] = even
    for t in range(1, last - 1, 2):
        if kept[t + 1] + kept[t + 2] > kept[t - 1] + kept[t]:
            kept[t + 1] = kept[t + 2] = (kept[t - 1] + kept[t]) / 2
    return -1 + 2 * sum(kept[: last + 1]) + sum(kept[last + 1 : last + 2])
