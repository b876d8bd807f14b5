r"""Orthogonal matrices that are trained, and the singular value decomposition that gives them their start."""

import torch
from torch import Tensor, nn


class Rotation(nn.Module):
    r"""A rotation away from an orthogonal matrix :math:`Q_0`, by Cayley's map.

    .. math:: Q = (I - X)^{-1} (I + X)\, Q_0, \qquad X = (A - A^\top) / 2

    It agrees with :math:`\exp(A - A^\top) Q_0` up to :math:`A^3`, reaches the same rotations (but for half turns, which
    it approaches), and is differentiated several times faster. It starts at :math:`Q_0`.

    :param dim: number of rows and columns.

    Example::

        >>> Rotation(3)().diagonal()
        tensor([1.0000, 1.0000, 1.0000], grad_fn=<DiagonalBackward0>)
    """

    start: Tensor
    skew: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("start", torch.eye(dim))
        if dim > 1:
            self.skew = nn.Parameter(torch.zeros(dim, dim))
        else:  # there is one rotation of a line, and Pyro warns of parameters that do not train
            self.register_buffer("skew", torch.zeros(1, 1))

    def forward(self) -> Tensor:
        one = torch.eye(len(self.skew), dtype=self.skew.dtype, device=self.skew.device)
        inverse = torch.linalg.inv_ex(one - 0.5 * (self.skew - self.skew.T))[0]
        return (2 * inverse - one) @ self.start

    @torch.no_grad()
    def restart(self, start: Tensor) -> None:
        """Begin at another orthogonal matrix."""
        self.start.copy_(start)
        self.skew.zero_()

    def extra_repr(self) -> str:
        return f"{len(self.skew)}"


def decomposed(name: str, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The full singular value decomposition :math:`W = V \Sigma U`: ``V``, the singular values, ``U``.

    :raises ValueError: if ``weight`` is not of full rank.

    Example::

        >>> decomposed("flowify", torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))[1]
        tensor([3.0000, 1.0000])
        >>> decomposed("flowify", torch.ones(2, 2))
        Traceback (most recent call last):
        ValueError: flowify: expected a weight of full rank, got (2, 2) with smallest singular value ...
    """
    left, values, right = torch.linalg.svd(weight.detach())
    if not values[-1] > 1e-6 * values[0]:
        raise ValueError(
            f"{name}: expected a weight of full rank, got {tuple(weight.shape)} with smallest singular value "
            f"{float(values[-1]):.0g}; a network that forgets a direction has no density, so add a little noise to it"
        )
    return left, values, right
