from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..checks import check_functions, check_sizes
from ..model.hierarchy import Hierarchy
from ..model.rows import Rows
from ..nets.features import Features
from ..nets.table import Table
from ..nets.views import taken_rows
from ..system.gradients import pullback
from ..system.shapes import broadcast_shapes
from .base import Exactness, Layer, Scored
from .shapes import need_hierarchy, need_layers

#: How far an optimiser's step moves a row's code, in units of other numbers of rows.
CODE_STEP = 10.0


class PlateFlow(Layer):
    r"""The rows of plates, each moved by one flow that all rows share, which reads a code of the row's own.

    .. math:: y_i = f(x_i; c_i, \phi(a_i)), \qquad y_g = x_g

    for row :math:`i`, its code :math:`c_i`, a few numbers, and the coordinates :math:`a_i` that it is within
    (:math:`g`, those outside of plates, by learned features, and its outer rows). The code is the flow's context, with
    these. So rows are independent given what they are within, each may have any shape, and a row costs as many numbers
    as its code has. With an encoder in the place of the codes it is the posterior of a variational autoencoder [1, 2].
    It starts where the flow does, which is the identity for those of :mod:`pyro_nflows.flows`; codes start as standard
    normal numbers, since neither codes of zero nor what reads them would ever move.

    The coordinates outside of plates come first, then the blocks, row by row, as :class:`PlateAffine` takes them.
    Forward and inverse cost as much as the flow's own, for each row.

    :param hierarchy: which coordinates are in which plates.
    :param build: ``(row_dim, context_dim) -> Layer``, a flow that takes a context; called once a block.
    :param code_dim: numbers in a code.
    :param num_features: number of learned features of what is outside of plates.
    :param hidden_dims: widths of the hidden layers of the network that has them as outputs.
    :raises ValueError: if ``code_dim < 1`` or ``num_features < 1``.

    Example::

        >>> from pyro_nflows.layers import Autoregressive
        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> hierarchy = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((3, 2), {"groups": 0})})
        >>> layer = PlateFlow(hierarchy, lambda row_dim, context_dim: Autoregressive(row_dim, context_dim=context_dim))
        >>> y, log_weight = layer(torch.randn(10, 7))

    **References**

    [1] D. Rezende, S. Mohamed (2015). Variational Inference with Normalizing Flows.

    [2] D. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling (2016). Improved Variational
    Inference with Inverse Autoregressive Flow.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        build: Callable[[int, int], Layer],
        *,
        code_dim: int = 16,
        num_features: int = 8,
        hidden_dims: Sequence[int] = (32,),
    ):
        super().__init__(need_hierarchy("PlateFlow", hierarchy).dim)
        check_sizes("PlateFlow", code_dim=code_dim)
        check_functions("PlateFlow", build=build)
        self.hierarchy, self.sizes = hierarchy, hierarchy.sizes()
        self.features, self.codes, self.flows = (
            Features(self.sizes[0], num_features, hidden_dims),
            Table(),
            nn.ModuleDict(),
        )
        self.codes.step = CODE_STEP  # type: ignore[assignment]
        for number, block in enumerate(hierarchy.blocks):
            outer = self.features.output_dim + hierarchy.width_above(block) - self.sizes[0]
            self.codes[str(number)] = nn.Parameter(torch.randn(block.num_rows, code_dim))
            self.flows[str(number)] = _flow_of_a_row(build, block.row_dim, code_dim + outer)
        inner = [self.flow(number) for number in range(len(hierarchy.blocks))]
        self.exactness = min((flow.exactness for flow in inner), default=Exactness.EXACT)
        self.count_noise()

    def count_noise(self) -> None:
        """Know how much noise the rows of each block take."""
        rows = [block.num_rows for block in self.hierarchy.blocks]
        self.noise_dims = [num * self.flow(number).noise_dim for number, num in enumerate(rows)]
        self.inverse_noise_dims = [num * self.flow(number).inverse_noise_dim for number, num in enumerate(rows)]
        self.noise_dim, self.inverse_noise_dim = sum(self.noise_dims), sum(self.inverse_noise_dims)

    @property
    def has_inverse(self) -> bool:
        return all(self.flow(number).has_inverse for number in range(len(self.hierarchy.blocks)))

    def flow(self, number: int) -> Layer:
        """The flow that the rows of a block share."""
        return self.flows[str(number)]  # type: ignore[return-value]

    def on_rows(self, rows: Rows) -> "PlateFlow":
        """A view of the same numbers for chosen rows; see :func:`~pyro_nflows.nets.views.on_rows`."""
        view = taken_rows(self, rows)
        view.count_noise()
        return view

    # ---- one block ------------------------------------------------------------------------------------------

    def _outer(self, number: int, parts: Sequence[Tensor]) -> list[Tensor]:
        """The blocks that a block is within, as they are."""
        return [parts[1 + above.block] for above in self.hierarchy.blocks[number].above]

    def _at(self, number: int, top: Tensor, *outer: Tensor) -> Layer:
        """A block's flow, told each row's code and what it is within."""
        code = self.codes[str(number)]
        parts = [code]
        if self.features.output_dim:
            features = self.features(top)
            parts.append(features[..., None, :].expand(*features.shape[:-1], len(code), -1))
        parts += [part[..., above.row, :] for above, part in zip(self.hierarchy.blocks[number].above, outer)]
        batch = broadcast_shapes(*(part.shape[:-1] for part in parts))
        return self.flow(number).at(torch.cat([part.expand(*batch, -1) for part in parts], -1))

    def rows(
        self,
        number: int,
        x: Tensor,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A block's rows, ``(..., num_rows, row_dim)``, and each row's log-weight.

        :param before: what is above them, before this layer: the coordinates outside of plates, then blocks.
        :param after: the same after it.
        :param noise: of the flow's auxiliary variables, ``(..., num_rows, noise_dim)``.
        """
        return self._at(number, after[0], *self._outer(number, after))(x, noise)

    def rows_back(
        self, number: int, y: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`rows`; auxiliary variables are drawn."""
        return self._at(number, after[0], *self._outer(number, after)).inverse(y)

    # ---- the map --------------------------------------------------------------------------------------------

    def _noise(self, noise: Tensor | None, sizes: Sequence[int], number: int) -> Tensor | None:
        """A block's share of the noise, row by row."""
        if noise is None or not sizes[number]:
            return None
        return noise.split(list(sizes), -1)[number].unflatten(-1, (self.hierarchy.blocks[number].num_rows, -1))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, by_row = self.by_row(x, noise)
        return y, sum((part.sum(-1) for part in by_row), x.new_zeros(x.shape[:-1]))

    def by_row(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The image, and each block's log-weight of each row, ``(..., rows)``."""
        parts, found = self.hierarchy.split(x), list[Tensor]()
        for number in range(len(self.hierarchy.blocks)):
            own = self._noise(noise, self.noise_dims, number)
            parts[1 + number], log_weight = self.rows(number, parts[1 + number], parts, parts, own)
            found.append(log_weight)
        return self.hierarchy.join(parts), found

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parts, total = self.hierarchy.split(y), y.new_zeros(y.shape[:-1])
        found = [parts[0]]
        for number in range(len(self.hierarchy.blocks)):
            layer = self._at(number, parts[0], *self._outer(number, parts))
            part, log_weight = layer.inverse(parts[1 + number], self._noise(noise, self.inverse_noise_dims, number))
            found.append(part)
            total = total + log_weight.sum(-1)
        return self.hierarchy.join(found), total

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float | Sequence[float] = 1.0) -> Tensor:
        """Block after block: each moves its rows alone, and reads what it is within as that is by then."""
        if self.noise_dim:
            return super().transport(x, y, score, weight if isinstance(weight, float | int) else weight[0])
        before, after, scores = self.hierarchy.split(x), self.hierarchy.split(y), self.hierarchy.split(score)
        for number in range(len(self.hierarchy.blocks)):
            block, given = self.hierarchy.blocks[number], [after[0], *self._outer(number, after)]
            at, counts = 1 + number, weight if isinstance(weight, float | int) else weight[number]
            scores[at] = self._at(number, *given).transport(before[at], after[at], scores[at], counts)
            if not self.features.output_dim and not block.above:
                continue
            (_, log_weight), pull = pullback(
                lambda *given, number=number, part=before[at]: self._at(number, *given)(part), *given
            )
            shares = pull((-scores[at], torch.full_like(log_weight, -counts)))
            for above, share in zip([0, *(1 + above.block for above in block.above)], shares):
                scores[above] = scores[above] + share
        return self.hierarchy.join(scores)

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        """With auxiliary variables, for blocks that read nothing but their codes."""
        if not self.noise_dim or self.features.output_dim or any(block.above for block in self.hierarchy.blocks):
            return super().scored(x, noise, score, reverse)
        parts, scores = self.hierarchy.split(x), self.hierarchy.split(score)
        reverses = self.hierarchy.split(reverse) if reverse.numel() else [reverse] * len(parts)
        sums: list[Tensor | float] = [x.new_zeros(x.shape[:-1]), 0.0, 0.0, 0.0]
        for number in range(len(self.hierarchy.blocks)):
            at, own = 1 + number, self._noise(noise, self.noise_dims, number)
            there = reverses[at] if reverse.numel() else parts[at][..., :0]
            step = self._at(number, parts[0]).scored(parts[at], own, scores[at], there)
            parts[at], scores[at] = step.y, step.score
            if reverse.numel():
                reverses[at] = step.reverse
            sums = [a + _summed(b) for a, b in zip(sums, (step.log_weight, *step[4:]))]
        join = self.hierarchy.join
        back = join(reverses) if reverse.numel() else reverse
        return Scored(join(parts), sums[0], join(scores), back, *sums[1:])  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        blocks = ", ".join(f"{block.num_rows} x {block.row_dim}" for block in self.hierarchy.blocks)
        return f"{self.sizes[0]} + {blocks}"


def _summed(value: Tensor | float) -> Tensor | float:
    """Over rows."""
    return value.sum(-1) if isinstance(value, Tensor) else value


def _flow_of_a_row(build: Callable[[int, int], Layer], row_dim: int, context_dim: int) -> Layer:
    """What ``build`` made, if that is a flow of a row.

    :raises TypeError: if it is no layer.
    :raises ValueError: if it is of other dimensions.
    """
    flow = build(row_dim, context_dim)
    need_layers("PlateFlow", flow)
    if (flow.input_dim, flow.output_dim) != (row_dim, row_dim):
        raise ValueError(
            f"PlateFlow: the flow of a row was built with {flow.input_dim} -> {flow.output_dim} dimensions, but a row "
            f"has {row_dim}; use the dimension that rows= or build is called with"
        )
    return flow
