r"""Are a posterior's probabilities right on average? Tests of where the truth lies among draws.

Draw :math:`\theta_0 \sim p(\theta)` and :math:`y \sim p(y \mid \theta_0)`. Then :math:`\theta_0` is itself a draw of
the posterior given :math:`y`, so among :math:`L` others its rank is uniform on :math:`0, \dots, L` [1], in each
parameter and in any other function of :math:`\theta` and :math:`y` [2]. An approximation that leaves this law is wrong:

=============================== =========================================================================
ranks pile up at                the draws are
=============================== =========================================================================
both ends                       too narrow
the middle                      too wide
the upper end                   too low
the lower end                   too high
=============================== =========================================================================

==================== ==============================================================================================
:func:`uniformity`   p-value of uniform ranks: simulation-based calibration (SBC) [1], by the largest departure of their
                     ECDF [3]
:func:`symmetry`     p-value of :math:`P_q(\theta < \theta_0)` symmetric about one half, so of a center without bias:
                     variational SBC (VSBC) [4]
==================== ==============================================================================================

**References**

[1] S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman (2018). Validating Bayesian Inference Algorithms with
Simulation-Based Calibration.

[2] M. Modrák, A. H. Moon, S. Kim, P. Bürkner, N. Huurre, K. Faltejsková, A. Gelman, A. Vehtari (2023).
Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test Quantities Shapes Sensitivity.

[3] T. Säilynoja, P. Bürkner, A. Vehtari (2022). Graphical Test for Discrete Uniformity and Its Applications in
Goodness-of-Fit Evaluation and Multiple Sample Comparison.

[4] Y. Yao, A. Vehtari, D. Simpson, A. Gelman (2018). Yes, but Did It Work?: Evaluating Variational Inference.
"""

import functools
import math

import torch
from torch import Tensor

from ..checks import check_share, check_sizes, is_number, numbers_in
from ..system.memory import enough_for

__all__ = ["count_band", "ecdf_band", "rank", "symmetry", "uniformity"]

#: Below this, the exact p-value would be lost in rounding, and its upper bound stands for it.
TINY = 1e-9


def rank(draws: Tensor, truth: Tensor) -> Tensor:
    """How many draws are below the truth; of those that equal it, a random number are.

    :param draws: shape ``(num_samples, ...)``.
    :param truth: shape ``(...)``.
    :return: integers from 0 to ``num_samples``, shape ``(...)``.

    Example::

        >>> rank(torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]), torch.tensor([2.5, 9.0]))
        tensor([2, 3])
    """
    draws, truth = numbers_in("rank", "draws", draws), numbers_in("rank", "truth", truth)
    if draws.shape[1:] != truth.shape or not draws.dim():
        raise ValueError(
            f"rank: expected draws of shape (num_samples, ...) and a truth of shape (...), got {tuple(draws.shape)} "
            f"and {tuple(truth.shape)}"
        )
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    return below + (torch.rand(equal.shape, device=equal.device) * (equal + 1)).long()


def uniformity(ranks: Tensor, num_samples: int) -> float:
    r"""The p-value of ranks that are uniform on :math:`0, \dots, L`.

    Of :math:`N` uniform ranks, :math:`c_j \sim \mathrm{Binomial}(N, j / (L + 1))` are below :math:`j`. The statistic is
    the least of their tail probabilities,

    .. math:: \gamma = \min_j\, 2 \min\{ P(C_j \le c_j),\, P(C_j \ge c_j) \} ,

    and its distribution is computed exactly, from one :math:`j` to the next. So the p-value is below 5% just where the
    ECDF leaves the 95% band of :func:`ecdf_band`.

    :param ranks: integers, shape ``(num_simulations,)``.
    :param num_samples: :math:`L`.
    :raises ValueError: if a rank is not one of :math:`0, \dots, L`.

    Example::

        >>> uniformity(torch.arange(100), 99), uniformity(torch.arange(100) // 2, 99) < 1e-6
        (1.0, True)
    """
    ranks = check_ranks(ranks, num_samples)
    below = ranks.bincount(minlength=num_samples + 1).cumsum(0)[:-1].cpu()
    tails = _tails(len(ranks), num_samples)
    gamma = float(tails.gather(1, below[:, None]).min().clamp(min=torch.finfo(tails.dtype).tiny))
    return _p_value(len(ranks), num_samples, gamma)


