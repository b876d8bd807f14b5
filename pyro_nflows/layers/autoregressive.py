from collections.abc import Sequence

import torch
from torch import Tensor

from ..nets.context import flat_context
from ..nets.masked import MaskedMLP
from ..system.gradients import pullback
from ..transformers import Affine, Transformer
from .base import Layer
from .shapes import need_transformer


class Autoregressive(Layer):
    r"""Each coordinate is transformed as the earlier inputs say: inverse autoregressive flow (IAF) [1].

    .. math:: y_i = \tau(x_i; \theta_i(x_1, \dots, x_{i-1}))

    Forward is one pass of a masked network; so is the inverse, but coordinate by coordinate: :math:`D` small steps, one
    after the other. ``Inverse(Autoregressive(D))`` is a masked autoregressive flow
    (MAF) [2]. It starts at the identity.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param transformer: :math:`\tau`, an element-wise monotone map.
    :param reverse: take the coordinates in the order :math:`D, \dots, 1`.
    :param hidden_dims: widths of the network's hidden layers.
    :param context_dim: size of a context that the network reads too; then use ``layer.at(context)``.
    :raises ValueError: if ``input_dim < 1``.

    Example::

        >>> y, log_weight = Autoregressive(3)(torch.randn(10, 3))

    **References**

    [1] D. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling (2016). Improved Variational
    Inference with Inverse Autoregressive Flow.

    [2] G. Papamakarios, T. Pavlakou, I. Murray (2017). Masked Autoregressive Flow for Density Estimation.
    """

    def __init__(
        self,
        input_dim: int,
        transformer: Transformer = Affine(),
        *,
        reverse: bool = False,
        hidden_dims: Sequence[int] = (32, 32),
        context_dim: int = 0,
    ):
        super().__init__(input_dim)
        need_transformer("Autoregressive", transformer)
        self.transformer, self.reverse = transformer, reverse
        self.net = MaskedMLP(input_dim, transformer.num_params, hidden_dims, reverse, context_dim)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self.transformer.forward(x, self.net(x))
        return y, log_slope.sum(-1)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_slope = self.net.solve(y, self.transformer.inverse)
        return x, log_slope.sum(-1)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """By a triangular solve against the Jacobian, whose rows come in one batch: the inverse takes D steps."""
        net = flat_context(self.net, x.shape[:-1])
        flat, score = x.reshape(-1, self.input_dim), score.reshape(-1, self.input_dim)
        _, pull = pullback(self.transformer.forward, flat, net(flat))
        none, one = torch.zeros_like(flat), torch.ones_like(flat)
        diagonal, each = pull((one, none))
        along, total = pull((none, -weight * one))
        rows, slope = net.pullbacks(flat, each, total)
        jacobian = rows.permute(1, 2, 0) + torch.diag_embed(diagonal)
        cost = (score + along + slope)[..., None]
        return torch.linalg.solve_triangular(jacobian, cost, upper=not self.reverse).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.transformer}, reverse={self.reverse}"
