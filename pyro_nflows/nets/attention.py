"""A causal transformer, for all positions at once and one after the other with a key-value cache."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..checks import check_sizes
from .causal import CausalNet


class CausalTransformer(CausalNet):
    r"""Blocks of causal attention [1] and a small network, each added to what it reads.

    .. math:: h_t \leftarrow h_t + O \sum_{s \leq t} a_{ts} V n(h_s), \quad a_{ts} \propto
        \exp\big((Q n(h_t))^\top P_{t - s} K n(h_s) / \sqrt{k}\big)

    with :math:`n` a normalisation, and :math:`P` rotations by angles proportional to the distance [2], so that no
    parameter depends on the number of positions. Position by position, keys and values of the past are kept.

    :param size: positions :math:`T` and coordinates of each, ``(T, D)``.
    :param num_params: numbers for each coordinate.
    :param width: of each position's features; a multiple of twice the number of heads.
    :param num_blocks: how many blocks.
    :param num_heads: of attention.
    :param per_position: whether the biases of the first layer and the last one are different at each position.
    :param context_dim: numbers in the context of a position.
    :raises ValueError: if a size is not a positive integer, there are less than two positions, or the width is no
        multiple of twice the number of heads.

    Example::

        >>> CausalTransformer((10, 2), 3, width=8)(torch.randn(5, 10, 2)).shape
        torch.Size([5, 10, 2, 3])

    **References**

    [1] A. Vaswani et al. (2017). Attention Is All You Need.

    [2] J. Su et al. (2021). RoFormer: Enhanced Transformer with Rotary Position Embedding.
    """

    is_steady = False

    def __init__(
        self,
        size: tuple[int, int],
        num_params: int,
        width: int = 16,
        num_blocks: int = 2,
        num_heads: int = 2,
        per_position: bool = False,
        context_dim: int = 0,
    ):
        super().__init__(size, num_params, width, per_position, context_dim)
        check_sizes("CausalTransformer", num_blocks=num_blocks, num_heads=num_heads)
        if width % (2 * num_heads):
            raise ValueError(
                f"CausalTransformer: width must be a multiple of 2 * num_heads = {2 * num_heads}, got {width}"
            )
        self.num_heads = num_heads
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_blocks))

    def body(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h)
        return h

    def begin(self, rows: Tensor) -> list[Tensor]:
        shape = (*rows.shape[:-1], self.num_heads, 0, self.width // self.num_heads)
        return [rows.new_zeros(shape)] * 2 * len(self.blocks)

    def advance(self, h: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        kept: list[Tensor] = []
        for block, keys, values in zip(self.blocks, past[::2], past[1::2]):
            h, *own = cast(_Block, block).advance(h, keys, values)
            kept += own
        return h, kept

    def extra_repr(self) -> str:
        return f"{self.size}"


class _Block(nn.Module):
    """Attention, then a perceptron of twice the width, each added to what it reads."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        # Adding the same vector to every key changes no weight of attention, so keys have no bias.
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for bias in (True, False, True))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """All positions, ``(..., T, width)``."""
        query, key, value = self._read(h, 0)
        order = torch.arange(h.shape[-2], device=h.device)
        scores = _scores(query, key).masked_fill(order > order[:, None], -math.inf)
        return self._moved(h, scores, value)

    def advance(self, h: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next position, ``(..., width)``, with keys and values ``(..., heads, t, width / heads)`` before it; and
        those with its own."""
        h = h[..., None, :]
        query, key, value = self._read(h, keys.shape[-2])
        keys, values = torch.cat([keys, key], -2), torch.cat([values, value], -2)
        return self._moved(h, _scores(query, keys), values)[..., 0, :], keys, values

    def _read(self, h: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the positions from ``start`` on."""
        normed = self.norms[0](h)
        angles = _angles(start, h.shape[-2], h.shape[-1] // self.num_heads, h)
        query, key = (_rotated(self._heads(part(normed)), angles) for part in (self.query, self.key))
        return query, key, self._heads(self.value(normed))

    def _moved(self, h: Tensor, scores: Tensor, value: Tensor) -> Tensor:
        mixed = (scores.softmax(-1) @ value).movedim(-3, -2).flatten(-2)
        h = h + self.out(mixed)
        return h + self.down(silu(self.up(self.norms[1](h))))

    def _heads(self, h: Tensor) -> Tensor:
        """``(..., T, width)`` to ``(..., heads, T, width / heads)``."""
        return h.unflatten(-1, (self.num_heads, -1)).movedim(-2, -3)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.mT / math.sqrt(query.shape[-1])


def _angles(start: int, length: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(length, dim / 2)`` of the positions from ``start`` on."""
    speed = 1e4 ** (-torch.arange(0, dim, 2, dtype=like.dtype, device=like.device) / dim)
    angle = torch.arange(start, start + length, dtype=like.dtype, device=like.device)[:, None] * speed
    return angle.cos(), angle.sin()


def _rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair of coordinates turned by its angle."""
    (cos, sin), (a, b) = angles, x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
