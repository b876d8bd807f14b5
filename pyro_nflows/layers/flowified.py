from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..checks import check_sizes
from ..nets.mlp import MLP
from ..nets.rotation import Rotation, decomposed
from ..nets.tiling import TileNet, Tiling
from ..numerics import normal_log_prob, soft_bound, standard_normal_log_prob
from ..system.gradients import pullback
from .base import Exactness, Layer, Scored


class FlowifiedLinear(Layer):
    r"""A dense layer made a flow, between any two dimensions: flowification [1].

    .. math:: y = V (e^s \odot h) + b, \qquad h = U x

    with rotations :math:`U, V`; without noise, it is the dense layer of weight :math:`V\, \mathrm{diag}(e^s)\, U`.

    - As many outputs as inputs: a bijection, :math:`\log w = \sum s`.
    - More outputs: :math:`h = (U x, \epsilon)` with :math:`\epsilon \sim N(0, I)`,
      :math:`\log w = \sum s - \log N(\epsilon; 0, I)`. The inverse drops the noise.
    - Fewer outputs: only the first part of :math:`U x = (h, d)` goes on, and
      :math:`\log w = \sum s + \log N(d; \mu(h), \mathrm{diag}\,\sigma(h)^2)`. The inverse draws :math:`d`.

    :class:`~pyro_nflows.layers.Inverse` of a network of such layers is a density of the network's *input*. (In [1] the
    padding is uniform. Here it is normal, for with bounded noise the weights are right on a slab only.) With equal
    dimensions, or from few to many and back, it starts at the identity.

    :param input_dim: dimension of ``x``.
    :param output_dim: dimension of ``y``; the same unless given.
    :param hidden_dims: widths of the network of :math:`\mu` and :math:`\sigma`.
    :raises ValueError: if a dimension is not a positive integer.

    Example::

        >>> layer = FlowifiedLinear(2, 5)
        >>> y, log_weight = layer(torch.randn(10, 2), torch.randn(10, layer.noise_dim))
        >>> FlowifiedLinear(5, 2)(torch.randn(10, 5))[0].shape
        torch.Size([10, 2])

    **References**

    [1] B. Máté, S. Klein, T. Golling, F. Fleuret (2022). Flowification: Everything is a Normalizing Flow.
    """

    def __init__(self, input_dim: int, output_dim: int | None = None, *, hidden_dims: Sequence[int] = (32, 32)):
        super().__init__(input_dim, output_dim)
        more = self.output_dim - input_dim
        self.exactness = Exactness.PROPER if more else Exactness.EXACT
        self.noise_dim, self.inverse_noise_dim = max(0, more), max(0, -more)
        self.first, self.last = Rotation(input_dim), Rotation(self.output_dim)
        self.log_scale = nn.Parameter(torch.zeros(self.output_dim))
        self.bias = nn.Parameter(torch.zeros(self.output_dim))
        self.dropped: MLP | TileNet | None = MLP(self.output_dim, -2 * more, hidden_dims) if more < 0 else None

    def weight(self) -> Tensor:
        """The matrix of the layer without noise, ``(output_dim, input_dim)``."""
        rank = min(self.input_dim, self.output_dim)
        return (self.last()[:, :rank] * self.log_scale[:rank].exp()) @ self.first()[:rank]

    @torch.no_grad()
    def assign(self, weight: Tensor, bias: Tensor | None = None, noise_scale: float = 1.0) -> None:
        """Become the dense layer of a given weight and bias.

        :param weight: ``(output_dim, input_dim)``, of full rank.
        :param bias: ``(output_dim,)``; zero unless given.
        :param noise_scale: standard deviation of the padding, if there is any.
        :raises ValueError: if the weight is singular.
        """
        last, values, first = decomposed("FlowifiedLinear", weight)
        self.first.restart(first)
        self.last.restart(last)
        noise = values.new_full((self.noise_dim,), noise_scale)
        self.log_scale.copy_(torch.cat([values, noise]).log())
        self.bias.zero_() if bias is None else self.bias.copy_(bias)

    def _log_r(self, kept: Tensor, dropped: Tensor) -> Tensor:
        return normal_log_prob(dropped, *self._gaussian(kept))

    def _gaussian(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of what is dropped."""
        loc, log_scale = cast(nn.Module, self.dropped)(kept).chunk(2, -1)
        return loc, soft_bound(log_scale, 4.0)

    def _onward(self, h: Tensor) -> Tensor:
        return (self.log_scale.exp() * h) @ self.last().T + self.bias

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first rotation's result: what goes on, and what is dropped."""
        h = x @ self.first().T
        return h[..., : self.output_dim], h[..., self.output_dim :]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, dropped = self._split(x)
        log_weight = self.log_scale.sum().expand(x.shape[:-1])
        if self.dropped is not None:
            log_weight = log_weight + self._log_r(h, dropped)
        elif noise is not None:
            h, log_weight = torch.cat([h, noise], -1), log_weight - standard_normal_log_prob(noise)
        return self._onward(h), log_weight

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = ((y - self.bias) @ self.last()) * (-self.log_scale).exp()
        log_weight = self.log_scale.sum().expand(y.shape[:-1])
        if self.dropped is not None:
            loc, log_scale = self._gaussian(h)
            dropped = loc + log_scale.exp() * cast(Tensor, noise)
            h, log_weight = torch.cat([h, dropped], -1), log_weight + normal_log_prob(dropped, loc, log_scale)
        elif self.noise_dim:
            h, padding = h[..., : self.input_dim], h[..., self.input_dim :]
            log_weight = log_weight - standard_normal_log_prob(padding)
        return h @ self.first(), log_weight

    def _carry(self, score: Tensor) -> Tensor:
        """A gradient in ``h`` to one in ``y``."""
        return (score * (-self.log_scale).exp()) @ self.last().T

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        if self.input_dim != self.output_dim:
            return super().transport(x, y, score, weight)
        return self._carry(score @ self.first().T)

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        """The pass in the extended space: with the noise, or with what is dropped, it is a bijection."""
        y, log_weight = self(x, noise)
        if self.dropped is not None:
            return self._scored_dropping(x, y, log_weight, score, reverse)
        pads = [] if noise is None else [-noise.detach()]
        with torch.no_grad():
            score = self._carry(torch.cat([self._split(score)[0], *pads], -1))
            if reverse.numel():
                reverse = self._carry(torch.cat([self._split(reverse)[0], *(0 * pad for pad in pads)], -1))
        return Scored(y, log_weight, score, reverse)

    def _scored_dropping(self, x: Tensor, y: Tensor, log_weight: Tensor, score: Tensor, reverse: Tensor) -> Scored:
        h, dropped = self._split(x)
        log_r = self._log_r(h, dropped)
        index_reverse: Tensor | float = 0.0
        with torch.no_grad():
            score, along = self._split(score)
            if reverse.numel():
                value, pull = pullback(self._log_r, h.detach(), dropped.detach())
                reverse, rest = (a + b for a, b in zip(self._split(reverse), pull(torch.ones_like(value))))
                reverse = self._carry(reverse)
        if reverse.numel():
            index_reverse = (rest.detach() * dropped).sum(-1)
        index_score = (along * dropped).sum(-1)
        return Scored(y, log_weight, self._carry(score).detach(), reverse.detach(), index_score, index_reverse, log_r)

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.output_dim}"


