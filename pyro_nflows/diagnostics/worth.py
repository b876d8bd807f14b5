r"""What log-weights say of draws, as a verdict uses it: how many they are worth, and whether a few carry the rest."""

import math

import torch
from torch import Tensor

from . import weights as diagnostics

#: From this ESS on draws may be used as they are; below it all hangs on the weights.
HALF = 0.5
#: From this ESS on a heavy tail spoils far quantiles only.
FINE = 0.9
#: From this ESS on the weights are so nearly equal that the shape of their tail matters little.
NEARLY_EQUAL = 0.95
#: Latents whose moments are taken together, which bounds the memory.
AT_ONCE = 256
#: Where no weight exceeds their mean by more than this share, no probability is off by more, as far as was drawn.
EVEN = 0.1


def k_limit(num_samples: int, ess: float) -> float:
    r"""What k-hat has to be below, where nothing else speaks for the draws.

    Below an ESS of a half, draws are as good as their weights, and k-hat has to be below its threshold by its own
    standard error, :math:`(1 + k) / \sqrt M` for a tail of :math:`M` weights: the k of a normal guide that is half as
    wide as the posterior is 3/4, and its k-hat is often below 0.7.

    Example::

        >>> round(k_limit(22_500, 0.9), 2), round(k_limit(22_500, 0.1), 2), round(k_limit(4000, 0.1), 2)
        (0.7, 0.62, 0.58)
    """
    threshold = diagnostics.k_threshold(num_samples)
    return threshold if ess >= HALF else threshold - (1 + threshold) / diagnostics.tail_length(num_samples) ** 0.5


def is_heavy(log_weight: Tensor, ess: float) -> bool:
    r"""Whether the tail of the weights is too heavy, which matters little where they are nearly equal.

    K-hat is the shape of the tail whatever its size: of weights between 0.99 and 1.01 it may be 3. But where
    :math:`p / q \le 1 + \varepsilon`, no event has probabilities under :math:`p` and :math:`q` that differ by more than
    :math:`\varepsilon`: so a tenth above their mean is little.

    Example::

        >>> is_heavy(torch.linspace(-0.01, 0.01, 1000).pow(3) * 1000, ess=1.0)
        False
    """
    return (
        not has_light_tail(log_weight)
        and not (ess >= NEARLY_EQUAL and tail_index(log_weight) < 1)
        and not is_even(log_weight)
    )


def is_nearly_equal(log_weight: Tensor, ess: float) -> bool:
    """Whether weights are so nearly equal that a verdict does not mind a k-hat above its threshold."""
    return ess >= NEARLY_EQUAL and not is_heavy(log_weight, ess)


def is_even(log_weight: Tensor) -> bool:
    """Whether no weight is more than a tenth above their mean."""
    return float((log_weight.double() - log_weight.max()).exp().mean()) * (1 + EVEN) > 1


def has_light_tail(log_weight: Tensor) -> bool:
    """Whether k-hat is below its threshold, so that means over the weighted draws can be relied on."""
    return tail_index(log_weight) < diagnostics.k_threshold(len(log_weight))


def is_hopeless(log_weight: Tensor) -> bool:
    """Whether no draw has a finite weight."""
    return not bool((log_weight > -math.inf).any())


def effective(log_weight: Tensor) -> float:
    """ESS as a fraction; 0 where no draw has any weight."""
    return 0.0 if is_hopeless(log_weight) else float(diagnostics.ess(log_weight))


def smoothed_worth(log_weight: Tensor) -> float:
    r"""The ESS of Pareto-smoothed weights, as a fraction: about what more draws would have.

    Of a few thousand weights with a tail, the largest may be many times what is expected of it, and the ESS a half or a
    tenth of what it mostly is. It says whether a look at more draws is worth it, and no more: verdicts are about the
    weights as they are.

    Example::

        >>> log_weight = torch.linspace(-1.0, 1.0, 1999).pow(3)
        >>> one_more = torch.cat([log_weight, torch.tensor([6.0])])
        >>> round(effective(log_weight), 2), round(effective(one_more), 2), round(smoothed_worth(one_more), 2)
        (0.86, 0.02, 0.82)
    """
    return 0.0 if is_hopeless(log_weight) else float(diagnostics.ess(diagnostics.psis(log_weight)[0]))


def worth_of_each(log_weight: Tensor, z: Tensor) -> Tensor:
    r"""How many independent draws weighted ones are worth for the mean or standard deviation of each latent, ``(D,)``.

    The ESS counts draws by their weights alone. Where those that weigh most are also far out, the mean and the standard
    deviation of a latent hang on a few of them: by the delta method, with normalised weights :math:`w_i`,
    the squared standard error of its mean is :math:`\sum_i w_i^2 (z_i - \bar z)^2`, in place of the
    :math:`\sigma^2 / n` of :math:`n` independent draws; and that of its variance likewise, of :math:`(z - \bar z)^2`
    (Owen, *Monte Carlo theory, methods and examples*, section 9.2).

    :param log_weight: of the draws, ``(S,)``.
    :param z: the draws, ``(S, D)``.

    Example::

        >>> z = torch.linspace(-3, 3, 1000)[:, None]
        >>> heavy = torch.where(z[:, 0].abs() > 2.9, 3.0, 0.0)
        >>> round(effective(heavy) * 1000), worth_of_each(heavy, z).round()
        (185, tensor([117.], dtype=torch.float64))
    """
    weight = log_weight.double().softmax(0)[:, None]
    return torch.cat([_worth(weight, part.double()) for part in z.split(AT_ONCE, 1)])


def _worth(weight: Tensor, z: Tensor) -> Tensor:
    """Independent draws that those of each latent are worth, ``(D,)``; infinite where a latent does not vary."""
    centered = z - (weight * z).sum(0)
    square = centered.square()
    squares = square, (square - (weight * square).sum(0)).square()
    worths = [(weight * part).sum(0) / (weight.square() * part).sum(0) for part in squares]
    return torch.minimum(*worths).nan_to_num(math.inf)


def tail_index(log_weight: Tensor) -> float:
    r""":math:`\hat k`; ``-inf`` where the weights are equal up to rounding, ``inf`` where no draw has any.

    Example::

        >>> tail_index(torch.zeros(1000))
        -inf
    """
    if is_hopeless(log_weight):
        return math.inf
    spread = float(log_weight.max() - log_weight.min())
    if spread < 1e3 * torch.finfo(log_weight.dtype).eps * (1 + float(log_weight.abs().max())):
        return -math.inf
    return float(diagnostics.pareto_k(log_weight))
