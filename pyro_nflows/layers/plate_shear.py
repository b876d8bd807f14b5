from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_sizes
from ..model.hierarchy import Hierarchy
from ..model.rows import Rows
from ..nets.features import Features
from ..nets.table import Table
from ..nets.views import taken_rows
from ..system.gradients import pullback
from .base import Layer
from .shapes import need_hierarchy


class PlateShear(Layer):
    r"""The rows of plates, each coordinate shifted by those before it in its row, as what is outside of plates says.

    .. math:: y_{ij} = x_{ij} + \sum_{k < j} m_{ijk}(g)\, x_{ik}, \qquad m_i = b_i + C_i\, \phi(g), \qquad \log w = 0

    with learned features :math:`\phi` of the coordinates :math:`g` outside of plates and coefficients of the row's own.
    So the correlations within a row may depend on :math:`g`, as those of an intercept and a slope do on their scales.
    It starts at the identity.

    :param hierarchy: which coordinates are in which plates.
    :param max_row_dim: longer rows pass; each has a number for each pair of coordinates and each feature.
    :param num_features: number of learned features.
    :param hidden_dims: widths of the hidden layers of the network that has them as outputs.
    :raises ValueError: if ``num_features < 1``, or no rows have 2 to ``max_row_dim`` coordinates.

    Example::

        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> hierarchy = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((3, 2), {"groups": 0})})
        >>> y, log_weight = PlateShear(hierarchy)(torch.randn(10, 7))
    """

    def __init__(
        self, hierarchy: Hierarchy, max_row_dim: int = 12, *, num_features: int = 8, hidden_dims: Sequence[int] = (32,)
    ):
        super().__init__(need_hierarchy("PlateShear", hierarchy).dim)
        check_sizes("PlateShear", max_row_dim=max_row_dim)
        self.hierarchy = hierarchy
        self.features = Features(len(hierarchy.top), num_features, hidden_dims)
        self.bias, self.coefficients = Table(), Table(reads_above=True)
        for number, block in enumerate(hierarchy.blocks):
            num_pairs = block.row_dim * (block.row_dim - 1) // 2
            if num_pairs and block.row_dim <= max_row_dim:
                self.bias[str(number)] = nn.Parameter(torch.zeros(block.num_rows, num_pairs))
                if self.features.output_dim:
                    shape = (block.num_rows, num_pairs, self.features.output_dim)
                    self.coefficients[str(number)] = nn.Parameter(torch.zeros(shape))
        if not len(self.bias):
            raise ValueError(f"PlateShear: expected rows of 2 to {max_row_dim} coordinates, got none")

    def on_rows(self, rows: Rows) -> "PlateShear":
        """A view of the same numbers for chosen rows; see :func:`~pyro_nflows.nets.views.on_rows`."""
        return taken_rows(self, rows)

    def rows(self, number: int, x: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A block's rows, ``(..., num_rows, row_dim)``, and each row's log-weight.

        :param before: what is above them, before this layer: the coordinates outside of plates, then blocks.
        :param after: the same after it.
        """
        y = self._move(number, x, before[0]) if number in self._moved() else x
        return y, y.new_zeros(y.shape[:-1])

    def rows_back(
        self, number: int, y: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`rows`."""
        x = self._back(number, y, before[0]) if number in self._moved() else y
        return x, x.new_zeros(x.shape[:-1])

    def _matrix(self, number: int, top: Tensor) -> Tensor:
        """The numbers below the diagonal of each row's matrix, ``(..., rows, pairs)``."""
        matrix: Tensor = self.bias[str(number)]
        if str(number) not in self.coefficients:
            return matrix
        coefficients = self.coefficients[str(number)]
        return matrix + (self.features(top) @ coefficients.flatten(0, 1).T).unflatten(-1, matrix.shape)

    def _move(self, number: int, part: Tensor, top: Tensor) -> Tensor:
        matrix = self._matrix(number, top)
        return part + torch.stack([_before(matrix, part, j) for j in range(part.shape[-1])], -1)

    def _back(self, number: int, part: Tensor, top: Tensor) -> Tensor:
        matrix, found = self._matrix(number, top), list[Tensor]()
        for j in range(part.shape[-1]):
            before = torch.stack(found, -1) if found else part[..., :0]
            found.append(part[..., j] - _before(matrix, before, j))
        return torch.stack(found, -1)

    def _moved(self) -> list[int]:
        """The blocks whose rows have several coordinates."""
        return [int(number) for number in self.bias]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parts = self.hierarchy.split(x)
        for number in self._moved():
            parts[1 + number] = self._move(number, parts[1 + number], parts[0])
        return self.hierarchy.join(parts), x.new_zeros(x.shape[:-1])

    def by_row(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The image, and each block's log-weight of each row, which is zero."""
        return self(x)[0], [x.new_zeros(*x.shape[:-1], block.num_rows) for block in self.hierarchy.blocks]

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parts = self.hierarchy.split(y)
        for number in self._moved():
            parts[1 + number] = self._back(number, parts[1 + number], parts[0])
        return self.hierarchy.join(parts), y.new_zeros(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float | Sequence[float] = 1.0) -> Tensor:
        """Back substitution in each row; then what is outside of plates gives back its share."""
        parts, scores = self.hierarchy.split(x), self.hierarchy.split(score)
        for number in self._moved():
            matrix, part = self._matrix(number, parts[0]), scores[1 + number]
            columns = list(part.unbind(-1))
            for j in reversed(range(len(columns))):
                start = j * (j - 1) // 2
                for k in range(j):
                    columns[k] = columns[k] - matrix[..., start + k] * columns[j]
            scores[1 + number] = torch.stack(columns, -1)
            _, pull = pullback(
                lambda top, number=number, part=parts[1 + number]: self._move(number, part, top), parts[0]
            )
            scores[0] = scores[0] + pull(-scores[1 + number])[0]
        return self.hierarchy.join(scores)

    def extra_repr(self) -> str:
        return ", ".join(f"{block.num_rows} x {block.row_dim}" for block in self.hierarchy.blocks)


def _before(matrix: Tensor, part: Tensor, j: int) -> Tensor:
    """What the coordinates before one add to it."""
    start = j * (j - 1) // 2
    return (matrix[..., start : start + j] * part[..., :j]).sum(-1)
