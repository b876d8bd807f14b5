r"""The networks inside the layers: small networks whose heads start at zero.

A zero head makes the layer around it start at its neutral parameters, that is at the identity. The linear
skip (also zero at the start) lets a layer represent a linear dependence exactly, in the tails too.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, silu

from ..checks import Size, check_widths
from .context import context_of, join_context, take_context

#: A linear skip of more numbers than these goes through a few linear features: at 200 dimensions in a coupling.
MAX_SKIP, SKIP_RANK = 20_000, 16
#: On PyTorch's own start, for a standard deviation of 5/3 in front of a tanh.
_TANH_GAIN = 5 / 3**0.5


@torch.no_grad()
def widen(hidden: nn.Module) -> None:
    r"""Multiply PyTorch's own start, :math:`U(-1 / \sqrt n, 1 / \sqrt n)`, to what :func:`start_wide` wants.

    Example::

        >>> layer = nn.Linear(100, 100)
        >>> widen(layer)
        >>> 0.2 < layer.weight.abs().max().item() < 5 / 300**0.5
        True
    """
    for parameter in hidden.parameters():
        parameter.mul_(_TANH_GAIN)


@torch.no_grad()
def start_wide(module: nn.Module) -> None:
    r"""Give networks whose heads are zero hidden weights that keep a unit variance before a tanh [1].

    They are :math:`U(-b, b)`, :math:`b = 5 / \sqrt{3 n}` for :math:`n` inputs. PyTorch's own, :math:`b = 1 / \sqrt n`,
    leave tanh networks nearly linear, and slow to learn densities of data. A network is widened once; its values stay.

    Example::

        >>> net = MLP(64, 1, (64,))
        >>> start_wide(net)
        >>> 0.8 < net.hidden[0](torch.randn(1000, 64)).std() / (5 / 3) < 1.2
        tensor(True)

    **References**

    [1] Y. LeCun, L. Bottou, G. Orr, K.-R. Mueller (1998). Efficient BackProp.
    """
    for net in module.modules():
        head = getattr(net, "head", None)
        if getattr(net, "is_wide", True) or head is None or head.any():
            continue
        net.is_wide = True  # type: ignore[assignment]
        widen(cast(nn.ModuleList, net.hidden))


class MLP(nn.Module):
    r"""A perceptron with a linear skip; it starts as the zero function.

    .. math:: f(x) = W_h\, a(\cdots \tanh(W_1 x + b_1) \cdots) + b_h + W_s x

    Hidden layers are tanh; the last of several is SiLU if ``unbounded``, so that :math:`f` goes on growing where
    tanh would level off: in the tails. Where :math:`W_s` would have more than 20,000 numbers, it is a product of two
    matrices of rank 16.

    :param input_dim: size of the last dimension of ``x``; 0 makes a learnable constant.
    :param output_dim: size of the last dimension of the result.
    :param hidden_dims: widths of the hidden layers.
    :param skip: whether to add :math:`W_s x`.
    :param bias: whether to add :math:`b_h`.
    :param unbounded: whether the last of several hidden layers is SiLU.
    :param context_dim: size of a context (see :mod:`pyro_nflows.nets.context`) that is read beside ``x``.

    Example::

        >>> MLP(3, 4, (16,))(torch.randn(10, 3)).shape
        torch.Size([10, 4])
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_dims: Sequence[int],
        skip: bool = True,
        bias: bool = True,
        unbounded: bool = False,
        context_dim: int = 0,
    ):
        super().__init__()
        check_widths("MLP", hidden_dims)
        self.is_wide = False
        take_context(self, context_dim)
        input_dim += context_dim
        self.unbounded = unbounded and len(hidden_dims) > 1
        widths = [input_dim, *hidden_dims] if input_dim else [0]
        skip = skip and len(widths) > 1
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.bias = nn.Parameter(torch.zeros(output_dim)) if bias else None
        self.head = nn.Parameter(torch.zeros(output_dim, widths[-1])) if widths[-1] else None
        self.narrow: nn.Parameter | None = None
        if skip and output_dim * input_dim > MAX_SKIP:
            self.narrow = nn.Parameter(torch.randn(SKIP_RANK, input_dim) * input_dim**-0.5)
        skipped = input_dim if self.narrow is None else SKIP_RANK
        self.skip = nn.Parameter(torch.zeros(output_dim, skipped)) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        if self.head is None:
            return cast(Tensor, self.bias).expand(*x.shape[:-1], -1)
        x = join_context(self, x)
        y = linear(self._hidden(x), self.head, self.bias)
        if self.skip is None:
            return y
        return y + linear(x if self.narrow is None else linear(x, self.narrow), self.skip)

    def _hidden(self, h: Tensor) -> Tensor:
        for i, layer in enumerate(self.hidden):
            last = self.unbounded and i == len(self.hidden) - 1
            h = silu(layer(h)) if last else torch.tanh(layer(h))
        return h


