import torch
from torch import Tensor, nn

from ..numerics import above_minus_one, monotone_root
from .base import Layer


class Planar(Layer):
    r"""One hinge along a learned direction [1].

    .. math:: y = x + \hat u \tanh(w^\top x + b), \qquad \hat u = u + (m(w^\top u) - w^\top u)\, w / |w|^2

    with :math:`m > -1` increasing and :math:`m(0) = 0`, so that the map is invertible and starts at the
    identity (:math:`u = 0`). The log-weight is :math:`\log(1 + \tanh'(w^\top x + b)\, w^\top \hat u)`, at cost
    :math:`O(D)`. The inverse solves one increasing equation in :math:`w^\top x` by safeguarded Newton steps.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :raises ValueError: if ``input_dim < 1``.

    Example::

        >>> y, log_weight = Planar(3)(torch.randn(10, 3))

    **References**

    [1] D. Rezende, S. Mohamed (2015). Variational Inference with Normalizing Flows.
    """

    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.u = nn.Parameter(torch.zeros(input_dim))
        self.w = nn.Parameter(torch.randn(input_dim) / input_dim**0.5)
        self.b = nn.Parameter(torch.zeros(()))

    def _u_hat(self) -> tuple[Tensor, Tensor]:
        """:math:`\\hat u` and :math:`w^\\top \\hat u`."""
        dot = self.w @ self.u
        gain = above_minus_one(dot)
        square = (self.w @ self.w).clamp(min=torch.finfo(self.w.dtype).tiny)  # w = 0: the identity but for a shift
        return self.u + (gain - dot) * self.w / square, gain

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u_hat, gain = self._u_hat()
        h = torch.tanh(x @ self.w + self.b)
        return x + u_hat * h[..., None], torch.log1p((1 - h.square()) * gain)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u_hat, gain = self._u_hat()
        target = y @ self.w

        def equation(a: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(a + self.b)
            return a + gain * h - target, 1 + gain * (1 - h.square())

        h = torch.tanh(monotone_root(equation, target - gain.abs(), target + gain.abs()) + self.b)
        return y - u_hat * h[..., None], torch.log1p((1 - h.square()) * gain)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """By Sherman and Morrison's formula: the Jacobian is the identity plus a rank-one matrix."""
        u_hat, gain = self._u_hat()
        h = torch.tanh(x @ self.w + self.b)
        slope = 1 - h.square()
        curve = -2 * h * slope * gain / (1 + slope * gain)
        score = score - weight * curve[..., None] * self.w
        return score - (slope * (score @ u_hat) / (1 + slope * gain))[..., None] * self.w
