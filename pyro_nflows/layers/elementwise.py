import torch
from torch import Tensor, nn

from ..checks import check_positive
from ..system.gradients import pullback
from ..transformers import RationalQuadratic, Transformer
from .base import Layer
from .shapes import expanded, need_transformer


class LocScale(Layer):
    r"""Shift and scale each coordinate: the mean-field end of a flow.

    .. math:: y = \mu + e^{s} x, \qquad \log w = \sum_i s_i

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param init_loc: initial :math:`\mu`, broadcast to ``(D,)``; zero unless given.
    :param init_scale: initial :math:`e^s`, a positive number.
    :raises ValueError: if ``input_dim < 1`` or ``init_scale <= 0``.

    Example::

        >>> LocScale(3, init_scale=0.5)(torch.ones(3))[0]
        tensor([0.5000, 0.5000, 0.5000], grad_fn=<AddBackward0>)
    """

    def __init__(self, input_dim: int, init_loc: Tensor | float = 0.0, init_scale: float = 1.0):
        super().__init__(input_dim)
        check_positive("LocScale", init_scale=init_scale)
        self.loc = nn.Parameter(expanded(init_loc, input_dim))
        self.log_scale = nn.Parameter(torch.full_like(self.loc, init_scale).log())

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.loc + self.log_scale.exp() * x, self.log_scale.sum().expand(x.shape[:-1])

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (y - self.loc) / self.log_scale.exp(), self.log_scale.sum().expand(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return score / self.log_scale.exp()


class Elementwise(Layer):
    r"""Every coordinate by a monotone map of its own: :math:`y_i = \tau(x_i; \theta_i)`.

    At the end of a flow, it gives each coordinate its marginal; what comes before gives the dependence (a copula).

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param transformer: :math:`\tau`.
    :raises ValueError: if ``input_dim < 1``.

    Example::

        >>> y, log_weight = Elementwise(3)(torch.randn(10, 3))
    """

    def __init__(self, input_dim: int, transformer: Transformer = RationalQuadratic(16)):
        super().__init__(input_dim)
        need_transformer("Elementwise", transformer)
        self.transformer = transformer
        self.params = nn.Parameter(torch.zeros(input_dim, transformer.num_params))

    def fan_in(self, name: str) -> int:
        """Numbers of a parameter that are added up: none."""
        return 1

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self.transformer.forward(x, self.params.expand(*x.shape, -1))
        return y, log_slope.sum(-1)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_slope = self.transformer.inverse(y, self.params.expand(*y.shape, -1))
        return x, log_slope.sum(-1)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """The Jacobian is diagonal."""
        (_, log_slope), pull = pullback(lambda x: self.transformer.forward(x, self.params.expand(*x.shape, -1)), x)
        (slope,) = pull((torch.zeros_like(log_slope), torch.ones_like(log_slope)))
        return (score - weight * slope) * (-log_slope).exp()

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.transformer}"
