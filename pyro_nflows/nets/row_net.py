"""A small network for each row of a plate."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..checks import check_sizes


class RowNet(nn.Module):
    r"""As many small networks as there are rows, each with weights of its own; they start as the zero function.

    .. math:: f_i(a) = V_i \operatorname{silu}(W_i a + b_i) + S_i a + c_i

    :param num_rows: number of rows.
    :param input_dim: size of the last dimension of ``a``, which is ``(..., num_rows, input_dim)``.
    :param output_dim: size of the last dimension of the result.
    :param hidden_dim: hidden units of a row.
    :raises ValueError: if one of these is less than 1.

    Example::

        >>> RowNet(5, 2, 3)(torch.randn(10, 5, 2)).shape
        torch.Size([10, 5, 3])
    """

    def __init__(self, num_rows: int, input_dim: int, output_dim: int, hidden_dim: int = 8):
        super().__init__()
        check_sizes("RowNet", num_rows=num_rows, input_dim=input_dim, output_dim=output_dim, hidden_dim=hidden_dim)
        bound = input_dim**-0.5
        self.weight = nn.Parameter(torch.empty(num_rows, hidden_dim, input_dim).uniform_(-bound, bound))
        self.hidden_bias = nn.Parameter(torch.empty(num_rows, hidden_dim).uniform_(-bound, bound))
        self.head = nn.Parameter(torch.zeros(num_rows, output_dim, hidden_dim))
        self.skip = nn.Parameter(torch.zeros(num_rows, output_dim, input_dim))
        self.bias = nn.Parameter(torch.zeros(num_rows, output_dim))

    def fan_in(self, name: str) -> int:
        """How many numbers of a parameter are added up in one that it makes; see :mod:`~pyro_nflows.nets.steps`."""
        return 1 if name.endswith("bias") else int(self.get_parameter(name).shape[-1])

    def forward(self, a: Tensor) -> Tensor:
        hidden = silu(_product(self.weight, a) + self.hidden_bias)
        return _product(self.head, hidden) + _product(self.skip, a) + self.bias


def _product(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Each row's matrix times its vector."""
    return (matrices * vectors[..., None, :]).sum(-1)
