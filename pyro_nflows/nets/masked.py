r"""The network of autoregressive layers, forwards and coordinate by coordinate."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..checks import check_widths
from .context import context_of, join_context, take_context
from .tiles import Cell, grid, masked_linear


class MaskedMLP(nn.Module):
    r"""A masked perceptron (MADE) [1]: output block :math:`i` reads inputs :math:`1, \dots, i - 1` only.

    With one input that is none: a learnable constant.

    :param input_dim: number of inputs :math:`D`, and of output blocks.
    :param num_params: outputs of each block; the result has shape ``(..., D, num_params)``.
    :param hidden_dims: widths of the hidden layers.
    :param reverse: read the inputs in the order :math:`D, \dots, 1` instead.
    :param context_dim: size of a context (see :mod:`pyro_nflows.nets.context`), which every output block reads.

    Example::

        >>> MaskedMLP(3, 2, (16,))(torch.randn(10, 3)).shape
        torch.Size([10, 3, 2])

    **References**

    [1] M. Germain, K. Gregor, I. Murray, H. Larochelle (2015). MADE: Masked Autoencoder for Distribution
    Estimation.
    """

    head: Tensor
    mask_head: Tensor
    mask_skip: Tensor

    def __init__(
        self,
        input_dim: int,
        num_params: int,
        hidden_dims: Sequence[int],
        reverse: bool = False,
        context_dim: int = 0,
    ):
        super().__init__()
        check_widths("MaskedMLP", hidden_dims)
        self.is_wide = False
        take_context(self, context_dim)
        self.shape = (input_dim, num_params)
        first = torch.arange(1, input_dim + 1)
        first = first.flip(0) if reverse else first
        last = first.repeat_interleave(num_params)
        first = torch.cat([first, first.new_zeros(context_dim)])
        hidden_dims = hidden_dims if len(first) > 1 else ()
        degrees = [first, *(_degrees(width, input_dim, context_dim > 0) for width in hidden_dims)]
        self.hidden = nn.ModuleList(nn.Linear(len(a), len(b)) for a, b in zip(degrees, degrees[1:]))
        head = torch.zeros(len(last), len(degrees[-1]))
        if len(first) > 1:
            self.head = nn.Parameter(head)
        else:  # all masked, and Pyro warns of parameters that do not train
            self.register_buffer("head", head)
        self.skip = nn.Parameter(torch.zeros(len(last), len(first))) if hidden_dims else None
        self.bias = nn.Parameter(torch.zeros(len(last)))
        #: How each mask is cut where it is large.
        self.grids = dict[str, Cell]()
        for i, (a, b) in enumerate(zip(degrees, degrees[1:])):
            self._mask(f"mask_{i}", b[:, None] >= a, b, a)
        self._mask("mask_head", last[:, None] > degrees[-1], last, degrees[-1])
        self._mask("mask_skip", last[:, None] > first, last, first)
        self.reverse = reverse
        #: For each layer, how many of its units read at most the first 0, 1, ... D coordinates.
        self.ends = [[int((degree <= i).sum()) for i in range(input_dim + 1)] for degree in degrees]
        for i, degree in enumerate(degrees):
            self.register_buffer(f"order_{i}", degree.argsort(stable=True), persistent=False)

    def _mask(self, name: str, mask: Tensor, rows: Tensor, columns: Tensor) -> None:
        self.grids[name] = grid(mask, rows, columns)
        self.register_buffer(name, mask.to(torch.get_default_dtype()), persistent=False)

    def _weights(self) -> list[Tensor]:
        """The masked weights of the hidden layers."""
        return [cast(nn.Linear, h).weight * getattr(self, f"mask_{i}") for i, h in enumerate(self.hidden)]

    def _hidden(self, x: Tensor) -> list[Tensor]:
        """Values of the hidden layers; first those of the input, context included."""
        values = [x]
        for i, layer in enumerate(cast(list[nn.Linear], self.hidden)):
            values.append(torch.tanh(self._masked(values[-1], layer.weight, f"mask_{i}", layer.bias)))
        return values

    def _masked(self, x: Tensor, weight: Tensor, name: str, bias: Tensor | None = None) -> Tensor:
        return masked_linear(x, weight, getattr(self, name), self.grids[name], bias)

    def forward(self, x: Tensor) -> Tensor:
        x = join_context(self, x)
        y = self._masked(self._hidden(x)[-1], self.head, "mask_head", self.bias)
        if self.skip is not None:
            y = y + self._masked(x, self.skip, "mask_skip")
        return y.unflatten(-1, self.shape)

    def solve(self, y: Tensor, invert: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Coordinate by coordinate, the ``x`` with ``x_i = invert(y_i, block i of self(x))``: one pass in all.

        A hidden unit is computed as soon as the coordinates that it reads are known, and once.

        :param y: ``(..., D)``.
        :param invert: ``(..., 1)`` and ``(..., 1, num_params)`` to two of ``(..., 1)``, of which the first is ``x_i``.
        :return: both, ``(..., D)``.
        """
        sorted_layers, values = self._in_reading_order(), [y[..., :0]] * len(self.ends)
        if self.context_dim:
            values = self._read(values, context_of(self).expand(*y.shape[:-1], -1), sorted_layers, 0)
        results = []
        for i in range(y.shape[-1]):
            at = y.shape[-1] - 1 - i if self.reverse else i
            results.append(invert(y[..., at : at + 1], self._block(values, at)[..., None, :]))
            if i < y.shape[-1] - 1:
                values = self._read(values, results[-1][0], sorted_layers, i + 1)
        x, others = (torch.cat(parts, -1) for parts in zip(*(results[::-1] if self.reverse else results)))
        return x, others

    def _in_reading_order(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of the hidden layers, their units sorted by how far they read."""
        orders = [getattr(self, f"order_{i}") for i in range(len(self.ends))]
        hidden = zip((cast(nn.Linear, h) for h in self.hidden), orders, orders[1:])
        return [(h.weight.index_select(0, b).index_select(1, a), h.bias.index_select(0, b)) for h, a, b in hidden]

    def _block(self, values: list[Tensor], at: int) -> Tensor:
        """The outputs for one coordinate, once all that they read is known."""
        rows = slice(at * self.shape[1], (at + 1) * self.shape[1])
        result = self.bias[rows].expand(*values[0].shape[:-1], -1)
        for weight, i in ((self.head, len(values) - 1), *(() if self.skip is None else ((self.skip, 0),))):
            if values[i].shape[-1]:
                columns = getattr(self, f"order_{i}")[: values[i].shape[-1]]
                result = result + linear(values[i], weight[rows].index_select(1, columns))
        return result

    def _read(self, values: list[Tensor], new: Tensor, sorted_layers: list[Any], num: int) -> list[Tensor]:
        """The values of all units that read at most the first ``num`` coordinates, the last of which is new."""
        values = [torch.cat([values[0], new], -1), *values[1:]]
        for i, ((weight, bias), ends) in enumerate(zip(sorted_layers, self.ends[1:])):
            units = slice(ends[num - 1] if num else 0, ends[num])
            if units.start < units.stop:
                more = linear(values[i], weight[units, : values[i].shape[-1]], bias[units])
                values[i + 1] = torch.cat([values[i + 1], torch.tanh(more)], -1)
        return values

    def pullbacks(self, x: Tensor, each: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        r"""Gradients of the output blocks one by one, and of them all: :math:`D + 1` pulls in one batch.

        :param x: ``(K, D)``.
        :param each: what multiplies the outputs of each block, ``(K, D, num_params)``.
        :param total: what multiplies all outputs in the last pull, ``(K, D, num_params)``.
        :return: ``(D, K, D)``, block :math:`i`'s gradient in ``x``, and ``(K, D)``.
        """
        blocks = each.transpose(0, 1)
        pulled = _pull_blocks(self.head * self.mask_head, blocks, total)
        for weight, value in zip(reversed(self._weights()), reversed(self._hidden(join_context(self, x)))):
            pulled = ((pulled * (1 - value * value)).flatten(0, 1) @ weight).unflatten(0, pulled.shape[:2])
        if self.skip is not None:
            pulled = pulled + _pull_blocks(self.skip * self.mask_skip, blocks, total)
        pulled = pulled[..., : x.shape[-1]]
        return pulled[:-1], pulled[-1]


def _degrees(width: int, input_dim: int, context: bool) -> Tensor:
    """How far each of ``width`` hidden units reads; 0 is the context alone."""
    return torch.arange(width) % input_dim if context else torch.arange(width) % max(1, input_dim - 1) + 1


def _pull_blocks(head: Tensor, blocks: Tensor, total: Tensor) -> Tensor:
    """``(D, K, P)`` against each block's rows of ``head (D P, H)``, ``(K, D, P)`` against all: ``(D + 1, K, H)``."""
    each = blocks @ head.unflatten(0, (blocks.shape[0], -1))
    return torch.cat([each, (total.flatten(1) @ head)[None]])
