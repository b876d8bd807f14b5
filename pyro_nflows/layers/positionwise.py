from typing import cast

import torch
from torch import Tensor

from ..checks import check_sizes
from ..nets.lengths import take_lengths
from .base import Layer, Scored


class Positionwise(Layer):
    r"""Each position of a sequence by the same layer, such as each frame of a video.

    .. math:: y_t = f(x_t), \qquad \log w = \sum_t \log w_t

    Dependence between positions is for other layers of the flow. Auxiliary variables are each position's own.

    :param layer: :math:`f`, of a position's coordinates.
    :param num_positions: :math:`T`; ``x`` has shape ``(..., T D)``, the coordinates of a position side by side.
    :raises ValueError: if there is no position, or the layer takes a context.

    Example::

        >>> from pyro_nflows.layers import Coupling
        >>> y, log_weight = Positionwise(Coupling(3), 5)(torch.randn(10, 15))
    """

    lengths: Tensor | None

    def __init__(self, layer: Layer, num_positions: int):
        check_sizes("Positionwise", num_positions=num_positions)
        super().__init__(num_positions * layer.input_dim, num_positions * layer.output_dim)
        if any("context" in part._buffers for part in layer.modules()):
            raise ValueError(f"Positionwise: expected a layer without a context, but {type(layer).__name__} takes one")
        self.layer = layer
        self.exactness = layer.exactness
        self.noise_dim = num_positions * layer.noise_dim
        self.inverse_noise_dim = num_positions * layer.inverse_noise_dim
        if layer.input_dim == layer.output_dim:
            take_lengths(self, num_positions)
        self.num_positions = num_positions

    @property
    def has_inverse(self) -> bool:
        return self.layer.has_inverse

    def _rows(self, flat: Tensor) -> Tensor:
        """``(..., T C)`` to ``(..., T, C)``."""
        return flat.reshape(*flat.shape[:-1], self.num_positions, flat.shape[-1] // self.num_positions)

    def _noise(self, noise: Tensor | None) -> Tensor | None:
        return None if noise is None else self._rows(noise)

    def _counts(self, changed: Tensor, plain: Tensor) -> Tensor:
        """``changed`` up to the end of each sequence, and ``plain`` behind it; flat."""
        if self._buffers.get("lengths") is not None:
            changed = torch.where(self._inside(changed)[..., None], changed, plain)
        return changed.flatten(-2)

    def _total(self, each: Tensor) -> Tensor:
        """The sum over positions up to the end of each sequence."""
        if self._buffers.get("lengths") is not None:
            each = torch.where(self._inside(each), each, 0.0)
        return each.sum(-1)

    def _inside(self, like: Tensor) -> Tensor:
        lengths = cast(Tensor, self._buffers["lengths"])
        return torch.arange(self.num_positions, device=like.device) < lengths[..., None]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = self._rows(x)
        y, log_weight = self.layer(rows, self._noise(noise))
        return self._counts(y, rows), self._total(log_weight)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = self._rows(y)
        x, log_weight = self.layer.inverse(rows, self._noise(noise))
        return self._counts(x, rows), self._total(log_weight)

    def initialize(self, y: Tensor) -> Tensor:
        """From all positions of a batch together."""
        self.layer.initialize(self._rows(y).flatten(0, -2))
        with torch.no_grad():
            return self.inverse(y)[0]

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        rows = self._rows(score)
        return self._counts(self.layer.transport(self._rows(x), self._rows(y), rows, weight), rows)

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        rows = [self._rows(t) for t in (x, score, reverse)]
        step = self.layer.scored(rows[0], self._noise(noise), *rows[1:])
        points = [self._counts(new, old) for new, old in zip((step.y, step.score, step.reverse), rows)]
        sums = [part if isinstance(part, float) else self._total(part) for part in step[4:]]
        return Scored(points[0], self._total(step.log_weight), points[1], points[2], *sums)

    def extra_repr(self) -> str:
        return f"num_positions={self.num_positions}"
