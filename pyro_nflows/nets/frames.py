"""A causal network over frames: each frame's parameters from the last frames, at several scales."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..checks import check_sizes, image_shape
from .causal import shifted
from .mlp import ConvNet

_Shape = tuple[int, int, int]


class FrameNet(nn.Module):
    r"""Convolutional networks over frames, each of which is made of images of several sizes [1].

    .. math:: \theta_t^{(l)} =
        \mathrm{net}_l\big(x_{t-1}^{(l)}, \dots, x_{t-n}^{(l)}, x_t^{(1)}, \dots, x_t^{(l-1)}\big)

    Part :math:`l` of a frame has the parameters that its last :math:`n` values, and the frame's parts before it, say;
    those are enlarged to its size. Before the first frame there is nothing: the networks read zeros, and for each of
    the :math:`n` whether it is there. No parameter depends on the number of frames, and all start at zero. One after
    the other (``solve``), the last :math:`n` frames are kept.

    :param size: frames :math:`T` and coordinates of each, ``(T, D)``.
    :param num_params: numbers for each coordinate.
    :param shapes: the parts' ``(C, H, W)``, the smallest first, in the order of a frame's coordinates.
    :param num_past: :math:`n`.
    :param hidden_dims: channels of the hidden layers.
    :param context_dim: must be 0.
    :raises ValueError: if a size is not a positive integer, the parts are no :math:`D` coordinates, a part's sides are
        no multiples of the sides of a part before it, or a context is asked for.

    Example::

        >>> net = FrameNet((5, 24), 2, [(8, 1, 1), (4, 2, 2)])
        >>> net(torch.randn(10, 5, 24)).shape
        torch.Size([10, 5, 24, 2])

    **References**

    [1] M. Kumar et al. (2020). VideoFlow: A Conditional Flow-Based Model for Stochastic Video Generation.
    """

    def __init__(
        self,
        size: tuple[int, int],
        num_params: int,
        shapes: Sequence[_Shape],
        num_past: int = 2,
        hidden_dims: Sequence[int] = (32,),
        context_dim: int = 0,
    ):
        super().__init__()
        num_frames, dim = size
        check_sizes("FrameNet", num_frames=num_frames, coordinates=dim, num_params=num_params, num_past=num_past)
        if context_dim:
            raise ValueError(f"FrameNet: a network over frames takes no context, got context_dim={context_dim}")
        self.size, self.num_params, self.reach = (num_frames, dim), num_params, num_past
        self.shapes = _checked(shapes, dim)
        self.parts = [math.prod(shape) for shape in self.shapes]
        self.nets = nn.ModuleList()
        before = 0
        for channels, height, width in self.shapes:
            read = num_past * (channels + 1) + before
            self.nets.append(ConvNet((read, height, width), channels, num_params, hidden_dims, skip=True))
            before += channels

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x (..., T, D)`` to ``(..., T, D, num_params)``."""
        lags = [shifted(x, lag) for lag in range(1, self.reach + 1)]
        ones = x.new_ones(x.shape[-2], 1)
        there = [shifted(ones, lag) for lag in range(1, self.reach + 1)]
        now = x.split(self.parts, -1)
        params = [self._params(level, lags, there, now[:level]) for level in range(len(self.shapes))]
        return torch.cat(params, -2)

    def solve(
        self,
        y: Tensor,
        invert: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Frame by frame, and part by part, the ``x`` with ``x_t = invert(y_t, frame t of self(x))``.

        :param y: ``(..., T, D)``.
        :param invert: ``(..., n)`` and ``(..., n, num_params)`` to two of ``(..., n)``, of which the first is a part
            of ``x``.
        :return: both, ``(..., T, D)``.
        """
        nothing = torch.zeros_like(y[..., 0, :])
        lags, there = [nothing] * self.reach, [nothing.new_zeros(1)] * self.reach
        frames: list[tuple[Tensor, Tensor]] = []
        for given in y.unbind(-2):
            parts: list[tuple[Tensor, Tensor]] = []
            for level, part in enumerate(given.split(self.parts, -1)):
                params = self._params(level, lags, there, [x for x, _ in parts])
                parts.append(invert(part, params))
            frames.append((torch.cat([x for x, _ in parts], -1), torch.cat([other for _, other in parts], -1)))
            lags, there = [frames[-1][0], *lags[:-1]], [torch.ones_like(there[0]), *there[:-1]]
        x, others = (torch.stack(each, -2) for each in zip(*frames))
        return x, others

    def _params(self, level: int, lags: Sequence[Tensor], there: Sequence[Tensor], now: Sequence[Tensor]) -> Tensor:
        """A part's parameters ``(..., n, num_params)``.

        :param lags: the frames one back, two back and so on, ``(..., D)``.
        :param there: for each, whether it is there, ``(..., 1)``.
        :param now: the frame's parts before this one.
        """
        _, height, width = self.shapes[level]
        past = [lag.split(self.parts, -1)[level] for lag in lags]
        flags = [flag.expand(*lag.shape[:-1], height * width) for flag, lag in zip(there, lags)]
        small = [_enlarged(part, shape, (height, width)) for part, shape in zip(now, self.shapes)]
        params: Tensor = self.nets[level](torch.cat([*past, *flags, *small], -1))
        return params.unflatten(-1, (-1, self.num_params))

    def extra_repr(self) -> str:
        return f"{self.size}, {self.shapes}, num_past={self.reach}"


def _checked(shapes: Sequence[_Shape], dim: int) -> list[_Shape]:
    """The parts' shapes, if they make a frame."""
    found = [image_shape("FrameNet", shape) for shape in shapes]
    if sum(math.prod(shape) for shape in found) != dim:
        raise ValueError(f"FrameNet: expected images of {dim} coordinates in all, got {found}")
    for small, large in zip(found, found[1:]):
        if large[1] % small[1] or large[2] % small[2]:
            raise ValueError(f"FrameNet: expected each image to be a multiple of the one before it, got {found}")
    return found


def _enlarged(flat: Tensor, shape: _Shape, size: tuple[int, int]) -> Tensor:
    """A flat image whose pixels are repeated until it has a size, flat again."""
    image = flat.unflatten(-1, shape)
    times = (size[0] // shape[1], size[1] // shape[2])
    blocks = image[..., :, None, :, None].expand(*image.shape[:-1], times[0], image.shape[-1], times[1])
    return blocks.flatten(-5)
