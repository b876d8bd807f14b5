import torch
from torch import Tensor, nn

from ..layer import Layer


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
        if not init_scale > 0:
            raise ValueError(f"LocScale: init_scale must be a positive number, got {init_scale}")
        self.loc = nn.Parameter(torch.zeros(input_dim) + torch.as_tensor(init_loc).detach())
        self.log_scale = nn.Parameter(torch.full_like(self.loc, init_scale).log())

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.loc + self.log_scale.exp() * x, self.log_scale.sum().expand(x.shape[:-1])

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (y - self.loc) / self.log_scale.exp(), self.log_scale.sum().expand(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return score / self.log_scale.exp()
