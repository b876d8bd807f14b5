from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_functions, check_sizes
from ..nets.causal import PositionNet
from ..nets.context import context_of, take_context
from ..nets.lengths import take_lengths
from ..nets.wavenet import CausalConvNet
from ..system.gradients import pullback
from ..system.shapes import broadcast_shapes
from ..transformers import Affine, Transformer
from .base import Layer
from .shapes import need_transformer


class SequenceAutoregressive(Layer):
    r"""Each position of a sequence is transformed as the earlier inputs say, by a network over positions [1, 2].

    .. math::
        y_{td} = \tau\big(x_{td};\, \theta_{td}(x_1, \dots, x_{t-1}, x_{t1}, \dots, x_{t, d-1}, c_1, \dots, c_t)\big)

    Forward is one pass of a causal network, a dilated convolution or a transformer; the inverse goes position by
    position, each of which costs one step of the network, since what it made of the past is kept.
    ``Inverse(SequenceAutoregressive(...))`` is the direction for data: a density is one pass, a draw :math:`T` steps.
    It starts at the identity.

    Path gradients take a pass back for each position that the network can read, and a triangular solve.

    :param size: positions :math:`T` and coordinates of each, ``(T, D)``; ``x`` and ``y`` have shape ``(..., T D)``,
        the coordinates of a position side by side.
    :param transformer: :math:`\tau`, an element-wise monotone map.
    :param reverse: take positions and coordinates from the last to the first.
    :param net: makes the network: ``net(size, num_params, context_dim=...)``.
    :param context_dim: size :math:`C` of the context of a position; then use ``layer.at(context)``, with a context of
        shape ``(..., T C)``.
    :raises ValueError: if a size is not a positive integer, or there are less positions than the network takes: two,
        of convolutions and transformers.

    Example::

        >>> y, log_weight = SequenceAutoregressive((10, 2))(torch.randn(5, 20))

    **References**

    [1] A. van den Oord et al. (2018). Parallel WaveNet: Fast High-Fidelity Speech Synthesis.

    [2] S. Zhai et al. (2025). Normalizing Flows are Capable Generative Models.
    """

    lengths: Tensor | None

    def __init__(
        self,
        size: tuple[int, int],
        transformer: Transformer = Affine(),
        *,
        reverse: bool = False,
        net: Callable[..., PositionNet] = CausalConvNet,
        context_dim: int = 0,
    ):
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise ValueError(f"SequenceAutoregressive: size must be (positions, coordinates of each), got {size!r}")
        check_sizes("SequenceAutoregressive", num_positions=size[0], coordinates=size[1])
        need_transformer("SequenceAutoregressive", transformer)
        check_functions("SequenceAutoregressive", net=net)
        if isinstance(context_dim, bool) or not isinstance(context_dim, int) or context_dim < 0:
            raise ValueError(f"{type(self).__name__}: context_dim must be 0 or a positive integer, got {context_dim!r}")
        super().__init__(size[0] * size[1])
        self.size, self.transformer, self.reverse = (size[0], size[1]), transformer, reverse
        self.net = net(self.size, transformer.num_params, context_dim=context_dim)
        take_context(self, size[0] * context_dim)
        take_lengths(self, size[0])

    def _ordered(self, flat: Tensor) -> Tensor:
        """``(..., T C)`` to ``(..., T, C)`` in the order in which positions are read."""
        rows = flat.unflatten(-1, (self.size[0], -1))
        return self._turned(rows) if self.reverse else rows

    def _flat(self, rows: Tensor) -> Tensor:
        """The way back, as a tensor of its own, so that draws can be changed in place."""
        return (self._turned(rows) if self.reverse else rows).flatten(-2).clone()

    def _turned(self, rows: Tensor) -> Tensor:
        """Positions up to the end of each sequence, and their coordinates, from the last to the first."""
        if self.lengths is None:
            return rows.flip((-2, -1))
        at = torch.arange(self.size[0], device=rows.device)
        ends = self.lengths[..., None]
        index = torch.where(at < ends, ends - 1 - at, at)[..., None]
        shape = broadcast_shapes(rows.shape, index.shape)
        return rows.flip(-1).expand(shape).gather(-2, index.expand(shape))

    def _context(self) -> Tensor | None:
        return self._ordered(context_of(self)) if self.context_dim else None

    def _counts(self, changed: Tensor, plain: Tensor) -> Tensor:
        """``changed`` up to the end of each sequence, and ``plain`` behind it."""
        if self.lengths is None:
            return changed
        inside = torch.arange(self.size[0], device=changed.device) < self.lengths[..., None]
        return torch.where(inside[..., None], changed, plain)

    def _move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in reading order to the same, with the logarithms of the slopes."""
        params = self.net(x, self._context())
        if params.shape != (*x.shape, self.transformer.num_params):
            raise ValueError(
                f"SequenceAutoregressive: expected net to give {self.transformer.num_params} numbers a coordinate, "
                f"{(*x.shape, self.transformer.num_params)} of {tuple(x.shape)}, got {tuple(params.shape)}"
            )
        y, log_slope = self.transformer.forward(x, params)
        return self._counts(y, x), self._counts(log_slope, torch.zeros_like(log_slope))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self._move(self._ordered(x))
        return self._flat(y), log_slope.sum((-2, -1))

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = self._ordered(y)
        x, log_slope = self.net.solve(rows, self.transformer.inverse, self._context())
        log_slope = self._counts(log_slope, torch.zeros_like(log_slope))
        return self._flat(self._counts(x, rows)), log_slope.sum((-2, -1))

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """By a triangular solve against the Jacobian: the inverse takes as many steps as there are positions."""
        rows = self._ordered(x)
        (out, log_slope), pull = pullback(self._move, rows)
        none = torch.zeros_like(out)
        slope = pull((none, torch.full_like(log_slope, -weight)))[0]
        probes = self._probes(out)
        pulled = torch.func.vmap(lambda probe: pull((probe * torch.ones_like(out), none))[0])(probes)
        cost = (self._ordered(score) + slope).flatten(-2)
        solved = torch.linalg.solve_triangular(self._jacobian(pulled).mT, cost[..., None], upper=True)
        return self._flat(solved[..., 0].unflatten(-1, self.size))

    def _period(self) -> int:
        """How many positions, the own one too, an output may depend on."""
        reach = self.net.reach
        return self.size[0] if reach is None else min(self.size[0], reach + 1)

    def _probes(self, like: Tensor) -> Tensor:
        """Every so many positions one, so that each input moves one of them only: ``(period D, T, D)``."""
        period, (num_positions, dim) = self._period(), self.size
        offset = torch.arange(num_positions, device=like.device) % period
        chosen = (offset == torch.arange(period, device=like.device)[:, None]).to(like.dtype)
        each = torch.eye(dim, dtype=like.dtype, device=like.device)
        return (chosen[:, None, :, None] * each[None, :, None, :]).flatten(0, 1)

    def _jacobian(self, pulled: Tensor) -> Tensor:
        """``(period D, ..., T, D)``, the rows of each probe together, to ``(..., T D, T D)``."""
        period, (num_positions, dim) = self._period(), self.size
        at = torch.arange(num_positions, device=pulled.device)
        pulled = pulled.unflatten(0, (period, dim)).index_select(0, at % period).flatten(0, 1)
        distance = at[:, None] - at
        near = ((distance >= 0) & (distance < period)).repeat_interleave(dim, 0).repeat_interleave(dim, 1)
        return torch.where(near, pulled.flatten(-2).movedim(0, -2), 0.0)

    def extra_repr(self) -> str:
        return f"{self.size}, {self.transformer}, reverse={self.reverse}"