class FlowifiedConv(Layer):
    r"""A convolution made a flow [1]: cut the image into tiles, then :class:`FlowifiedLinear` on each.

    Where tiles overlap or reach beyond the image, they hold more numbers than the image, and noise fills the rest: the
    frame is noise, and the copies of a pixel differ by noise orthogonal to their mean. Without noise, it is
    ``nn.Conv2d``. With ``stride = kernel_size``, tiling only permutes.

    :param shape: the image's ``(C, H, W)``; ``x`` has shape ``(..., C H W)``.
    :param output_channels: :math:`C'`; ``y`` is an image of ``output_shape``, flat.
    :param kernel_size: side of a tile.
    :param stride: from one tile to the next; the kernel's size unless given.
    :param padding: width of the frame.
    :param hidden_dims: channels of the network, convolutional too, that says what the dense layer drops.
    :param noise_scale: standard deviation of the tiles' noise at the start.
    :raises ValueError: if a size is not positive, or a pixel is in no tile.

    Example::

        >>> layer = FlowifiedConv((1, 8, 8), 4, kernel_size=2)
        >>> layer.output_shape, layer.noise_dim, layer.inverse_noise_dim
        ((4, 4, 4), 0, 0)
        >>> layer = FlowifiedConv((1, 8, 8), 4, kernel_size=3, stride=2, padding=1)
        >>> y, log_weight = layer(torch.randn(10, 64), torch.randn(10, layer.noise_dim))

    **References**

    [1] B. Máté, S. Klein, T. Golling, F. Fleuret (2022). Flowification: Everything is a Normalizing Flow.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        output_channels: int,
        kernel_size: int,
        stride: int | None = None,
        padding: int = 0,
        *,
        hidden_dims: Sequence[int] = (32, 32),
        noise_scale: float = 0.1,
    ):
        stride = kernel_size if stride is None else stride
        tiling = Tiling("FlowifiedConv", shape, kernel_size, stride, padding, noise_scale)
        rows, columns = tiling.grid
        num_pixels = shape[0] * shape[1] * shape[2]
        check_sizes("FlowifiedConv", output_channels=output_channels)
        super().__init__(num_pixels, output_channels * rows * columns)
        self.shape, self.output_shape = tuple(shape), (output_channels, rows, columns)
        self.tiling, self.num_tiles = tiling, rows * columns
        self.linear = FlowifiedLinear(tiling.tile_dim, output_channels, hidden_dims=hidden_dims)
        if self.linear.dropped is not None:
            num_dropped = tiling.tile_dim - output_channels
            self.linear.dropped = TileNet(tiling.grid, output_channels, 2 * num_dropped, hidden_dims)
        self.noise_dim = tiling.noise_dim + self.num_tiles * self.linear.noise_dim
        self.inverse_noise_dim = self.num_tiles * self.linear.inverse_noise_dim
        self.exactness = Exactness.PROPER if self.noise_dim or self.inverse_noise_dim else Exactness.EXACT

    def _shares(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The noise of the tiling and, tile by tile, of the dense layer."""
        noise = x[..., :0] if noise is None else noise
        mine, rest = noise[..., : self.tiling.noise_dim], noise[..., self.tiling.noise_dim :]
        return mine, self._by_tile(rest) if rest.shape[-1] else None

    def _by_tile(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.num_tiles, -1))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mine, rest = self._shares(x, noise)
        y, log_weight = self.linear(self.tiling.spread(x, mine), rest)
        return y.mT.flatten(-2), log_weight.sum(-1) + self.tiling.log_det(x) - standard_normal_log_prob(mine)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = y.unflatten(-1, (-1, self.num_tiles)).mT
        tiles, log_weight = self.linear.inverse(rows, None if noise is None else self._by_tile(noise))
        x, mine = self.tiling.gather(tiles)
        return x, log_weight.sum(-1) + self.tiling.log_det(y) - standard_normal_log_prob(mine)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        if self.noise_dim or self.inverse_noise_dim:
            return super().transport(x, y, score, weight)
        score = self.linear.transport(x, y, self.tiling.carry(score, score[..., :0]))
        return score.mT.flatten(-2)

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        """Tiling and noise make a bijection; then as for the dense layer, tile by tile."""
        mine, rest = self._shares(x, noise)
        with torch.no_grad():
            score = self.tiling.carry(score, -mine)
            reverse = self.tiling.carry(reverse, 0 * mine) if reverse.numel() else reverse
        step = self.linear.scored(self.tiling.spread(x, mine), rest, score, reverse)
        log_weight = step.log_weight.sum(-1) + self.tiling.log_det(x) - standard_normal_log_prob(mine)
        sums = [part if isinstance(part, float) else part.sum(-1) for part in step[4:]]
        points = [part.mT.flatten(-2) if part.numel() else part for part in (step.y, step.score, step.reverse)]
        return Scored(points[0], log_weight, points[1], points[2], *sums)

    def extra_repr(self) -> str:
        return f"{self.shape} -> {self.output_shape}"
