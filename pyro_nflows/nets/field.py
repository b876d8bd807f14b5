r"""Vector fields that know their Jacobian: what a continuous flow integrates."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..checks import check_widths
from .context import context_of, take_context


class Dynamics(nn.Module):
    r"""A tanh perceptron with a linear part, that reads the time; it starts as the zero field.

    .. math:: f(t, x) = W_h \tanh(\cdots \tanh(W_1 (x, t) + b_1) \cdots) + b_h + W_s x

    :param input_dim: dimension :math:`D`.
    :param hidden_dims: widths of the hidden layers.
    :param context_dim: size of a context (see :mod:`pyro_nflows.nets.context`) that is read beside the time.

    Example::

        >>> value, pushed = Dynamics(3, (16,))(torch.tensor(0.5), torch.randn(10, 3), torch.randn(10, 3, 2))
        >>> value.shape, pushed.shape
        (torch.Size([10, 3]), torch.Size([10, 3, 2]))
    """

    def __init__(self, input_dim: int, hidden_dims: Sequence[int], context_dim: int = 0):
        super().__init__()
        check_widths("Dynamics", hidden_dims)
        self.is_wide = False
        take_context(self, context_dim)
        widths = [input_dim + 1 + context_dim, *hidden_dims]
        self.input_dim = input_dim
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.head = nn.Parameter(torch.zeros(input_dim, widths[-1]))
        self.bias = nn.Parameter(torch.zeros(input_dim))
        self.skip = nn.Parameter(torch.zeros(input_dim, input_dim)) if hidden_dims else None

    def forward(self, time: Tensor, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        r"""The field, and its Jacobian in ``x`` times some columns.

        :param time: a scalar.
        :param x: ``(..., D)``.
        :param columns: ``(..., D, C)``.
        :return: :math:`f`, ``(..., D)``, and :math:`J C`, ``(..., D, C)``.
        """
        parts = [x, time.expand(*x.shape[:-1], 1)]
        if self.context_dim:
            parts.append(context_of(self).expand(*x.shape[:-1], -1))
        h, pushed = torch.cat(parts, -1), columns
        for i, layer in enumerate(self.hidden):
            weight = cast(nn.Linear, layer).weight
            h = torch.tanh(layer(h))
            pushed = (1 - h * h)[..., None] * ((weight if i else weight[:, : self.input_dim]) @ pushed)
        head = self.head if len(self.hidden) else self.head[:, : self.input_dim]
        value, pushed = linear(h, self.head, self.bias), head @ pushed
        if self.skip is None:
            return value, pushed
        return value + linear(x, self.skip), pushed + self.skip @ columns
