from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import Size, channels
from ..nets.mlp import MLP, ConvNet
from ..system.gradients import pullback
from ..transformers import Affine, Transformer
from .base import Layer
from .shapes import need_transformer


class Coupling(Layer):
    r"""One half of the coordinates sets how the other half is transformed.

    .. math:: y_a = x_a, \qquad y_b = \tau(x_b; \theta(x_a))

    with an element-wise monotone :math:`\tau`: :class:`~pyro_nflows.transformers.Shift` (NICE [1]),
    :class:`~pyro_nflows.transformers.Affine` (RealNVP [2]) or
    :class:`~pyro_nflows.transformers.RationalQuadratic` (neural spline flows [3]), and a network
    :math:`\theta` (:class:`~pyro_nflows.nets.mlp.MLP`). Both directions cost one pass of the network; it starts at the
    identity. With one coordinate, :math:`\theta` is a learned constant.

    For images the halves are of the channels, and the network is convolutional.

    :param input_dim: dimension :math:`D`, or an image's ``(C, H, W)``; ``x`` and ``y`` have shape ``(..., D)``,
        ``(..., C H W)`` for images.
    :param transformer: :math:`\tau`.
    :param flip: transform the first half rather than the second.
    :param hidden_dims: widths of the network's hidden layers; for images, their channels.
    :param context_dim: size of a context that the network reads too; then use ``layer.at(context)``.
    :raises ValueError: if ``input_dim < 1``, or an image has less than two channels.

    Example::

        >>> y, log_weight = Coupling(3, Affine())(torch.randn(10, 3))

    **References**

    [1] L. Dinh, D. Krueger, Y. Bengio (2014). NICE: Non-linear Independent Components Estimation.

    [2] L. Dinh, J. Sohl-Dickstein, S. Bengio (2016). Density Estimation using Real NVP.

    [3] C. Durkan, A. Bekasov, I. Murray, G. Papamakarios (2019). Neural Spline Flows.
    """

    def __init__(
        self,
        input_dim: Size,
        transformer: Transformer = Affine(),
        *,
        flip: bool = False,
        hidden_dims: Sequence[int] = (32, 32),
        context_dim: int = 0,
    ):
        num_channels, num_pixels = channels("Coupling", input_dim)
        need_transformer("Coupling", transformer)
        super().__init__(num_channels * num_pixels)
        self.transformer = transformer
        #: An image's ``(C, H, W)``, or None.
        self.shape = None if isinstance(input_dim, int) else tuple(input_dim)
        self.flip = flip and num_channels > 1
        moved = num_channels // 2 if self.flip else num_channels - num_channels // 2
        self.first = num_channels // 2 * num_pixels
        num_params = transformer.num_params
        self.net: MLP | ConvNet
        if isinstance(input_dim, int):
            self.net = MLP(input_dim - moved, moved * num_params, hidden_dims, unbounded=True, context_dim=context_dim)
        else:
            if num_channels < 2:
                raise ValueError(
                    f"Coupling: expected an image of at least two channels, got {input_dim}; Squeeze it first"
                )
            stays = (num_channels - moved, *input_dim[1:])
            self.net = ConvNet(stays, moved, num_params, hidden_dims, context_dim)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The half that stays and the half that moves."""
        first, second = x.split([self.first, self.input_dim - self.first], -1)
        return (second, first) if self.flip else (first, second)

    def _join(self, stays: Tensor, moves: Tensor) -> Tensor:
        return torch.cat([moves, stays] if self.flip else [stays, moves], -1)

    def _params(self, stays: Tensor) -> Tensor:
        return self.net(stays).unflatten(-1, (-1, self.transformer.num_params))

    def _move(self, stays: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        return self.transformer.forward(moves, self._params(stays))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        stays, moves = self._split(x)
        moves, log_slope = self._move(stays, moves)
        return self._join(stays, moves), log_slope.sum(-1)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        stays, moves = self._split(y)
        moves, log_slope = self.transformer.inverse(moves, self._params(stays))
        return self._join(stays, moves), log_slope.sum(-1)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """By blocks: the Jacobian is triangular, with a diagonal block for the half that moves."""
        (_, log_slope), pull = pullback(self._move, *self._split(x))
        stays, moves = self._split(score)
        cost = torch.full_like(log_slope, -weight)
        moves = (moves + pull((torch.zeros_like(moves), cost))[1]) * (-log_slope).exp()
        return self._join(stays + pull((-moves, cost))[0], moves)

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.transformer}, flip={self.flip}"
