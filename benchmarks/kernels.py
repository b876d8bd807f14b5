r"""A Gaussian kernel density estimate, the floor of a comparison of densities.

.. math:: \log \hat p(x) = \log \frac1N \sum_{i=1}^N N(x \mid x_i, h^2 I)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Bandwidths tried, as shares of the data's mean standard deviation.
SHARES = tuple(0.01 * 1.35**i for i in range(14))


class KernelDensity:
    """A density estimate that remembers its data.

    :param data: :math:`x_i`, ``(N, D)``.
    :param bandwidth: :math:`h`.
    """

    def __init__(self, data: Tensor, bandwidth: float):
        self.data, self.bandwidth = data, bandwidth

    def log_prob(self, x: Tensor) -> Tensor:
        """``(K, D) -> (K,)``."""
        norm = math.log(len(self.data)) + x.shape[-1] * math.log(self.bandwidth * math.sqrt(2 * math.pi))
        parts = [torch.cdist(rows, self.data, compute_mode="donot_use_mm_for_euclid_dist") for rows in x.split(500)]
        return torch.cat([(-0.5 * (d / self.bandwidth).square()).logsumexp(-1) for d in parts]) - norm


def fit_kernels(data: Tensor, held_out: Tensor, shares: Sequence[float] = SHARES) -> KernelDensity:
    """The estimate whose bandwidth gives held-out rows the largest log-likelihood."""
    scale = data.std(0).mean().item()
    tried = [KernelDensity(data, share * scale) for share in shares]
    return max(tried, key=lambda estimate: estimate.log_prob(held_out).mean().item())