def symmetry(probabilities: Tensor) -> float:
    r"""The p-value of numbers between 0 and 1 that are spread symmetrically about one half.

    The statistic is the Kolmogorov-Smirnov distance between :math:`p_i` and :math:`1 - p_i`, as in [4]. The two
    samples are mirror images, not independent, and the usual p-value would be too small (0.05 where 0.11 is right).
    Under symmetry, the distance is the greatest height of a random walk [5], whose exact distribution is used here.

    :param probabilities: shape ``(num_simulations,)``.
    :raises ValueError: if one is not between 0 and 1.

    Example::

        >>> p = (torch.arange(100) + 0.5) / 100
        >>> symmetry(p), symmetry(p.sqrt()) < 1e-4
        (1.0, True)

    **References**

    [5] C. Butler (1969). A Test for Symmetry Using the Sample Distribution Function.
    """
    probabilities = numbers_in("symmetry", "probabilities", probabilities)
    if probabilities.dim() != 1 or not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError(
            f"probabilities: got shape {tuple(probabilities.shape)}, expected (num_simulations,), all from 0 to 1. "
            "Give one number a simulation: the share of draws below the truth."
        )
    side = ((probabilities.double().cpu() - 0.5) * 2**40).round()  # what is equally far is so after rounding
    side = side[side != 0]
    far, order = side.abs().sort(descending=True)
    walk = side[order].sign().cumsum(0).abs()
    last = torch.ones(len(far), dtype=torch.bool, device="cpu")  # of those equally far
    last[:-1] = far[:-1] != far[1:]
    height = int(walk[last].max()) if len(walk) else 0
    p = 1 - _stays(len(walk), height) if height else 1.0
    return p if p > TINY else 4 * math.exp(-(height**2) / (2 * len(walk)))


@functools.lru_cache
def ecdf_band(num_simulations: int, num_samples: int, prob: float = 0.95) -> tuple[Tensor, Tensor]:
    r"""Where the ECDF of uniform ranks lies, everywhere at once, with a given probability [3].

    :param num_simulations: :math:`N`.
    :param num_samples: :math:`L`.
    :param prob: the probability.
    :return: the least and the greatest share of ranks below :math:`j = 1, \dots, L`, each of shape ``(num_samples,)``.
    :raises ValueError: if ``prob`` is not between 0 and 1.

    Example::

        >>> lower, upper = ecdf_band(100, 9)
        >>> lower[4], upper[4]
        (tensor(0.3700, dtype=torch.float64), tensor(0.6300, dtype=torch.float64))
    """
    check_sizes("ecdf_band", num_simulations=num_simulations, num_samples=num_samples)
    if not is_number(prob) or not 0 < prob < 1:
        raise ValueError(f"prob: got {prob!r}, expected a number between 0 and 1, such as 0.95.")
    tails = _tails(num_simulations, num_samples)
    levels = tails.unique()
    low, high = 0, len(levels) - 1  # the largest level that is left with probability at most 1 - prob
    while low < high:
        middle = (low + high + 1) // 2
        inside = _p_value(num_simulations, num_samples, float(levels[middle])) <= 1 - prob
        low, high = (middle, high) if inside else (low, middle - 1)
    inside = tails > levels[low] * (1 + TINY)
    counts = torch.arange(num_simulations + 1, dtype=torch.float64, device="cpu").expand_as(inside) / num_simulations
    return counts.where(inside, 2.0).amin(1), counts.where(inside, -1.0).amax(1)


