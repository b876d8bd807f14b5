r"""A Gaussian kernel density estimate, the floor of a comparison of densities.

.. math:: \log \hat p(x) = \log \frac1N \sum_{i=1}^N N(x \mid x_i, h^2 I)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Bandwidths tried, as shares of the data's mean standard deviation.
SHARES = tuple(0.01 * 1.35**i for i in range(10))


class KernelDensity:
    """A density estimate that remembers its data.

    :param data: :math:`x_i`, ``(N, D)``.
    :param bandwidth: :math:`h`.
    """

    def __init__(self, data: Tensor, bandwidth: float):
        self.data, self.bandwidth = data, bandwidth

    def log_prob(self, x: Tensor) -> Tensor:
        """``(K, D) -> (K,)``."""
        return torch.cat([log_sums(squares(rows, self.data), [self.bandwidth], self.data)[0] for rows in x.split(500)])


def squares(x: Tensor, data: Tensor) -> Tensor:
    """Squared distances, ``(K, N)``, coordinate by coordinate: differences of norms would lose digits."""
    return sum((a[:, None] - b).square() for a, b in zip(x.unbind(-1), data.unbind(-1)))  # type: ignore[return-value]


def log_sums(squared: Tensor, bandwidths: Sequence[float], data: Tensor) -> Tensor:
    """Log densities at each bandwidth, ``(B, K)``."""
    norms = [math.log(len(data)) + data.shape[-1] * math.log(h * math.sqrt(2 * math.pi)) for h in bandwidths]
    return torch.stack([(squared * (-0.5 / h**2)).logsumexp(-1) - norm for h, norm in zip(bandwidths, norms)])


def fit_kernels(data: Tensor, held_out: Tensor, shares: Sequence[float] = SHARES) -> KernelDensity:
    """The estimate whose bandwidth gives held-out rows the largest log-likelihood."""
    tried = [share * data.std(0).mean().item() for share in shares]
    scores = torch.cat([log_sums(squares(rows, data), tried, data) for rows in held_out.split(500)], -1).mean(-1)
    return KernelDensity(data, tried[int(scores.argmax())])
