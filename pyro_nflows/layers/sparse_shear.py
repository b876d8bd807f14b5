from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_sizes
from ..model.elimination import Elimination
from ..nets.features import Features
from ..nets.table import Table
from .base import Layer
from .shapes import need_elimination


class SparseShear(Layer):
    r"""Each coordinate is shifted by a few of those before it, as what is common to all says.

    With :math:`g` the first coordinates, which pass, and :math:`P(k)` those that node :math:`k` of the others depends
    on,

    .. math:: y_k = x_k + N_k(g)\, x_k + A_k(g)\, y_{P(k)}, \qquad (N_k, A_k) = b_k + C_k\, \phi(g), \qquad
        \log w = 0

    with strictly lower triangular :math:`N_k`, learned features :math:`\phi` of :math:`g`, and coefficients of the
    node's own. Behind a scaling of each coordinate that depends on :math:`g` too, this is a Gaussian whose sparse
    precision depends on :math:`g`: that of the states of a chain, or of a field, given its variances and ranges. It is
    linear in the numbers of the factor, and starts at the identity.

    :param elimination: the nodes of the coordinates after the first ones, numbered from zero, and what each depends on.
    :param num_top: how many coordinates come first.
    :param num_features: number of learned features.
    :param hidden_dims: widths of the hidden layers of the network that has them as outputs.
    :raises ValueError: if ``num_top < 1`` or ``num_features < 1``.

    Example::

        >>> from pyro_nflows.model.pattern import pattern_of
        >>> pattern = pattern_of(lambda z: -(z[:, 1:] - z[:, :-1]).square().sum(-1), torch.zeros(5))
        >>> y, log_weight = SparseShear(Elimination.of(pattern), num_top=2)(torch.randn(10, 7))

    **References**

    [1] H. Rue, S. Martino, N. Chopin (2009). Approximate Bayesian Inference for Latent Gaussian Models by Using
    Integrated Nested Laplace Approximations.
    """

    places: Tensor

    def __init__(
        self, elimination: Elimination, num_top: int, *, num_features: int = 8, hidden_dims: Sequence[int] = (32,)
    ):
        check_sizes("SparseShear", num_top=num_top)
        super().__init__(num_top + need_elimination("SparseShear", elimination).dim)
        self.elimination, self.num_top = elimination, num_top
        self.features = Features(num_top, num_features, hidden_dims)
        self.bias, self.coefficients = Table(), Table()
        for number, group in enumerate(elimination.groups):
            num, width = group.columns.shape
            size = width * (width - 1) // 2 + width * group.above.shape[1]
            if size:
                self.bias[str(number)] = nn.Parameter(torch.zeros(num, size))
                self.coefficients[str(number)] = nn.Parameter(torch.zeros(num, size, self.features.output_dim))
        for name, tensor in elimination.buffers().items():
            self.register_buffer(name, tensor, persistent=False)

    def _matrices(self, number: int, features: Tensor) -> tuple[Tensor, Tensor] | None:
        """Of each node of a group: the numbers of :math:`N` by rows, and :math:`A`; None where there are none."""
        if str(number) not in self.bias:
            return None
        bias, (width, above) = self.bias[str(number)], self._sizes(number)
        moved = features @ self.coefficients[str(number)].flatten(0, 1).T
        within, from_above = (bias + moved.unflatten(-1, bias.shape)).split(
            [width * (width - 1) // 2, width * above], -1
        )
        return within, from_above.unflatten(-1, (width, above)) if above else from_above

    def _sizes(self, number: int) -> tuple[int, int]:
        group = self.elimination.groups[number]
        return group.columns.shape[1], group.above.shape[1]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What comes first, and the others with a zero at their end."""
        top, rest = x.split([self.num_top, self.elimination.dim], -1)
        return top, torch.cat([rest, rest.new_zeros(*rest.shape[:-1], 1)], -1)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        top, padded = self._split(x)
        features, made = self.features(top), padded[..., -1:]
        for number in range(len(self.elimination.groups)):
            part = padded[..., self.get_buffer(f"columns_{number}")]
            matrices, (width, above) = self._matrices(number, features), self._sizes(number)
            if matrices is not None and width > 1:
                columns = [part[..., j] + _before(matrices[0], part, j) for j in range(1, width)]
                part = torch.stack([part[..., 0], *columns], -1)
            if matrices is not None and above:
                part = part + _times(matrices[1], made[..., self.get_buffer(f"made_{number}")])
            made = torch.cat([made, part.flatten(-2)], -1)
        return torch.cat([top, made[..., self.places]], -1), x.new_zeros(x.shape[:-1])

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All nodes at once: what each depends on is there."""
        top, padded = self._split(y)
        features, found = self.features(top), [padded[..., -1:]]
        for number in range(len(self.elimination.groups)):
            part = padded[..., self.get_buffer(f"columns_{number}")]
            matrices, (width, above) = self._matrices(number, features), self._sizes(number)
            if matrices is not None and above:
                part = part - _times(matrices[1], padded[..., self.get_buffer(f"upper_{number}")])
            if matrices is not None and width > 1:
                columns = [part[..., 0]]
                for j in range(1, width):
                    columns.append(part[..., j] - _before(matrices[0], torch.stack(columns, -1), j))
                part = torch.stack(columns, -1)
            found.append(part.flatten(-2))
        return torch.cat([top, torch.cat(found, -1)[..., self.places]], -1), y.new_zeros(y.shape[:-1])

    def extra_repr(self) -> str:
        return f"{self.num_top} + {self.elimination.dim}, {self.elimination.size} numbers"


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix for each node of each draw times its vector, ``(..., nodes, a, b)`` and ``(..., nodes, b)``."""
    return (matrix * x[..., None, :]).sum(-1)


def _before(within: Tensor, part: Tensor, j: int) -> Tensor:
    """What the coordinates before one in its node add to it."""
    start = j * (j - 1) // 2
    return (within[..., start : start + j] * part[..., :j]).sum(-1)
