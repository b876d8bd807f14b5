import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from ..checks import check_positive
from ..model.elimination import Elimination
from .base import Layer
from .shapes import expanded, need_elimination


class Blocks(nn.ParameterDict):
    """Matrices of the nodes of a group, ``(num_nodes, rows, columns)``, by the group's number."""

    def fan_in(self, name: str) -> int:
        """How many numbers of a parameter are added up in one coordinate."""
        return int(self[name].shape[-1])


class SparseAffine(Layer):
    r"""A Gaussian's end of a flow with a sparse precision: each coordinate depends on a few of those before it.

    With :math:`P(k)` the coordinates that node :math:`k` depends on, which other nodes before it hold,

    .. math:: y = \mu + e^{s} \odot u, \qquad u_k = L_k x_k + A_k u_{P(k)}, \qquad \log w = \sum_i s_i

    with unit lower triangular :math:`L_k`. It is the Gaussian whose precision has the pattern that the order of
    elimination was made of: the :math:`A_k` and :math:`s` are a sparse Cholesky factor of the precision,
    :math:`y = \mu + P L^{-\top} x`, as conditional distributions [1]. Nodes of one group are made at once; there are
    about :math:`\log_2 D` groups for a chain of :math:`D` coordinates, and time and memory are linear in the numbers of
    the factor. The inverse, and the gradient that is carried with the draws, need no order: they are products with the
    factor.

    :param elimination: the nodes, and what each depends on.
    :param init_loc: initial :math:`\mu`, broadcast to ``(D,)``.
    :param init_scale: initial :math:`e^s`, a positive number.
    :raises ValueError: if ``init_scale <= 0``.

    Example::

        >>> from pyro_nflows.model.elimination import Elimination
        >>> from pyro_nflows.model.pattern import pattern_of
        >>> pattern = pattern_of(lambda z: -(z[:, 1:] - z[:, :-1]).square().sum(-1), torch.zeros(5))
        >>> y, log_weight = SparseAffine(Elimination.of(pattern), init_scale=0.1)(torch.randn(10, 5))

    **References**

    [1] L. Tan, D. Nott (2018). Gaussian Variational Approximation with Sparse Precision Matrices.
    """

    places: Tensor

    def __init__(self, elimination: Elimination, init_loc: Tensor | float = 0.0, init_scale: float = 1.0):
        super().__init__(need_elimination("SparseAffine", elimination).dim)
        check_positive("SparseAffine", init_scale=init_scale)
        self.elimination = elimination
        self.loc = nn.Parameter(expanded(init_loc, elimination.dim))
        self.log_scale = nn.Parameter(torch.full_like(self.loc, init_scale).log())
        self.within, self.above = Blocks(), Blocks()
        for number, group in enumerate(elimination.groups):
            num, width = group.columns.shape
            if width > 1:
                self.within[str(number)] = nn.Parameter(self.loc.new_zeros(num, width, width))
            if group.above.shape[1]:
                self.above[str(number)] = nn.Parameter(self.loc.new_zeros(num, width, group.above.shape[1]))
        for name, tensor in elimination.buffers().items():
            self.register_buffer(name, tensor, persistent=False)
        every = [index.flatten() for group in elimination.groups for index in (group.columns, group.above)]
        self.register_buffer("every", torch.cat(every), persistent=False)

    def unit_tril(self, number: int) -> Tensor | None:
        r"""The matrices :math:`L_k` of a group; None where they are ones."""
        if str(number) not in self.within:
            return None
        lower = self.within[str(number)]
        return lower.tril(-1) + torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)

    def scaled(self, x: Tensor) -> Tensor:
        """The map without its shift."""
        zero = x.new_zeros(*x.shape[:-1], 1)
        padded, made = torch.cat([x, zero], -1), zero
        for number in range(len(self.elimination.groups)):
            u, unit = padded[..., self.get_buffer(f"columns_{number}")], self.unit_tril(number)
            u = u if unit is None else _times(unit, u)
            if str(number) in self.above:
                u = u + _times(self.above[str(number)], made[..., self.get_buffer(f"made_{number}")])
            made = torch.cat([made, u.flatten(-2)], -1)
        return self.log_scale.exp() * made[..., self.places]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.loc + self.scaled(x), self.log_scale.sum().expand(x.shape[:-1])

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u = (y - self.loc) * (-self.log_scale).exp()
        padded = torch.cat([u, u.new_zeros(*u.shape[:-1], 1)], -1)
        found = [padded[..., -1:]]
        for number in range(len(self.elimination.groups)):
            x, unit = padded[..., self.get_buffer(f"columns_{number}")], self.unit_tril(number)
            if str(number) in self.above:
                x = x - _times(self.above[str(number)], padded[..., self.get_buffer(f"upper_{number}")])
            found.append((x if unit is None else _times(_inverse(unit), x)).flatten(-2))
        return torch.cat(found, -1)[..., self.places], self.log_scale.sum().expand(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """The transposed inverse is a product with sparse matrices."""
        zero = score.new_zeros(*score.shape[:-1], 1)
        padded = torch.cat([score, zero], -1)
        parts = []
        for number in range(len(self.elimination.groups)):
            part, unit = padded[..., self.get_buffer(f"columns_{number}")], self.unit_tril(number)
            part = part if unit is None else _times(_inverse(unit).mT, part)
            parts.append(part.flatten(-2))
            if str(number) in self.above:
                parts.append(-_times(self.above[str(number)].mT, part).flatten(-2))
        every = torch.cat(parts, -1)
        total = torch.zeros_like(padded).scatter_add(-1, self.get_buffer("every").expand(every.shape), every)
        return total[..., :-1] * (-self.log_scale).exp()

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.elimination.size} numbers in {len(self.elimination.groups)} groups"


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix for each node times its vector, ``(nodes, a, b)`` and ``(..., nodes, b)``."""
    return (matrix * x[..., None, :]).sum(-1)


def _inverse(matrix: Tensor) -> Tensor:
    """Of unit lower triangular matrices."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    return solve_triangular(matrix, eye, upper=False, unitriangular=True)
