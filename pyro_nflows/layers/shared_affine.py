import torch
from torch import Tensor

from ..checks import check_sizes
from ..model.rows import Rows
from ..nets.views import view_of
from .base import Layer


class SharedAffine(Layer):
    r"""What the rows of plates that cross share: a few directions of all rows at once, wider or narrower than the rest.

    .. math:: y = x + U (T - I) U^\top x, \qquad \log w = \sum_j \log T_{jj}

    for the coordinates of rows, with :math:`U` of :math:`K` orthonormal columns and a positive diagonal :math:`T`;
    those outside of plates stay. A constant that may be in the effects of users or of items is such a direction: each
    row's width given all else says little of it. The directions are no parameters: they are found from the curvature
    (:mod:`pyro_nflows.inference.shared_widths`), and are none at the start. Forward and inverse cost :math:`O(D K)`.

    On chosen rows (:func:`~pyro_nflows.nets.views.on_rows`) it is the identity, since all rows are needed to know what
    they share.

    :param input_dim: dimension; the coordinates outside of plates come first.
    :param num_top: how many these are.
    :param rank: :math:`K`, at most; no more than there are coordinates of rows.
    :raises ValueError: if a size is not positive, or no coordinate is in a plate.

    Example::

        >>> layer = SharedAffine(7, num_top=1, rank=1)
        >>> layer.put(torch.ones(1, 6) / 6 ** 0.5, torch.tensor([3.0]))
        >>> y, log_weight = layer(torch.ones(7))
        >>> y[:2], log_weight.exp()
        (tensor([1.0000, 3.0000]), tensor(3.0000))
    """

    directions: Tensor
    log_widths: Tensor
    step = 0.0

    def __init__(self, input_dim: int, num_top: int = 0, rank: int = 16):
        super().__init__(input_dim)
        check_sizes("SharedAffine", rank=rank)
        if not isinstance(num_top, int) or not 0 <= num_top < input_dim:
            raise ValueError(
                f"SharedAffine: num_top, the coordinates outside, must be a number below {input_dim}, got {num_top!r}"
            )
        self.num_top, self.is_whole = num_top, True
        rank = min(rank, input_dim - num_top)
        self.register_buffer("directions", torch.zeros(rank, input_dim - num_top))
        self.register_buffer("log_widths", torch.zeros(rank))

    @torch.no_grad()
    def put(self, directions: Tensor, widths: Tensor) -> None:
        """Take orthonormal directions ``(k, rows' coordinates)``, at most K, and their widths ``(k,)``.

        The rest is as wide as it was without directions.
        """
        self.directions.zero_()
        self.log_widths.zero_()
        self.directions[: len(directions)] = directions.to(self.directions)
        self.log_widths[: len(widths)] = widths.log().to(self.log_widths)

    def on_rows(self, rows: Rows) -> "SharedAffine":
        """A view for chosen rows; see :func:`~pyro_nflows.nets.views.on_rows`."""
        if rows.is_all:
            return self
        dim = rows.hierarchy.dim
        return view_of(self, input_dim=dim, output_dim=dim, is_whole=False)

    def _moved(self, x: Tensor, log_widths: Tensor) -> Tensor:
        if not self.is_whole:
            return x
        outside, rows = x[..., : self.num_top], x[..., self.num_top :]
        inside = (rows @ self.directions.T) * torch.expm1(log_widths)
        return torch.cat([outside, rows + inside @ self.directions], -1)

    def _log_det(self, x: Tensor) -> Tensor:
        total = self.log_widths.sum() if self.is_whole else x.new_zeros(())
        return total.expand(x.shape[:-1])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(x, self.log_widths), self._log_det(x)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(y, -self.log_widths), self._log_det(y)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return self._moved(score, -self.log_widths)

    def variances(self) -> Tensor:
        """Of each coordinate of rows, from standard normal ones."""
        return 1 + torch.expm1(2 * self.log_widths) @ self.directions.square()

    def extra_repr(self) -> str:
        return f"{self.input_dim}, rank={len(self.log_widths)}"
