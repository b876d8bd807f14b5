import torch
from torch import Tensor, nn

from ..model.hierarchy import Hierarchy
from ..nets.features import MAX_PLAIN, Features
from ..nets.row_net import RowNet
from ..system.gradients import pullback
from ..transformers import Affine, Transformer
from .base import Layer
from .shapes import need_hierarchy, need_transformer


class RowCoupling(Layer):
    r"""Couplings within the rows of plates, each row by a small network of its own.

    .. math:: y_{i,a} = x_{i,a}, \qquad y_{i,b} = \tau\big(x_{i,b}; \theta_i(x_{i,a}, x_g)\big), \qquad y_g = x_g

    for row :math:`i`, the halves :math:`a` and :math:`b` of its coordinates, and the coordinates :math:`g` outside of
    plates. A weight with a scale of its own, as under a horseshoe prior [1], has a width that depends on that scale. A
    :class:`Coupling` of all coordinates has to find out which of them belong together, with a few hidden units for all
    rows; here each row has its own. It starts at the identity. Rows of a single coordinate stay as they are.

    The coordinates outside of plates come first, then the blocks, row by row, as :class:`PlateAffine` takes them.

    :param hierarchy: which coordinates are in which plates.
    :param transformer: :math:`\tau`.
    :param flip: transform the first half of a row rather than the second.
    :param hidden_dim: hidden units of a row's network.
    :raises ValueError: if ``hidden_dim < 1``.

    Example::

        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> plates = {"feature": 0}
        >>> hierarchy = Hierarchy.of_outlines({"scale": Outline((3,), plates), "weight": Outline((3,), plates)})
        >>> y, log_weight = RowCoupling(hierarchy)(torch.randn(10, 6))

    **References**

    [1] C. Carvalho, N. Polson, J. Scott (2010). The Horseshoe Estimator for Sparse Signals.
    """

    def __init__(
        self, hierarchy: Hierarchy, transformer: Transformer = Affine(), *, flip: bool = False, hidden_dim: int = 8
    ):
        super().__init__(need_hierarchy("RowCoupling", hierarchy).dim)
        need_transformer("RowCoupling", transformer)
        self.hierarchy, self.transformer, self.flip = hierarchy, transformer, flip
        num_top = len(hierarchy.top)
        self.features = Features(num_top) if num_top > MAX_PLAIN else None
        num_read = num_top if self.features is None else self.features.output_dim
        self.nets = nn.ModuleDict()
        for number, block in enumerate(hierarchy.blocks):
            if block.row_dim > 1:
                num_first = block.row_dim // 2
                stays, moves = num_first, block.row_dim - num_first
                if flip:
                    stays, moves = moves, stays
                net = RowNet(block.num_rows, stays + num_read, moves * transformer.num_params, hidden_dim)
                self.nets[str(number)] = net

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The half of each row that stays, and the half that moves."""
        first, second = rows.tensor_split([rows.shape[-1] // 2], -1)
        return (second, first) if self.flip else (first, second)

    def _join(self, stays: Tensor, moves: Tensor) -> Tensor:
        return torch.cat([moves, stays] if self.flip else [stays, moves], -1)

    def _params(self, number: str, stays: Tensor, top: Tensor) -> Tensor:
        read = top if self.features is None else self.features(top)
        read = read[..., None, :].expand(*stays.shape[:-1], read.shape[-1])
        params: Tensor = self.nets[number](torch.cat([stays, read], -1))
        return params.unflatten(-1, (-1, self.transformer.num_params))

    def _move(self, number: str, stays: Tensor, moves: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        return self.transformer.forward(moves, self._params(number, stays, top))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parts, total = self.hierarchy.split(x), x.new_zeros(x.shape[:-1])
        for number in self.nets:
            at = 1 + int(number)
            stays, moves = self._split(parts[at])
            moves, log_slope = self._move(number, stays, moves, parts[0])
            parts[at], total = self._join(stays, moves), total + log_slope.sum((-2, -1))
        return self.hierarchy.join(parts), total

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parts, total = self.hierarchy.split(y), y.new_zeros(y.shape[:-1])
        for number in self.nets:
            at = 1 + int(number)
            stays, moves = self._split(parts[at])
            moves, log_slope = self.transformer.inverse(moves, self._params(number, stays, parts[0]))
            parts[at], total = self._join(stays, moves), total + log_slope.sum((-2, -1))
        return self.hierarchy.join(parts), total

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """By blocks: the Jacobian is triangular, with a diagonal block for the coordinates that move."""
        before, scores = self.hierarchy.split(x), self.hierarchy.split(score)
        for number in self.nets:
            at = 1 + int(number)
            (_, log_slope), pull = pullback(
                lambda *parts, number=number: self._move(number, *parts), *self._split(before[at]), before[0]
            )
            stays, moves = self._split(scores[at])
            cost = torch.full_like(log_slope, -weight)
            moves = (moves + pull((torch.zeros_like(moves), cost))[1]) * (-log_slope).exp()
            share, _, top = pull((-moves, cost))
            scores[at], scores[0] = self._join(stays + share, moves), scores[0] + top
        return self.hierarchy.join(scores)

    def extra_repr(self) -> str:
        blocks = ", ".join(f"{block.num_rows} x {block.row_dim}" for block in self.hierarchy.blocks)
        return f"{len(self.hierarchy.top)} + {blocks}, {self.transformer}, flip={self.flip}"