class ConvNet(nn.Module):
    r"""A convolutional network with tanh activations; it starts as the zero function.

    A 3 by 3 convolution, a 1 by 1 convolution for each further hidden layer, and a 3 by 3 head.

    :param shape: the input's ``(C, H, W)``; ``x`` has shape ``(..., C H W)``.
    :param output_channels: channels of the result.
    :param num_params: numbers for each coordinate of the result, ``(..., output_channels H W num_params)``.
    :param hidden_dims: channels of the hidden layers.
    :param context_dim: size of a context (see :mod:`pyro_nflows.nets.context`) that each pixel reads, as further
        channels.
    :param skip: whether to add a linear function of each pixel's channels.

    Example::

        >>> ConvNet((2, 4, 4), 3, 2, (16,))(torch.randn(10, 32)).shape
        torch.Size([10, 96])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        output_channels: int,
        num_params: int,
        hidden_dims: Sequence[int],
        context_dim: int = 0,
        skip: bool = False,
    ):
        super().__init__()
        check_widths("ConvNet", hidden_dims)
        self.is_wide = False
        take_context(self, context_dim)
        self.shape, self.num_params = tuple(shape), num_params
        widths = [shape[0] + context_dim, *hidden_dims]
        sizes = [3] + [1] * len(hidden_dims)
        self.hidden = nn.ModuleList(
            nn.Conv2d(a, b, size, padding="same") for a, b, size in zip(widths, widths[1:], sizes)
        )
        self.bias = nn.Parameter(torch.zeros(num_params * output_channels))
        self.head = nn.Parameter(torch.zeros(len(self.bias), widths[-1], 3, 3))
        self.skip = nn.Parameter(torch.zeros(len(self.bias), widths[0])) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        batch_shape, (_, height, width) = x.shape[:-1], self.shape
        image = x.unflatten(-1, self.shape)
        if self.context_dim:
            context = context_of(self).expand(*batch_shape, -1)[..., None, None]
            image = torch.cat([image, context.expand(*batch_shape, -1, height, width)], -3)
        rows = h = image.reshape(batch_shape.numel(), *image.shape[-3:])
        for layer in self.hidden:
            h = torch.tanh(layer(h))
        y = conv2d(h, self.head, self.bias, padding="same")
        if self.skip is not None:
            y = y + conv2d(rows, self.skip[:, :, None, None])
        return y.unflatten(1, (self.num_params, -1)).movedim(1, -1).reshape(*batch_shape, -1)


def network(
    size: Size, output_channels: int, hidden_dims: Sequence[int], skip: bool = False, context_dim: int = 0
) -> MLP | ConvNet:
    """The network for vectors, or for images: an :class:`MLP`, or a :class:`ConvNet`.

    :param size: a dimension, of which each coordinate is a channel, or an image's ``(C, H, W)``.
    :param output_channels: of the result, an image of the same height and width.
    :param hidden_dims: widths, or channels, of the hidden layers.
    :param skip: whether to add a linear function.
    :param context_dim: size of a context that is read too.

    Example::

        >>> network((2, 4, 4), 3, (8,))(torch.randn(10, 32)).shape
        torch.Size([10, 48])
    """
    if isinstance(size, int):
        return MLP(size, output_channels, hidden_dims, skip, context_dim=context_dim)
    return ConvNet(size, output_channels, 1, hidden_dims, context_dim, skip)
