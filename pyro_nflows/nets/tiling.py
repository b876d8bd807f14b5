r"""An image cut into tiles, as a bijection: what overlaps is told apart by noise."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_positive, check_sizes, image_shape
from .mlp import ConvNet


class Tiling(nn.Module):
    r"""The tiles that a convolution reads, with noise wherever they hold more than the image.

    The frame of padding is noise. A pixel :math:`x` that lies in :math:`n` tiles becomes :math:`n` numbers, of mean
    :math:`x`, that differ by noise orthogonal to their mean:

    .. math:: t = H (\sqrt n\, x, \sigma_2 \epsilon_2, \dots, \sigma_n \epsilon_n)

    with :math:`H` the reflection that swaps the first axis and the diagonal; without noise, all are :math:`x`. As a map
    of pixels and noise to tiles it is a bijection, with
    :math:`\log|\det| = \sum \tfrac12 \log n + \sum \log\sigma`.

    :param name: the layer to name in errors.
    :param shape: the image's ``(C, H, W)``; ``x`` has shape ``(..., C H W)``.
    :param kernel_size: :math:`k`, the side of a tile.
    :param stride: from one tile to the next, at most :math:`k`.
    :param padding: width of the frame.
    :param noise_scale: :math:`\sigma` at the start.
    :raises ValueError: if a size is not positive, or a pixel is in no tile.

    Example::

        >>> tiling = Tiling("FlowifiedConv", (1, 3, 3), kernel_size=2, stride=1)
        >>> tiling.grid, tiling.noise_dim
        ((2, 2), 7)
        >>> tiling.spread(torch.arange(9.0), torch.zeros(7))[0].round(decimals=4).tolist()
        [0.0, 1.0, 3.0, 4.0]
    """

    owner: Tensor
    order: Tensor
    back: Tensor
    copies: Tensor
    first: Tensor
    log_scale: Tensor

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        kernel_size: int,
        stride: int,
        padding: int = 0,
        noise_scale: float = 0.1,
    ):
        super().__init__()
        num_channels, *sides = image_shape(name, shape)
        check_sizes(name, kernel_size=kernel_size, stride=stride)
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise ValueError(f"{name}: padding must be 0 or a positive integer, got {padding!r}")
        check_positive(name, noise_scale=noise_scale)
        height, width = (_num_tiles(name, side, kernel_size, stride, padding) for side in sides)
        self.grid = (height, width)
        self.tile_dim = num_channels * kernel_size**2
        frame = torch.full((num_channels, *((n - 1) * stride + kernel_size for n in self.grid)), -1)
        pixels = torch.arange(num_channels * sides[0] * sides[1]).view(num_channels, *sides)
        frame[:, padding : padding + sides[0], padding : padding + sides[1]] = pixels
        self._index(frame.flatten(), _tiles(torch.arange(frame.numel()).view(frame.shape), kernel_size, stride))
        self.noise_dim = len(self.owner) - pixels.numel()
        log_scale = torch.full((self.noise_dim,), noise_scale).log()
        if self.noise_dim:
            self.log_scale = nn.Parameter(log_scale)
        else:  # Pyro warns of parameters that do not train
            self.register_buffer("log_scale", log_scale)

    def _index(self, frame: Tensor, owner: Tensor) -> None:
        """From the frame's pixels, -1 for noise, and the pixel at each place of the tiles: where each place is from."""
        self.num_owners = len(frame)
        first = torch.zeros_like(owner, dtype=torch.bool)
        by_owner = owner.argsort(stable=True)
        first[by_owner] = owner[by_owner].diff(prepend=owner.new_full((1,), -1)) != 0
        order = frame[owner]
        noise = (order < 0) | ~first
        order[noise] = torch.arange(int(noise.sum())) + int((frame >= 0).sum())
        parts = {"owner": owner, "first": first, "order": order, "back": order.argsort()}
        for key, part in {**parts, "copies": owner.bincount()[owner]}.items():
            self.register_buffer(key, part, persistent=False)

    def _reflected(self, t: Tensor) -> Tensor:
        """The numbers of each pixel by the reflection that swaps their first axis and their diagonal."""
        if self.num_owners == t.shape[-1]:  # no overlap
            return t
        root = self.copies.to(t).sqrt()
        axis = self.first.to(t) - 1 / root
        size = torch.where(self.copies > 1, 1 - 1 / root, 1.0)
        sums = t.new_zeros(*t.shape[:-1], self.num_owners).index_add(-1, self.owner, axis * t)
        return t - axis / size * sums[..., self.owner]

    def _scale(self, like: Tensor) -> Tensor:
        """By what pixels and noise are multiplied before the reflection."""
        root = torch.where(self.first, self.copies.to(like).sqrt(), 1.0)[self.back]
        num_pixels = len(root) - self.noise_dim
        return torch.cat([root[:num_pixels], root[num_pixels:] * self.log_scale.exp()])

    def log_det(self, like: Tensor) -> Tensor:
        """The map's log-determinant."""
        return self._scale(like).log().sum()

    def spread(self, x: Tensor, noise: Tensor) -> Tensor:
        """Pixels and noise to tiles, ``(..., num_tiles, tile_dim)``; in a tile, channels come first."""
        t = (torch.cat([x, noise], -1) * self._scale(x))[..., self.order]
        return self._reflected(t).unflatten(-1, (-1, self.tile_dim))

    def gather(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles to pixels and noise."""
        source = self._reflected(tiles.flatten(-2))[..., self.back] / self._scale(tiles)
        return source[..., : source.shape[-1] - self.noise_dim], source[..., source.shape[-1] - self.noise_dim :]

    def carry(self, score: Tensor, noise: Tensor) -> Tensor:
        """Gradients in pixels and in noise to gradients in tiles: by the map's inverse, transposed."""
        t = (torch.cat([score, noise], -1) / self._scale(score))[..., self.order]
        return self._reflected(t).unflatten(-1, (-1, self.tile_dim))


class TileNet(nn.Module):
    """A :class:`~pyro_nflows.nets.mlp.ConvNet` of an image whose pixels are rows: ``(..., num_tiles, input_dim)``.

    :param grid: how many tiles there are, down and across.
    :param input_dim: numbers of each tile.
    :param output_dim: of the result.
    :param hidden_dims: channels of the hidden layers.

    Example::

        >>> TileNet((3, 2), 4, 5, (16,))(torch.randn(10, 6, 4)).shape
        torch.Size([10, 6, 5])
    """

    def __init__(self, grid: tuple[int, int], input_dim: int, output_dim: int, hidden_dims: Sequence[int]):
        super().__init__()
        self.net = ConvNet((input_dim, *grid), output_dim, 1, hidden_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mT.flatten(-2)).unflatten(-1, (-1, x.shape[-2])).mT


def _num_tiles(name: str, side: int, kernel_size: int, stride: int, padding: int) -> int:
    """How many tiles fit in a side."""
    number = (side + 2 * padding - kernel_size) // stride + 1
    if stride > kernel_size or number < 1 or (number - 1) * stride + kernel_size < side + padding:
        raise ValueError(
            f"{name}: tiles of {kernel_size} at stride {stride} with padding {padding} do not reach every pixel of a "
            f"side of {side}; what is never read has no density, so pad more or step less"
        )
    return number


def _tiles(frame: Tensor, kernel_size: int, stride: int) -> Tensor:
    """All tiles of ``(C, H, W)``, one after the other."""
    tiles = frame.unfold(1, kernel_size, stride).unfold(2, kernel_size, stride)
    return tiles.permute(1, 2, 0, 3, 4).flatten()
