import torch
from torch import Tensor, nn

from ..checks import check_positive
from ..triangles import scale_tril, solve_triangular
from .base import Layer
from .shapes import expanded


class TriangularAffine(Layer):
    r"""A full-rank Gaussian's end of a flow: shift, and multiply by a lower triangular matrix.

    .. math:: y = \mu + L x, \qquad L_{ii} = e^{s_i}, \qquad \log w = \sum_i s_i

    Forward and inverse cost :math:`O(D^2)`.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param init_loc: initial :math:`\mu`, broadcast to ``(D,)``; zero unless given.
    :param init_scale: initial :math:`L` is this positive number times the identity.
    :raises ValueError: if ``input_dim < 1`` or ``init_scale <= 0``.

    Example::

        >>> y, log_weight = TriangularAffine(3, init_scale=0.1)(torch.randn(10, 3))
    """

    def __init__(self, input_dim: int, init_loc: Tensor | float = 0.0, init_scale: float = 1.0):
        super().__init__(input_dim)
        check_positive("TriangularAffine", init_scale=init_scale)
        self.loc = nn.Parameter(expanded(init_loc, input_dim))
        self.log_scale = nn.Parameter(torch.full_like(self.loc, init_scale).log())
        lower = torch.zeros_like(self.loc).repeat(input_dim, 1)
        self.lower: Tensor
        if input_dim > 1:
            self.lower = nn.Parameter(lower)
        else:  # one coordinate has nothing below it, and Pyro warns of parameters that do not train
            self.register_buffer("lower", lower)

    def scale_tril(self) -> Tensor:
        """:math:`L`, of shape ``(D, D)``: its rows are those of ``lower`` scaled to the diagonal's units."""
        return scale_tril(self.log_scale, self.lower)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.loc + x @ self.scale_tril().T, self.log_scale.sum().expand(x.shape[:-1])

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = solve_triangular(self.scale_tril(), (y - self.loc)[..., None], upper=False)
        return x[..., 0], self.log_scale.sum().expand(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return solve_triangular(self.scale_tril().T, score[..., None], upper=True)[..., 0]
