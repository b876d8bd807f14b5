"""Dilated causal convolutions, for all positions at once and one after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_widths
from .causal import NUM_LAGS, CausalNet, layers_of, shifted


class CausalConvNet(CausalNet):
    r"""Gated dilated causal convolutions (WaveNet) [1].

    .. math:: h_t \leftarrow h_t + O\, \big(\tanh(F (h_{t - d}, h_t)) \odot \sigma(G (h_{t - d}, h_t))\big)

    for each dilation :math:`d`, 1, 2, 4 and so on: the farthest position that is read is 1 plus their sum before, at
    a cost of their number. Position by position, a layer keeps its last :math:`d` inputs [2].

    :param size: positions :math:`T` and coordinates of each, ``(T, D)``.
    :param num_params: numbers for each coordinate.
    :param width: channels of each layer.
    :param dilations: one for each layer.
    :param per_position: whether the biases of the first layer and the last one are different at each position.
    :param context_dim: numbers in the context of a position.
    :raises ValueError: if a size or a dilation is not a positive integer, or there are less than two positions.

    Example::

        >>> net = CausalConvNet((10, 2), 3, width=8)
        >>> net(torch.randn(5, 10, 2)).shape, net.reach
        (torch.Size([5, 10, 2, 3]), 16)

    **References**

    [1] A. van den Oord et al. (2016). WaveNet: A Generative Model for Raw Audio.

    [2] T. Le Paine et al. (2016). Fast Wavenet Generation Algorithm.
    """

    def __init__(
        self,
        size: tuple[int, int],
        num_params: int,
        width: int = 16,
        dilations: Sequence[int] = (1, 2, 4, 8),
        per_position: bool = False,
        context_dim: int = 0,
    ):
        super().__init__(size, num_params, width, per_position, context_dim)
        check_widths("CausalConvNet", dilations)
        self.dilations = tuple(dilations)
        self.gates = nn.ModuleList(nn.Linear(2 * width, 2 * width) for _ in dilations)
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in dilations)
        self.reach = max(NUM_LAGS, 1 + sum(dilations))

    def body(self, h: Tensor) -> Tensor:
        for dilation, gate, out in zip(self.dilations, layers_of(self.gates), layers_of(self.outs)):
            h = h + out(_gated(gate(torch.cat([shifted(h, dilation), h], -1))))
        return h

    def begin(self, rows: Tensor) -> list[Tensor]:
        return [rows.new_zeros((*rows.shape[:-1], self.width))] * sum(self.dilations)

    def advance(self, h: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        kept, start = [], 0
        for dilation, gate, out in zip(self.dilations, layers_of(self.gates), layers_of(self.outs)):
            before, *later = past[start : start + dilation]
            kept += [*later, h]
            h, start = h + out(_gated(gate(torch.cat([before, h], -1)))), start + dilation
        return h, kept

    def extra_repr(self) -> str:
        return f"{self.size}, dilations={self.dilations}"


def _gated(h: Tensor) -> Tensor:
    signal, gate = h.chunk(2, -1)
    return torch.tanh(signal) * torch.sigmoid(gate)
