"""Draws that stand for the posterior: chosen by their weights, or as they come."""

import torch
from torch import Tensor

from ..checks import check_flags
from ..objectives.draws import Draws
from . import weights as diagnostics
from .outliers import outliers
from .worth import FINE, effective, has_light_tail, tail_index


def choose(draws: Draws, num_samples: int, resample: bool | None = None) -> Draws:
    """Some of the draws: resampled by their smoothed importance weights, or as they come.

    :param num_samples: how many; without resampling, at most as many as there are.
    :param resample: by default, where :func:`is_resampled` says so; elsewhere draws of zero density are left out.
    """
    index = chosen(draws.log_weight, num_samples, resample)
    return Draws(draws.z[index], draws.log_p[index], draws.log_q[index])


def chosen(log_weight: Tensor, num_samples: int, resample: bool | None = None) -> Tensor:
    """The indices that :func:`choose` takes."""
    check_flags("get_samples", resample=resample)
    if is_resampled(log_weight) if resample is None else resample:
        return diagnostics.psis_resample(log_weight, num_samples)
    num = min(num_samples, len(log_weight))  # draws are independent, the first as good as any
    at = torch.arange(len(log_weight), device=log_weight.device)
    inside = at[log_weight > -torch.inf]
    if resample is None and 0 < len(inside) < len(at):  # what the posterior rules out is none of its draws
        at = inside.repeat(-(-num // len(inside)))
    return at[:num]


def is_resampled(log_weight: Tensor) -> bool:
    """Whether draws are resampled by their weights unless something else is asked for.

    They are where k-hat is below its threshold; and where the ESS is 90% also up to a k-hat of 1, since the tail of a
    latent that the guide has too thin is widened by that, and the others lose a tenth of their draws at most. Above it,
    where weights have no mean, the draws as they come are the better ones, unless some of them are outliers.

    :param log_weight: of the draws, ``(num_samples,)``.

    Example::

        >>> is_resampled(torch.randn(4000))
        True
    """
    if has_light_tail(log_weight):
        return True
    return effective(log_weight) >= FINE and (tail_index(log_weight) < 1 or bool(outliers(log_weight).any()))
