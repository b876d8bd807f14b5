import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from ..checks import Size, channels, numbers_in
from .base import Layer


class LULinear(Layer):
    r"""Multiply by an invertible matrix, kept as a permutation and two triangles; of channels, a 1x1 convolution [1].

    .. math:: y = P L U x, \qquad \log w = \sum_i s_i

    with :math:`L` unit lower triangular, :math:`U = \mathrm{diag}(e^s) (I + N)` upper triangular and :math:`P` fixed.
    For images the matrix acts on the channels at each of :math:`H W` pixels, and the log-weight is
    :math:`H W \sum_i s_i`. No determinant is computed. Both directions cost :math:`O(D^2)` a row; the matrix, or its
    inverse by two triangular solves, is made once for all rows. It starts at :math:`P`.

    :param input_dim: dimension :math:`D`, each coordinate a channel; or an image's ``(C, H, W)``. ``x`` and ``y`` have
        shape ``(..., D)``, ``(..., C H W)`` for images.
    :param permutation: :math:`P` as a permutation of the channels; the identity unless given.
    :raises ValueError: if a size is not a positive integer, or ``permutation`` is none of the channels.

    Example::

        >>> y, log_weight = LULinear(3)(torch.randn(10, 3))
        >>> image, log_weight = LULinear((4, 8, 8), [3, 2, 1, 0])(torch.randn(10, 256))

    **References**

    [1] D. Kingma, P. Dhariwal (2018). Glow: Generative Flow with Invertible 1x1 Convolutions.
    """

    permutation: Tensor | None
    one: Tensor
    triangles: Tensor

    def __init__(self, input_dim: Size, permutation: Tensor | list[int] | None = None):
        num_channels, self.num_pixels = channels("LULinear", input_dim)
        super().__init__(num_channels * self.num_pixels)
        one = torch.eye(num_channels)
        order = torch.arange(num_channels)
        if permutation is not None:
            order = numbers_in("LULinear", "permutation", permutation)
        if order.dim() != 1 or order.sort().values.tolist() != list(range(num_channels)):
            raise ValueError(f"LULinear: expected a permutation of {num_channels} channels, got {permutation}")
        self.register_buffer("permutation", None if permutation is None else one[:, order])
        self.register_buffer("one", one, persistent=False)
        self.log_diagonal = nn.Parameter(torch.zeros(num_channels))
        triangles = torch.zeros(num_channels, num_channels)
        if num_channels > 1:
            self.triangles = nn.Parameter(triangles)
        else:  # one channel has none to mix with, and Pyro warns of parameters that do not train
            self.register_buffer("triangles", triangles)

    def lower_upper(self) -> tuple[Tensor, Tensor]:
        """:math:`L` and :math:`U`, each of shape ``(C, C)``."""
        return (self.triangles.triu(1) + self.one).T, self._scaled().T

    def _scaled(self) -> Tensor:
        """The transpose of :math:`U`: all is kept transposed, so that rows are multiplied without turning anything."""
        return (self.triangles.tril(-1) + self.one) * self.log_diagonal.exp()

    def _matrix(self) -> Tensor:
        """The transpose of :math:`P L U`, which multiplies rows from the right."""
        scaled, permutation = self._scaled(), self.permutation
        matrix = torch.addmm(scaled, scaled, self.triangles.triu(1))
        return matrix if permutation is None else matrix @ permutation

    def _inverse_matrix(self) -> Tensor:
        """Once for all rows: solves row by row would take longer than all else. A solve reads its own triangle only."""
        triangles, permutation = self.triangles, self.permutation
        rows = self.one if permutation is None else permutation.T
        rows = solve_triangular(triangles, rows, upper=True, left=False, unitriangular=True)
        rows = rows * (-self.log_diagonal).exp()
        return solve_triangular(triangles, rows, upper=False, left=False, unitriangular=True)

    def _times(self, matrix: Tensor, x: Tensor) -> Tensor:
        if self.num_pixels == 1:
            return x @ matrix
        return (matrix.T @ x.unflatten(-1, (-1, self.num_pixels))).flatten(-2)

    def _log_weight(self, x: Tensor) -> Tensor:
        total = self.log_diagonal.sum()
        return (total if self.num_pixels == 1 else self.num_pixels * total).expand(x.shape[:-1])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._times(self._matrix(), x), self._log_weight(x)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._times(self._inverse_matrix(), y), self._log_weight(y)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return self._times(self._inverse_matrix().T, score)
