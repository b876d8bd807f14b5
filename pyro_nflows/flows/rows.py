"""A flow that follows plates, taken block by block: the rows of a block as a distribution, given what is above them."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor

from ..layers import PlateFlow
from ..layers.base import Chain
from ..numerics import finite_rows, standard_normal_log_prob
from ..system.memory import enough_for
from .whitened import Whitened

#: A block's rows in the base, after each of the layers, and each row's log-weight.
Stages = tuple[list[Tensor], Tensor]


class RowFlow:
    """The layers that move rows, given what is outside of plates; blocks are added one after the other.

    :param layer: a flow that follows plates; not one that rescales its parameters.
    :param top: what is outside of plates, ``(..., num_top)``, at the posterior end.
    """

    def __init__(self, layer: Whitened, top: Tensor):
        flow = list(layer.flow) if isinstance(layer.flow, Chain) else [layer.flow]
        self.layers: list[Any] = [part for part in [*flow, layer.end] if hasattr(part, "rows")]
        white = cast(Any, layer.end).white_top(top) if top.shape[-1] else top
        self.stages = [[white] for _ in range(len(self.layers) + 1)]
        self.layer = layer

    @property
    def has_flow(self) -> bool:
        """Whether rows have a flow of their own, whose inverse is dear, or draws auxiliary variables."""
        return any(isinstance(part, PlateFlow) for part in self.layers)

    def noise_dim(self, number: int) -> int:
        """Standard normal numbers that a row of a block takes beside its base."""
        return sum(part.flow(number).noise_dim for part in self.layers if isinstance(part, PlateFlow))

    def forward(self, number: int, x: Tensor, noise: Tensor | None = None) -> Stages:
        """A block's rows, ``(..., num_rows, row_dim)``, from the base on.

        :param noise: of the one layer that has auxiliary variables, ``(..., num_rows, noise_dim)``.
        """
        found, total = [x], x.new_zeros(x.shape[:-1])
        for part, before, after in zip(self.layers, self.stages, self.stages[1:]):
            own = (noise,) if isinstance(part, PlateFlow) else ()
            moved, log_weight = part.rows(number, found[-1], before, after, *own)
            found.append(moved)
            total = total + log_weight
        return found, total

    def back(self, number: int, y: Tensor) -> Stages:
        """The same from the posterior end."""
        found, total = [y], y.new_zeros(y.shape[:-1])
        for part, before, after in reversed(list(zip(self.layers, self.stages, self.stages[1:]))):
            moved, log_weight = part.rows_back(number, found[0], before, after)
            found.insert(0, moved)
            total = total + log_weight
        return found, total

    def add(self, found: Sequence[Tensor]) -> None:
        """Know a block's rows, after each of the layers."""
        for stage, rows in zip(self.stages, found):
            stage.append(rows)


class RowDistribution(TorchDistribution):
    r"""The rows of a block as independent draws, given what is above them: a batch of the shape of their plates.

    .. math:: q(z_b | g, a) = \prod_i q(z_i | g, a_i)

    Each row has a log density of its own, so that Pyro scales those of a minibatch as it scales the model's. With
    ``stopped``, Pyro's ELBOs get the gradient of the entropy without the score of :math:`q`, as from
    :class:`~pyro_nflows.FlowDistribution`. A value drawn from this object is remembered with its way from the base.

    :param flow: what is above the rows.
    :param number: of the block.
    :param row_dim: coordinates of a row.
    :param batch_shape: ends with the sizes of the plates, one where they leave a dimension out.
    :param nesting: how many of the rightmost dimensions are the model's plates; those further left are particles'.
    :param stopped: the same flow at parameters without gradients.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        flow: RowFlow,
        number: int,
        row_dim: int,
        batch_shape: torch.Size,
        nesting: int,
        stopped: RowFlow | None = None,
    ):
        self.flow, self.number, self.nesting, self.stopped = flow, number, nesting, stopped
        self.drawn: list[tuple[Tensor, Stages]] = []
        super().__init__(batch_shape, torch.Size((row_dim,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "RowDistribution":
        batch_shape = torch.Size(batch_shape)
        new = RowDistribution(self.flow, self.number, self.event_shape[0], batch_shape, self.nesting, self.stopped)
        new.drawn = self.drawn
        return new

    def rows(self, value: Tensor) -> Tensor:
        """A value with plates as ``(..., num_rows, row_dim)``."""
        return as_rows(value, self.nesting)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        like = next(self.flow.layer.parameters())
        with enough_for("RowDistribution.sample", "rows", shape[:-1], 2 * shape[-1], like):
            return self._rsample(shape)

    def _rsample(self, shape: torch.Size) -> Tensor:
        like = next(self.flow.layer.parameters())
        width = shape[-1] + self.flow.noise_dim(self.number)
        numbers = self.rows(torch.randn(*shape[:-1], width, dtype=like.dtype, device=like.device))
        x, noise = numbers[..., : shape[-1]], numbers[..., shape[-1] :]
        stages = self.flow.forward(self.number, x, noise if noise.shape[-1] else None)
        y = stages[0][-1].reshape(shape)
        if y.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(y):
            y.register_hook(finite_rows)
        self.drawn[:] = [(y, stages)]
        return y

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def stages(self, value: Tensor) -> Stages:
        """The rows after each of the layers, of a value that was drawn from this object or not."""
        if self.drawn and value is self.drawn[0][0]:
            return self.drawn[0][1]
        return self.flow.back(self.number, self.rows(value))

    def log_prob(self, value: Tensor) -> Tensor:
        """Each row's log density."""
        return self._log_prob(value, self.stages(value))

    def _log_prob(self, value: Tensor, stages: Stages) -> Tensor:
        found, log_weight = stages
        return (standard_normal_log_prob(found[0]) - log_weight).reshape(value.shape[:-1])

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        parts: ScoreParts = super().score_parts(x, *args, **kwargs)
        if self.stopped is None:
            return parts
        return parts._replace(entropy_term=self._log_prob(x, self.stopped.back(self.number, self.rows(x))))


def as_rows(value: Tensor, nesting: int) -> Tensor:
    """A value with plates, ``(particles, plates, row_dim)``, as ``(particles, num_rows, row_dim)``.

    Example::

        >>> as_rows(torch.zeros(5, 3, 2, 4), nesting=2).shape
        torch.Size([5, 6, 4])
    """
    batch = value.shape[: max(0, value.dim() - 1 - nesting)]
    return value.reshape(*batch, -1, value.shape[-1])
