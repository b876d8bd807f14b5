import torch
from torch import Tensor, nn

from ..checks import check_positive, check_sizes
from ..triangles import scale_tril, solve_triangular
from .base import Layer
from .shapes import expanded


class LowRankAffine(Layer):
    r"""A Gaussian's end of a flow with scales of its own and a few directions in which it is wider or narrower.

    .. math:: y = \mu + e^{s} \odot \big(x + U (T - I) U^\top x\big), \qquad \log w = \sum_i s_i + \sum_j \log T_{jj}

    with :math:`U` of :math:`K` orthonormal columns, and :math:`T` lower triangular with a positive diagonal. So in
    units of :math:`e^s` its covariance is the identity but for a matrix of rank :math:`K`. Forward and inverse cost
    :math:`O(D K)`. It starts without correlations.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param rank: :math:`K`; no more than ``input_dim`` of it are taken.
    :param init_loc: initial :math:`\mu`, broadcast to ``(D,)``; zero unless given.
    :param init_scale: initial :math:`e^s`, a positive number.
    :raises ValueError: if a size is not a positive integer, or ``init_scale <= 0``.

    Example::

        >>> y, log_weight = LowRankAffine(5, rank=2, init_scale=0.1)(torch.randn(10, 5))

    **References**

    [1] V. Ong, D. Nott, M. Smith (2018). Gaussian Variational Approximation with a Factor Covariance Structure.
    """

    directions: Tensor
    lower: Tensor

    def __init__(self, input_dim: int, rank: int = 32, init_loc: Tensor | float = 0.0, init_scale: float = 1.0):
        super().__init__(input_dim)
        check_sizes("LowRankAffine", rank=rank)
        check_positive("LowRankAffine", init_scale=init_scale)
        rank = min(rank, input_dim)
        self.loc = nn.Parameter(expanded(init_loc, input_dim))
        self.log_scale = nn.Parameter(torch.full_like(self.loc, init_scale).log())
        directions = torch.linalg.qr(torch.randn(input_dim, rank, dtype=torch.double))[0].T
        self.log_widths = nn.Parameter(self.loc.new_zeros(rank))
        self._hold("directions", directions.to(self.loc).contiguous(), is_trained=input_dim > 1)
        self._hold("lower", self.loc.new_zeros(rank, rank), is_trained=rank > 1)

    def _hold(self, name: str, value: Tensor, is_trained: bool) -> None:
        """Pyro warns of parameters that do not train, as those of a single coordinate or direction."""
        if is_trained:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def fan_in(self, name: str) -> int:
        """How many numbers of a parameter are added up in one coordinate."""
        return int(self.get_parameter(name).shape[-1]) if name == "lower" else 1

    def orthonormal(self) -> Tensor:
        r""":math:`U^\top`, ``(K, D)``: the directions, made orthonormal one after the other."""
        root, _ = torch.linalg.cholesky_ex(self.directions @ self.directions.T)
        return solve_triangular(root, self.directions, upper=False)

    def widths(self) -> Tensor:
        """:math:`T`, ``(K, K)``."""
        return scale_tril(self.log_widths, self.lower)

    def _log_det(self) -> Tensor:
        return self.log_scale.sum() + self.log_widths.sum()

    def scaled(self, x: Tensor) -> Tensor:
        """The map without its shift."""
        u = self.orthonormal()
        inside = x @ u.T
        return self.log_scale.exp() * (x + (inside @ self.widths().T - inside) @ u)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.loc + self.scaled(x), self._log_det().expand(x.shape[:-1])

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, x = self.orthonormal(), (y - self.loc) * (-self.log_scale).exp()
        inside = x @ u.T
        before = solve_triangular(self.widths(), inside[..., None], upper=False)[..., 0]
        return x + (before - inside) @ u, self._log_det().expand(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        u = self.orthonormal()
        inside = score @ u.T
        after = solve_triangular(self.widths().T, inside[..., None], upper=True)[..., 0]
        return (score + (after - inside) @ u) * (-self.log_scale).exp()

    def extra_repr(self) -> str:
        return f"{self.input_dim}, rank={len(self.log_widths)}"
