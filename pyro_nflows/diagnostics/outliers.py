r"""Draws that lie so far out that a few of them alone make the ELBO what it is.

The ELBO is the mean of :math:`\log w = \log p - \log q`. A draw of :math:`q` at :math:`10^8` standard deviations has a
:math:`\log w` of about :math:`-10^{16}` and a weight :math:`w` of zero: all means over the weighted draws are right
without it, ESS and k-hat do not see it, but the mean of :math:`\log w` is that draw's and nothing else's, and so are
its standard error and the standard deviations of the unweighted draws.

A draw is an *outlier* if its weight is :math:`e^{-100}` of the mean weight at most, and :math:`\log w` lies a hundred
times as far below the median as the best draws lie above it; or if its weight is exactly zero. Outliers *matter* if the
ELBO is 0.1 nats higher without them: where :math:`\log p` falls as a Gaussian's does, standard deviations of the
unweighted draws are 10% too large at that point.

The trimmed ELBO is that of the guide without its outliers. If these are the share :math:`f` of all draws, that guide
has the density :math:`q / (1 - f)` elsewhere, so

.. math:: \mathrm{ELBO}_\text{trimmed} = \log (1 - f) + \operatorname{mean}_\text{others} \log w,

which is a lower bound of the log evidence as any other.
"""

import math

import torch
from torch import Tensor

from ..checks import numbers_in
from .weights import Estimate, elbo
from .worth import is_hopeless

#: How far below the mean weight an outlier's is, in nats.
FAR = 100.0
#: How many times as far below the median it is as the tenth of the draws with the largest weights is above.
SPREADS = 100.0
#: A share of draws without any weight that is more than overflow far out: the density has an edge.
BEYOND = 0.01
#: What outliers cost the ELBO, in nats, where they matter.
COST = 0.1


def _checked(log_weight: Tensor) -> Tensor:
    log_weight = numbers_in("outliers", "log_weight", log_weight)
    if log_weight.dim() != 1:
        raise ValueError(f"outliers: expected log-weights of shape (num_samples,), got {tuple(log_weight.shape)}")
    return log_weight


def outliers(log_weight: Tensor) -> Tensor:
    """Which draws are outliers; none where these do not matter to the ELBO.

    :param log_weight: of the draws, ``(num_samples,)``.
    :return: booleans, ``(num_samples,)``.

    Example::

        >>> outliers(torch.tensor([0.1, -0.2, 0.0, -1e13])).tolist()
        [False, False, False, True]
        >>> int(outliers(torch.linspace(-2.0, 0.0, 100)).sum())
        0
    """
    log_weight = _checked(log_weight)
    found = torch.zeros_like(log_weight, dtype=torch.bool)
    if is_hopeless(log_weight) or len(log_weight) < 2:
        return found
    values = log_weight.double()
    median, best = values.median(), values.kthvalue(max(1, math.ceil(0.9 * len(values)))).values
    mean = values.logsumexp(0) - math.log(len(values))
    far = (values < mean - FAR) & (values < median - SPREADS * (best - median))
    far |= values == -torch.inf
    if not bool(far.any()) or bool(far.all()):
        return found
    return far if float(values[~far].mean() - values.mean()) > COST else found


def trimmed_elbo(log_weight: Tensor) -> Estimate:
    """The ELBO of the guide without its outliers, and its standard error; the ELBO itself where there are none.

    :param log_weight: of the draws, ``(num_samples,)``; at least one is finite.

    Example::

        >>> value, se = trimmed_elbo(torch.tensor([-1.0, -3.0, -1e13]))
        >>> round(float(value), 3), round(float(se), 3)  # -2 + log(2 / 3)
        (-2.405, 1.0)
    """
    log_weight = _checked(log_weight)
    far = outliers(log_weight)
    if int((~far).sum()) < 2:
        return elbo(log_weight)
    value, se = elbo(log_weight[~far])
    return Estimate(value + math.log1p(-float(far.double().mean())), se)


def is_cut(log_weight: Tensor) -> bool:
    """Whether more than a few draws have no weight at all: the density has an edge, and they lie beyond it.

    Example::

        >>> is_cut(torch.tensor([0.1, -torch.inf])), is_cut(torch.tensor([0.1, -1e13]))
        (True, False)
    """
    return float((log_weight == -torch.inf).double().mean()) > BEYOND


def outliers_in_words(log_weight: Tensor) -> str:
    """How many outliers there are, and where.

    Example::

        >>> outliers_in_words(torch.tensor([0.1, -0.2, 0.0, -1e13]))
        '1 of its 4 draws lies far out'
        >>> outliers_in_words(torch.cat([torch.zeros(90), torch.full((10,), -torch.inf)]))
        "10 of its 100 draws lie where the model's density is zero"
    """
    log_weight = _checked(log_weight)
    num = int(outliers(log_weight).sum())
    where = "where the model's density is zero" if is_cut(log_weight) else "far out"
    return f"{num:,} of its {len(log_weight):,} draws {'lies' if num == 1 else 'lie'} {where}"
