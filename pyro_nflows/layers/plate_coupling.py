from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model.hierarchy import Hierarchy
from ..model.rows import Rows
from ..nets.features import Features
from ..nets.table import Table
from ..nets.views import taken_rows
from ..system.gradients import pullback
from ..transformers import Affine, Transformer
from .base import Layer
from .shapes import need_hierarchy, need_transformer


class PlateCoupling(Layer):
    r"""The rows of plates, each transformed as what it is within says.

    .. math:: y_i = \tau\big(x_i; b_i + C_i\, \phi(a_i)\big), \qquad y_g = x_g

    for row :math:`i`, the coordinates :math:`a_i` that it is within (:math:`g`, those outside of plates, and its outer
    rows), and an element-wise monotone :math:`\tau`. The features :math:`\phi(a_i)` are a few learned ones of
    :math:`g`, shared by all rows, and :math:`a_i` itself; their coefficients are the row's own. So rows are independent
    given what they are within, and a draw costs a few products a row. It starts at the identity.

    The coordinates outside of plates come first, then the blocks, row by row, as :class:`PlateAffine` takes them.

    :param hierarchy: which coordinates are in which plates.
    :param transformer: :math:`\tau`.
    :param num_features: number of learned features.
    :param hidden_dims: widths of the hidden layers of the network that has them as outputs.
    :raises ValueError: if ``num_features < 1``.

    Example::

        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> hierarchy = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((3,), {"groups": 0})})
        >>> y, log_weight = PlateCoupling(hierarchy)(torch.randn(10, 4))

    **References**

    [1] L. Ambrogioni, G. Silvestri, M. van Gerven (2021). Automatic Variational Inference with Cascading Flows.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        transformer: Transformer = Affine(),
        *,
        num_features: int = 8,
        hidden_dims: Sequence[int] = (32,),
    ):
        super().__init__(need_hierarchy("PlateCoupling", hierarchy).dim)
        need_transformer("PlateCoupling", transformer)
        self.hierarchy, self.transformer, self.sizes = hierarchy, transformer, hierarchy.sizes()
        self.features, num_top = Features(self.sizes[0], num_features, hidden_dims), self.sizes[0]
        self.bias, self.coefficients = Table(), Table(reads_above=True)
        for number, block in enumerate(hierarchy.blocks):
            shape = (block.num_rows, block.row_dim, transformer.num_params)
            num = self.features.output_dim + hierarchy.width_above(block) - num_top
            self.bias[str(number)] = nn.Parameter(torch.zeros(shape))
            if num:
                self.coefficients[str(number)] = nn.Parameter(torch.zeros(*shape, num))

    def on_rows(self, rows: Rows) -> "PlateCoupling":
        """A view of the same numbers for chosen rows; see :func:`~pyro_nflows.nets.views.on_rows`."""
        return taken_rows(self, rows)

    def rows(self, number: int, x: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A block's rows, ``(..., num_rows, row_dim)``, and each row's log-weight.

        :param before: what is above them, before this layer: the coordinates outside of plates, then blocks.
        :param after: the same after it.
        """
        y, log_slope = self._move(number, x, after[0], *self._outer(number, after))
        return y, log_slope.sum(-1)

    def rows_back(
        self, number: int, y: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`rows`."""
        params = self._params(number, after[0], *self._outer(number, after))
        x, log_slope = self.transformer.inverse(y, params)
        return x, log_slope.sum(-1)

    def _outer(self, number: int, parts: Sequence[Tensor]) -> list[Tensor]:
        """The blocks that a block is within, as they are."""
        return [parts[1 + above.block] for above in self.hierarchy.blocks[number].above]

    def _params(self, number: int, top: Tensor, *outer: Tensor) -> Tensor:
        """The transformer's parameters for each coordinate of a block's rows."""
        params: Tensor = self.bias[str(number)]
        if str(number) not in self.coefficients:
            return params
        coefficients, num = self.coefficients[str(number)], self.features.output_dim
        if num:
            moved = self.features(top) @ coefficients[..., :num].flatten(0, 2).T
            params = params + moved.unflatten(-1, params.shape)
        for above, part in zip(self.hierarchy.blocks[number].above, outer):
            own = coefficients[..., num : num + part.shape[-1]]
            params = params + (own * part[..., above.row, None, None, :]).sum(-1)
            num += part.shape[-1]
        return params

    def _move(self, number: int, part: Tensor, top: Tensor, *outer: Tensor) -> tuple[Tensor, Tensor]:
        return self.transformer.forward(part, self._params(number, top, *outer))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, by_row = self.by_row(x)
        return y, sum((part.sum(-1) for part in by_row), x.new_zeros(x.shape[:-1]))

    def by_row(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The image, and each block's log-weight of each row, ``(..., rows)``."""
        parts, found = self.hierarchy.split(x), list[Tensor]()
        for number in range(len(self.hierarchy.blocks)):
            moved, log_slope = self._move(number, parts[1 + number], parts[0], *self._outer(number, parts))
            parts[1 + number] = moved
            found.append(log_slope.sum(-1))
        return self.hierarchy.join(parts), found

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parts, total = self.hierarchy.split(y), y.new_zeros(y.shape[:-1])
        found = [parts[0]]
        for number in range(len(self.hierarchy.blocks)):
            params = self._params(number, parts[0], *self._outer(number, parts))
            part, log_slope = self.transformer.inverse(parts[1 + number], params)
            found.append(part)
            total = total + log_slope.sum((-2, -1))
        return self.hierarchy.join(found), total

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float | Sequence[float] = 1.0) -> Tensor:
        """Block after block: each moves its rows alone, and reads what it is within as that is by then."""
        before, after, scores = self.hierarchy.split(x), self.hierarchy.split(y), self.hierarchy.split(score)
        for number in range(len(self.hierarchy.blocks)):
            block, given = self.hierarchy.blocks[number], [after[0], *self._outer(number, after)]
            (_, log_slope), pull = pullback(
                lambda part, *given, number=number: self._move(number, part, *given), before[1 + number], *given
            )
            cost = torch.full_like(log_slope, -(weight if isinstance(weight, float | int) else weight[number]))
            part = scores[1 + number]
            part = (part + pull((torch.zeros_like(part), cost))[0]) * (-log_slope).exp()
            scores[1 + number] = part
            shares = pull((-part, cost))[1:]
            for at, share in zip([0, *(1 + above.block for above in block.above)], shares):
                scores[at] = scores[at] + share
        return self.hierarchy.join(scores)

    def extra_repr(self) -> str:
        blocks = ", ".join(f"{block.num_rows} x {block.row_dim}" for block in self.hierarchy.blocks)
        return f"{self.sizes[0]} + {blocks}, {self.transformer}"
