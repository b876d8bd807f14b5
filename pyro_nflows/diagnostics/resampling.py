"""Draws that stand for the posterior: chosen by their weights, or as they come."""

import torch
from torch import Tensor

from ..objectives.draws import Draws
from . import weights as diagnostics
from .verdict import has_light_tail


def choose(draws: Draws, num_samples: int, resample: bool | None = None) -> Draws:
    """Some of the draws: resampled by their smoothed importance weights, or as they come.

    :param num_samples: how many; without resampling, at most as many as there are.
    :param resample: by default, where k-hat allows it.
    """
    index = chosen(draws.log_weight, num_samples, resample)
    return Draws(draws.z[index], draws.log_p[index], draws.log_q[index])


def chosen(log_weight: Tensor, num_samples: int, resample: bool | None = None) -> Tensor:
    """The indices that :func:`choose` takes."""
    if has_light_tail(log_weight) if resample is None else resample:
        return diagnostics.psis_resample(log_weight, num_samples)
    num = min(num_samples, len(log_weight))  # draws are independent, the first as good as any
    return torch.arange(num, device=log_weight.device)
