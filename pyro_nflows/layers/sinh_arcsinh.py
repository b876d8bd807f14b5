import torch
from torch import Tensor, nn

from ..layer import Layer


class SinhArcsinh(Layer):
    r"""Skew each coordinate and change the weight of its tails [1].

    .. math:: y = \sinh\big(e^{t} (\operatorname{arsinh}(x) + s)\big), \qquad
        \log w = \sum \log\frac{e^t \cosh(e^t(\operatorname{arsinh} x + s))}{\sqrt{1 + x^2}}

    For large :math:`|x|`, :math:`|y| \sim |x|^{e^t}`: with :math:`e^t = 2` a Gaussian's tails become exponential, which
    is what the logarithm of a scale parameter has. It starts at the identity.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :raises ValueError: if ``input_dim < 1``.

    Example::

        >>> y, log_weight = SinhArcsinh(3)(torch.randn(10, 3))

    **References**

    [1] M. C. Jones, A. Pewsey (2009). Sinh-arcsinh Distributions.
    """

    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.skew = nn.Parameter(torch.zeros(input_dim))
        self.log_tail = nn.Parameter(torch.zeros(input_dim))

    def _log_slope(self, x: Tensor, angle: Tensor) -> Tensor:
        # log cosh without overflow
        log_cosh = angle.abs() + torch.log1p((-2 * angle.abs()).exp()) - 0.6931471805599453
        return self.log_tail + log_cosh - 0.5 * torch.log1p(x.square())

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        angle = self.log_tail.exp() * (torch.asinh(x) + self.skew)
        return torch.sinh(angle), self._log_slope(x, angle).sum(-1)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        angle = torch.asinh(y)
        x = torch.sinh(angle / self.log_tail.exp() - self.skew)
        return x, self._log_slope(x, angle).sum(-1)
