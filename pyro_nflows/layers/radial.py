import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from ..numerics import above_minus_one, positive
from .base import Layer


class Radial(Layer):
    r"""Push away from, or pull towards, a learned centre [1].

    .. math:: y = x + \hat b\, h (x - c), \qquad h = 1 / (a + r), \quad r = |x - c|, \quad \hat b > -a

    The log-weight is :math:`(D - 1) \log(1 + \hat b h) + \log(1 + \hat b h - \hat b r h^2)`, at cost
    :math:`O(D)`. The inverse is a quadratic equation in :math:`r`. It starts at the identity (:math:`\hat b = 0`).

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :raises ValueError: if ``input_dim < 1``.

    Example::

        >>> y, log_weight = Radial(3)(torch.randn(10, 3))

    **References**

    [1] D. Rezende, S. Mohamed (2015). Variational Inference with Normalizing Flows.
    """

    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.center = nn.Parameter(0.1 * torch.randn(input_dim))
        self.log_a = nn.Parameter(torch.zeros(()))
        self.b = nn.Parameter(torch.zeros(()))

    def _coefficients(self) -> tuple[Tensor, Tensor]:
        """:math:`a` and :math:`\\hat b`."""
        a = positive(self.log_a)
        return a, a * above_minus_one(self.b)

    def _log_weight(self, r: Tensor, a: Tensor, b: Tensor) -> Tensor:
        h = 1 / (a + r)
        return (self.input_dim - 1) * torch.log1p(b * h) + torch.log1p(a * b * h.square())

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b = self._coefficients()
        offset = x - self.center
        r = vector_norm(offset, dim=-1)
        return x + (b / (a + r))[..., None] * offset, self._log_weight(r, a, b)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b = self._coefficients()
        offset = y - self.center
        length = vector_norm(offset, dim=-1)
        # r (1 + b / (a + r)) = length, a quadratic whose positive root is taken without cancellation.
        half = 0.5 * (a + b - length)
        root = (half.square() + a * length).sqrt()
        r = torch.where(half > 0, a * length / (half.abs() + root), root - half)
        return self.center + offset / (1 + b / (a + r))[..., None], self._log_weight(r, a, b)