def count_band(num_simulations: int, share: float, prob: float = 0.95) -> tuple[int, int]:
    """Where one bar of a histogram of ranks lies: quantiles of a binomial.

    :param num_simulations: ranks.
    :param share: of them that is expected in the bar.
    :param prob: the probability.

    Example::

        >>> count_band(100, 0.5)
        (40, 60)
    """
    check_sizes("count_band", num_simulations=num_simulations)
    check_share("count_band", share=share, prob=prob)
    c = torch.arange(num_simulations + 1, dtype=torch.float64, device="cpu")
    log_pmf = _log_choose(num_simulations, c) + c * math.log(share) + (num_simulations - c) * math.log1p(-share)
    levels = torch.tensor([(1 - prob) / 2, (1 + prob) / 2], dtype=torch.float64, device="cpu")
    low, high = torch.searchsorted(log_pmf.exp().cumsum(0), levels).clamp(max=num_simulations).tolist()
    return low, high


def check_ranks(ranks: Tensor, num_samples: int) -> Tensor:
    """Ranks as they should be.

    :raises ValueError: if they are not.
    """
    check_sizes("ranks", num_samples=num_samples)
    ranks = numbers_in("ranks", "ranks", ranks)
    if ranks.dim() != 1 or ranks.is_floating_point() or not bool(((ranks >= 0) & (ranks <= num_samples)).all()):
        raise ValueError(
            f"ranks: got {ranks.dtype} of shape {tuple(ranks.shape)}, expected integers from 0 to num_samples = "
            f"{num_samples} of shape (num_simulations,). Pass the number of draws below each truth."
        )
    return ranks


@functools.lru_cache(maxsize=8)
def _tails(num: int, num_samples: int) -> Tensor:
    """Twice the smaller tail probability of ``c`` ranks below ``j``, in row ``j - 1`` and column ``c``."""
    with enough_for("ranks", "tail probabilities", (num_samples, num + 1), 3, torch.zeros((), dtype=torch.float64)):
        return _tails_of(num, num_samples)


def _tails_of(num: int, num_samples: int) -> Tensor:
    share = torch.arange(1, num_samples + 1, dtype=torch.float64, device="cpu")[:, None] / (num_samples + 1)
    c = torch.arange(num + 1, dtype=torch.float64, device="cpu")
    pmf = (_log_choose(num, c) + c * share.log() + (num - c) * (1 - share).log()).exp()
    at_most, at_least = pmf.cumsum(1), pmf.flip(1).cumsum(1).flip(1)
    return (2 * torch.minimum(at_most, at_least)).clamp(max=1)


def _log_choose(num: int, c: Tensor) -> Tensor:
    return math.lgamma(num + 1) - (c + 1).lgamma() - (num - c + 1).lgamma()


@functools.lru_cache(maxsize=1024)
def _p_value(num: int, num_samples: int, gamma: float) -> float:
    """Probability that some tail probability is at most ``gamma``."""
    inside = _tails(num, num_samples) > gamma * (1 + TINY)
    p = 1 - _inside(num, num_samples, inside) if bool(inside.any(1).all()) else 1.0
    return p if p > TINY else min(1.0, num_samples * gamma)


def _inside(num: int, num_samples: int, inside: Tensor) -> float:
    """Probability that the counts stay inside, from each ``j`` to the next."""
    log_factorial = torch.arange(1, num + 2, dtype=torch.float64, device="cpu").lgamma()
    counts, mass = torch.zeros(1, dtype=torch.long, device="cpu"), torch.ones(1, dtype=torch.float64, device="cpu")
    for j, row in enumerate(inside):
        share = 1 / (num_samples + 1 - j)  # of the ranks from j on, those that are j
        after = row.nonzero()[:, 0]
        step = after - counts[:, None]
        left, rest = log_factorial[num - counts][:, None], num - after
        log_pmf = left - log_factorial[step.clamp(min=0)] - log_factorial[rest]
        log_pmf = log_pmf + step.double() * math.log(share) + rest.double() * math.log1p(-share)
        counts, mass = after, mass @ log_pmf.exp().where(step >= 0, 0.0)
    return float(mass.sum())


def _stays(num_steps: int, height: int) -> float:
    """Probability that a random walk of so many steps stays below a height, up and down.

    The eigenvectors of a walk that ends there are sines.
    """
    k = torch.arange(1, 2 * height, 2, dtype=torch.float64, device="cpu")
    angle = math.pi * k / (2 * height)
    terms = (2 - k % 4) * angle.cos() ** num_steps / (angle / 2).tan()
    return float(terms.sum() / height)
