"""What the rows of a plate read of the coordinates outside of it: a few learned features, and those coordinates."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_sizes, check_widths

#: Up to so many coordinates are features themselves, beside those that are learned of them.
MAX_PLAIN = 16


class Features(nn.Module):
    """Learned features of a vector beside the vector itself, if that is short.

    :param input_dim: of the vector; of none, there are no features.
    :param num_features: number of learned ones.
    :param hidden_dims: widths of the network's hidden layers.
    :raises ValueError: if ``num_features < 1``.

    Example::

        >>> features = Features(2, num_features=8)
        >>> features.output_dim, features(torch.randn(5, 2)).shape
        (10, torch.Size([5, 10]))
    """

    def __init__(self, input_dim: int, num_features: int = 8, hidden_dims: Sequence[int] = (32,)):
        super().__init__()
        check_sizes("Features", num_features=num_features)
        check_widths("Features", hidden_dims)
        self.input_dim, self.is_plain = input_dim, input_dim <= MAX_PLAIN
        self.net = _network([input_dim, *hidden_dims, num_features]) if input_dim else None
        self.output_dim = (num_features + input_dim * self.is_plain) if input_dim else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.net is None:
            return x
        learned = self.net(x)
        return torch.cat([learned, x], -1) if self.is_plain else learned


def _network(widths: Sequence[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in zip(widths, widths[1:]):
        parts += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*parts[:-1])
