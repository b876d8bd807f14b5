from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_positive
from ..model.hierarchy import Hierarchy
from ..model.rows import Rows
from ..nets.table import Table
from ..nets.views import taken_rows
from ..triangles import scale_tril, solve_triangular
from .base import Layer
from .shapes import expanded, need_hierarchy


class PlateAffine(Layer):
    r"""A Gaussian's end of a flow in which the rows of plates are independent given what they are within.

    With :math:`g` the coordinates outside of plates, and :math:`a_i` those that row :math:`i` is within (:math:`g` and
    its outer rows) in the base,

    .. math:: y_g = \mu_g + e^{s_g} \odot L_g x_g, \qquad
        y_i = \mu_i + e^{s_i} \odot (L_i x_i + A_i a_i), \qquad \log w = \sum s

    with unit lower triangular :math:`L_g, L_i`. It is the Gaussian of any model whose rows are independent given the
    rest: a triangular matrix with zeros where the posterior precision has them. A row takes
    :math:`d (2 + (d - 1) / 2 + |a|)` numbers, so that time and memory grow linearly with the rows.

    The base holds the coordinates outside of plates first, then the blocks, row by row; the result is in the order of
    the model's flat latent.

    :param hierarchy: which coordinates are in which plates.
    :param init_loc: initial :math:`\mu`, in the order of the flat latent.
    :param init_scale: initial :math:`e^s`, a positive number.
    :param within: whether the coordinates of a row are correlated given what it is within; else :math:`L_i = I`.
    :raises ValueError: if ``init_scale <= 0``.

    Example::

        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> hierarchy = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((3,), {"groups": 0})})
        >>> y, log_weight = PlateAffine(hierarchy, init_scale=0.1)(torch.randn(10, 4))

    **References**

    [1] A. Agrawal, J. Domke (2021). Amortized Variational Inference for Simple Hierarchical Models.
    """

    order: Tensor
    places: Tensor

    def __init__(
        self,
        hierarchy: Hierarchy,
        init_loc: Tensor | float = 0.0,
        init_scale: float = 1.0,
        *,
        within: bool = True,
    ):
        super().__init__(need_hierarchy("PlateAffine", hierarchy).dim)
        check_positive("PlateAffine", init_scale=init_scale)
        self.hierarchy, self.sizes = hierarchy, hierarchy.sizes()
        self.loc = nn.Parameter(expanded(init_loc, hierarchy.dim))
        self.log_scale = nn.Parameter(torch.full_like(self.loc, init_scale).log())
        num_top = self.sizes[0]
        self.top = nn.Parameter(self.loc.new_zeros(num_top, num_top)) if num_top > 1 else None
        self.is_within = within
        self.within, self.above = Table(), Table(reads_above=True)
        for number, block in enumerate(hierarchy.blocks):
            rows, dim, width = block.num_rows, block.row_dim, hierarchy.width_above(block)
            if dim > 1 and within:
                self.within[str(number)] = nn.Parameter(self.loc.new_zeros(rows, dim, dim))
            if width:
                self.above[str(number)] = nn.Parameter(self.loc.new_zeros(rows, dim, width))
        order = hierarchy.order.to(self.loc.device)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("places", order.argsort(), persistent=False)
        self._is_ordered = _is_ordered(order)

    def fan_in(self, name: str) -> int:
        """How many numbers of a parameter are added up in one coordinate."""
        return self.sizes[0] if name == "top" else 1

    def on_rows(self, rows: Rows) -> "PlateAffine":
        """A view of the same numbers for chosen rows; see :func:`~pyro_nflows.nets.views.on_rows`."""
        order, at = rows.hierarchy.order, rows.columns.to(self.loc.device)
        return taken_rows(
            self,
            rows,
            _parameters={**self._parameters, "loc": self.loc[at], "log_scale": self.log_scale[at]},
            _buffers={"order": order.to(at.device), "places": order.argsort().to(at.device)},
            _is_ordered=_is_ordered(order),
        )

    # ---- parts ----------------------------------------------------------------------------------------------

    def top_tril(self) -> Tensor | None:
        """The unit triangular matrix of the coordinates outside of plates; None for one."""
        return None if self.top is None else scale_tril(torch.zeros_like(self.top[0]), self.top)

    def top_scale_tril(self) -> Tensor:
        """The lower Cholesky factor of what is outside of plates."""
        lower = self.log_scale.new_zeros(self.sizes[0], self.sizes[0]) if self.top is None else self.top
        return scale_tril(self.log_scale[self.hierarchy.top], lower)

    def within_tril(self, number: int) -> Tensor | None:
        """The unit triangular matrices of a block's rows; None for the identity."""
        if str(number) not in self.within:
            return None
        lower = self.within[str(number)]
        return lower.tril(-1) + torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)

    def _from_above(self, number: int, parts: Sequence[Tensor]) -> Tensor | float:
        """What is above a block's rows adds to them."""
        if str(number) not in self.above:
            return 0.0
        matrix, num_top = self.above[str(number)], self.sizes[0]
        added = (parts[0] @ matrix[..., :num_top].flatten(0, 1).T).unflatten(-1, matrix.shape[:2]) if num_top else 0.0
        start = num_top
        for above in self.hierarchy.blocks[number].above:
            outer = parts[1 + above.block][..., above.row, :]
            added = added + _times(matrix[..., start : start + outer.shape[-1]], outer)
            start += outer.shape[-1]
        return added

    # ---- block by block -------------------------------------------------------------------------------------

    def white_top(self, y: Tensor) -> Tensor:
        """Coordinates outside of plates, back to the base."""
        top, at = self.top_tril(), self.order[: self.sizes[0]]
        white = (y - self.loc[at]) * (-self.log_scale[at]).exp()
        return white if top is None else _solve(top, white)

    def rows(self, number: int, x: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A block's rows, ``(..., num_rows, row_dim)``, and each row's log-weight.

        :param before: what is above them, before this layer: the coordinates outside of plates, then blocks.
        :param after: the same after it.
        """
        at, within = self.hierarchy.blocks[number].columns.to(x.device), self.within_tril(number)
        y = (x if within is None else _times(within, x)) + self._from_above(number, before)
        return self.loc[at] + self.log_scale[at].exp() * y, self.log_scale[at].sum(-1).expand(y.shape[:-1])

    def rows_back(
        self, number: int, y: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`rows`."""
        at, within = self.hierarchy.blocks[number].columns.to(y.device), self.within_tril(number)
        x = (y - self.loc[at]) * (-self.log_scale[at]).exp() - self._from_above(number, before)
        x = x if within is None else _times(_inverse(within), x)
        return x, self.log_scale[at].sum(-1).expand(x.shape[:-1])

    # ---- the map --------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.loc + self.scaled(x), self.log_scale.sum().expand(x.shape[:-1])

    def by_row(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The image, and each block's log-weight of each row, ``(..., rows)``."""
        widths = [self.log_scale[block.columns].sum(-1) for block in self.hierarchy.blocks]
        return self(x)[0], [width.expand(*x.shape[:-1], -1) for width in widths]

    def scaled(self, x: Tensor) -> Tensor:
        """The map without its shift."""
        parts, top = self.hierarchy.split(x), self.top_tril()
        moved = [parts[0] if top is None else parts[0] @ top.T]
        for number, part in enumerate(parts[1:]):
            within = self.within_tril(number)
            moved.append((part if within is None else _times(within, part)) + self._from_above(number, parts))
        flat = self.hierarchy.join(moved)
        flat = flat if self._is_ordered else flat[..., self.places]
        return self.log_scale.exp() * flat

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat = (y - self.loc) * (-self.log_scale).exp()
        moved, top = self.hierarchy.split(flat if self._is_ordered else flat[..., self.order]), self.top_tril()
        parts = [moved[0] if top is None else _solve(top, moved[0])]
        for number, part in enumerate(moved[1:]):
            within = self.within_tril(number)
            part = part - self._from_above(number, parts)
            parts.append(part if within is None else _times(_inverse(within), part))
        return self.hierarchy.join(parts), self.log_scale.sum().expand(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float | Sequence[float] = 1.0) -> Tensor:
        """By blocks, the innermost first: the transposed map is solved backwards."""
        parts, top = self.hierarchy.split(score), self.top_tril()
        for number in reversed(range(len(self.hierarchy.blocks))):
            within = self.within_tril(number)
            part = parts[1 + number] if within is None else _times(_inverse(within).mT, parts[1 + number])
            parts[1 + number] = part
            if str(number) in self.above:
                self._take_off(number, part, parts)
        parts[0] = parts[0] if top is None else _solve(top, parts[0], transposed=True)
        flat = self.hierarchy.join(parts)
        return (flat if self._is_ordered else flat[..., self.places]) * (-self.log_scale).exp()

    def _take_off(self, number: int, part: Tensor, parts: list[Tensor]) -> None:
        """From the score above a block, the share that its rows carry."""
        matrix, num_top = self.above[str(number)], self.sizes[0]
        if num_top:
            parts[0] = parts[0] - part.flatten(-2) @ matrix[..., :num_top].flatten(0, 1)
        start = num_top
        for above in self.hierarchy.blocks[number].above:
            outer = parts[1 + above.block]
            share = _times(matrix[..., start : start + outer.shape[-1]].mT, part)
            parts[1 + above.block] = outer.index_add(-2, above.row.to(outer.device), -share)
            start += outer.shape[-1]

    def extra_repr(self) -> str:
        blocks = ", ".join(f"{block.num_rows} x {block.row_dim}" for block in self.hierarchy.blocks)
        return f"{self.sizes[0]} + {blocks}"


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix for each row times the row, ``(rows, a, b)`` and ``(..., rows, b)``."""
    return (matrix * x[..., None, :]).sum(-1)


def _solve(matrix: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
    return solve_triangular(matrix.T if transposed else matrix, x[..., None], upper=transposed)[..., 0]


def _inverse(matrix: Tensor) -> Tensor:
    """Of unit lower triangular matrices."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    return solve_triangular(matrix, eye, upper=False, unitriangular=True)


def _is_ordered(order: Tensor) -> bool:
    return bool((order.diff() == 1).all())
