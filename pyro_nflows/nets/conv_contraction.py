r"""Contractions of images: convolutions whose Lipschitz constants are held below a given number."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear, pad

from ..checks import check_widths
from ..numerics import positive
from .context import context_of, take_context
from .contraction import SHARPNESS, check_lipschitz, spectral_bound, swish


def convolution_bound(kernel: Tensor, size: tuple[int, int], num_iterations: int = 5) -> Tensor:
    r"""An upper bound of the spectral norm of a convolution of images with zeros around them, differentiable [1].

    With the zeros, an image lies on a torus. There the convolution is a matrix :math:`K(\omega)` of channels at each of
    the torus's frequencies, and its norm is the largest of theirs, each bounded by
    :func:`~pyro_nflows.nets.contraction.spectral_bound`.

    :param kernel: ``(C_out, C_in, k, k)`` with an odd ``k``, for a convolution with padding ``k // 2``.
    :param size: height and width of the image.
    :param num_iterations: of that bound.

    Example::

        >>> mean = torch.full((1, 1, 3, 3), 1 / 9)
        >>> convolution_bound(mean, (28, 28)).round(decimals=2)
        tensor(1.)

    **References**

    [1] B. Delattre, Q. Barthelemy, A. Araujo, A. Allauzen (2023). Efficient Bound of Lipschitz Constant for
    Convolutional Layers by Gram Iteration.
    """
    if kernel.shape[-1] == 1:
        return spectral_bound(kernel[:, :, 0, 0], num_iterations)
    side = kernel.shape[-1]
    rows, columns = (length + side // 2 for length in size)
    at = torch.arange(side, device=kernel.device)
    along = [
        torch.arange(number, device=kernel.device)[:, None] * at * (2 * math.pi / length)
        # A real kernel is the same at two opposite frequencies, so that half of them say all.
        for number, length in ((rows, rows), (columns // 2 + 1, columns))
    ]
    angle = (along[0][:, None, :, None] + along[1][None, :, None, :]).flatten(0, 1).flatten(1).to(kernel)
    real, imaginary = ((kernel.flatten(2) @ part.T).movedim(-1, 0) for part in (angle.cos(), -angle.sin()))
    blocks = torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)
    return spectral_bound(blocks, num_iterations).amax()


class LinearizedImage(NamedTuple):
    """A contraction of images at a point: its value there, and what its Jacobian is made of."""

    value: Tensor
    weights: list[Tensor]
    slopes: list[Tensor]
    shape: tuple[int, int, int]

    def pull(self, cotangent: Tensor) -> Tensor:
        r""":math:`J^\top u` for flat images :math:`u`, ``(..., C H W)``."""
        shape = cotangent.shape[:-1]
        image = cotangent.unflatten(-1, self.shape)
        for weight, slope in zip(reversed(self.weights), [None, *reversed(self.slopes)]):
            image = image if slope is None else image * slope
            rows = image.reshape(shape.numel(), *image.shape[-3:])
            image = _in_batch(conv_transpose2d(rows, weight, padding=weight.shape[-1] // 2), shape)
        return image.flatten(-3)

    def jacobian(self) -> Tensor:
        r""":math:`J`, ``(..., C H W, C H W)``.

        By way of each hidden pixel, the nine inputs around it act on the nine outputs around it: products of matrices
        of channels, which cost far less than pulling back each unit vector of the image.
        """
        if not self.slopes:
            return self._by_units()
        first, *middle, last = self.weights
        matrices = [*(weight[:, :, 0, 0] for weight in reversed(middle)), first.movedim(1, -1).flatten(1)]
        paths = last.flatten(2).movedim(-1, 0).flatten(0, 1)
        for matrix, slope in zip(matrices, reversed(self.slopes)):
            paths = (paths * slope.flatten(-2).mT[..., None, :]) @ matrix
        channels, around = self.shape[0], _around(self.shape[1:], first.shape[-1]).to(paths.device)
        paths = paths.unflatten(-1, (-1, channels)).unflatten(-3, (-1, channels)).movedim(-3, -2)
        # (..., hidden pixel, output's place around it, input's place, C, C) is summed over the hidden pixels.
        num = len(around) + 1  # the last one is outside of the image
        pairs = (around.flip(-1)[:, :, None] * num + around[:, None, :]).flatten()
        zeros = paths.new_zeros(*self.value.shape[:-1], num * num, channels, channels)
        summed = zeros.index_add(-3, pairs, paths.flatten(-5, -3)).unflatten(-3, (num, num))[..., :-1, :-1, :, :]
        return summed.movedim((-2, -1), (-4, -2)).flatten(-4, -3).flatten(-2)

    def _by_units(self) -> Tensor:
        """The Jacobian, from each unit vector."""
        dim = self.value.shape[-1]
        units = torch.eye(dim, dtype=self.value.dtype, device=self.value.device)
        units = units[(slice(None), *(None,) * (self.value.dim() - 1))].expand(dim, *self.value.shape)
        return self.pull(units).movedim(0, -2)


def _around(size: tuple[int, int], side: int) -> Tensor:
    """For each pixel, the numbers of the pixels of a square around it; outside of the image, that of no pixel."""
    num = size[0] * size[1]
    numbers = pad(torch.arange(num).view(1, *size), (side // 2,) * 4, value=num)[0]
    return numbers.unfold(0, side, 1).unfold(1, side, 1).reshape(num, side * side)


class ConvContraction(nn.Module):
    r"""A convolutional network of images whose Lipschitz constant is at most :math:`L`; zero at first.

    A 3 by 3 convolution, a 1 by 1 convolution for each further hidden layer, and a 3 by 3 convolution back to the
    image's channels [1], with the activations of :class:`~pyro_nflows.nets.contraction.Contraction`. Around the image
    there are zeros.

    :param shape: the image's ``(C, H, W)``; ``x`` has shape ``(..., C H W)``.
    :param hidden_dims: channels of the hidden layers.
    :param lipschitz: :math:`L`, shared out evenly among the convolutions.
    :param context_dim: size of a context (see :mod:`pyro_nflows.nets.context`) that each pixel of the first hidden
        layer reads, without a bound.
    :raises ValueError: if ``lipschitz`` is not between 0 and 1.

    Example::

        >>> ConvContraction((2, 4, 4), (8, 8), 0.9)(torch.randn(10, 32)).shape
        torch.Size([10, 32])

    **References**

    [1] J. Behrmann, W. Grathwohl, R. Chen, D. Duvenaud, J. Jacobsen (2019). Invertible Residual Networks.
    """

    def __init__(self, shape: tuple[int, int, int], hidden_dims: Sequence[int], lipschitz: float, context_dim: int = 0):
        super().__init__()
        check_widths("ConvContraction", hidden_dims)
        check_lipschitz("ConvContraction", lipschitz)
        take_context(self, context_dim)
        self.shape = (shape[0], shape[1], shape[2])
        widths = [shape[0], *hidden_dims, shape[0]]
        sizes = [3, *(1 for _ in hidden_dims[1:]), 3] if hidden_dims else [3]
        self.share = lipschitz ** (1 / len(sizes))
        self.hidden = nn.ModuleList(
            nn.Conv2d(a, b, size, padding="same") for a, b, size in zip(widths, widths[1:], sizes)
        )
        self.sharpness = nn.Parameter(torch.zeros(len(hidden_dims))) if hidden_dims else None
        self.told = nn.Parameter(torch.zeros(widths[1], context_dim)) if context_dim else None
        with torch.no_grad():
            for parameter in self.hidden[-1].parameters():
                parameter.zero_()

    def weights(self) -> list[Tensor]:
        """The kernels, each of a spectral norm of at most its share of the constant."""
        raw = [cast(nn.Conv2d, layer).weight for layer in self.hidden]
        return [w * (self.share / convolution_bound(w, self.shape[1:]).clamp(min=self.share)) for w in raw]

    def linearized(self, x: Tensor, weights: list[Tensor] | None = None) -> LinearizedImage:
        """The value at ``x``, ``(..., C H W)``, with its Jacobian; ``weights()`` may be made once for many calls."""
        weights, slopes, shape = self.weights() if weights is None else weights, [], x.shape[:-1]
        h = x.unflatten(-1, self.shape)
        for i, (layer, weight) in enumerate(zip(self.hidden, weights)):
            rows = h.reshape(shape.numel(), *h.shape[-3:])
            h = _in_batch(conv2d(rows, weight, layer.bias, padding="same"), shape)  # type: ignore[arg-type]
            if i == 0 and self.told is not None:
                h = h + linear(context_of(self), self.told)[..., None, None]
            if self.sharpness is not None and i < len(weights) - 1:
                h, slope = swish(h, SHARPNESS * positive(self.sharpness[i]))
                slopes.append(slope)
        return LinearizedImage(h.flatten(-3), weights, slopes, self.shape)

    def forward(self, x: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        return self.linearized(x, weights).value


def _in_batch(rows: Tensor, shape: torch.Size) -> Tensor:
    """Images in one row to a batch of them."""
    return rows.reshape(*shape, *rows.shape[1:])
