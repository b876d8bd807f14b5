"""Training of some rows' numbers at a time: a step costs as much as the rows that it has, however many there are."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..layers import PlateAffine
from ..model.rows import Rows
from ..nets.steps import step_factor
from ..nets.table import Table
from .program import State


class RowState:
    """All parameters of a layer over all rows, with Adam's moments and a count of the steps that each has taken.

    :param layer: over all rows.
    :param leaves: trainable tensors of the model's own, which each step has.
    :param factors: by the name of a parameter, for a layer that has no numbers of each row: all of it is in each step.

    Example::

        >>> from pyro_nflows.layers import PlateAffine
        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> whole = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((9,), {"groups": 0})})
        >>> state = RowState(PlateAffine(whole, torch.arange(10.0)))
        >>> index = state.index(Rows.of(whole, {"groups": torch.tensor([4, 0])}))
        >>> state.take(index).params[:3]
        tensor([0., 5., 1.])
    """

    def __init__(self, layer: nn.Module, leaves: Sequence[Tensor] = (), factors: Mapping[str, Tensor] | None = None):
        own = list(_parts(layer)) if factors is None else [(parameter, None) for _, parameter in _trained(layer)]
        self._parts: list[tuple[Tensor, int | str | None]] = [*own, *((leaf, None) for leaf in leaves)]
        self.params = torch.cat([parameter.detach().reshape(-1) for parameter, _ in self._parts])
        self.mean, self.square = (torch.zeros_like(self.params) for _ in range(2))
        self.steps = torch.zeros_like(self.params, dtype=torch.int16)
        self.skipped = self.params.new_zeros(())
        known = _factors(layer) if factors is None else (factors[name] for name, _ in _trained(layer))
        self.own_factors = [*known, *(leaf.new_ones(()) for leaf in leaves)]  # as scales are at the start

    def index(self, rows: Rows) -> Tensor | slice:
        """Where the parameters of a layer over these rows are among all, in its own order."""
        if rows.is_all:
            return slice(None)
        found, start = list[Tensor](), 0
        for parameter, kind in self._parts:
            if kind is None:
                found.append(torch.arange(start, start + parameter.numel()))
            elif isinstance(kind, int):
                stride = parameter[0].numel()
                found.append((start + rows.numbers[kind][:, None] * stride + torch.arange(stride)).reshape(-1))
            else:
                found.append(start + rows.columns)
            start += parameter.numel()
        return torch.cat(found)

    def factors(self, rows: Rows) -> Tensor:
        """What step sizes are multiplied by: of a layer over these rows, in its own order.

        A location moves in units of its scale; and what says how a row depends on what is outside of its plate moves
        the less, the more rows there are that tell of that.
        """
        found = list[Tensor]()
        for (parameter, kind), factor in zip(self._parts, self.own_factors):
            if kind is None:
                found.append(factor.expand_as(parameter).reshape(-1))
            elif isinstance(kind, int):
                found.append(factor.expand(len(rows.numbers[kind]) * parameter[0].numel()))
            else:
                found.append(factor.expand_as(parameter)[rows.columns])
        return torch.cat(found)

    def take(self, index: Tensor | slice) -> State:
        """The state of some of them."""
        params, mean, square, steps = (part[index] for part in (self.params, self.mean, self.square, self.steps))
        return State(params, mean, square, steps.to(params), self.skipped)

    def put(self, index: Tensor | slice, state: State) -> None:
        """Where a step has led some of them."""
        for part, new in zip((self.params, self.mean, self.square), state):
            part[index] = new
        self.steps[index] = state.steps.clamp(max=MOST_STEPS).to(self.steps)
        self.skipped = state.skipped

    @torch.no_grad()
    def write(self) -> None:
        """Put the parameters into the layer, and into the leaves."""
        sizes = [parameter.numel() for parameter, _ in self._parts]
        for (parameter, _), part in zip(self._parts, self.params.split(sizes)):
            parameter.copy_(part.view(parameter.shape))


#: Steps of a number are counted up to here, where Adam's moments no longer depend on the count.
MOST_STEPS = 2**15 - 1
#: Up to so many rows take full steps where they say how rows depend on what is outside of their plate.
FEW_ROWS = 1000


def dependence_factor(num_rows: int) -> float:
    """What steps are multiplied by in numbers that say how so many rows depend on what is outside of their plate.

    Example::

        >>> dependence_factor(10_000)
        0.1
    """
    return min(1.0, FEW_ROWS / num_rows)


def _parts(layer: nn.Module) -> Iterator[tuple[nn.Parameter, int | str | None]]:
    """Each parameter, with the block whose rows have it, or "flat" if it is in the order of the flat latent."""
    owners = {}
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners[id(parameter)] = module, name
    for parameter in layer.parameters():
        module, name = owners[id(parameter)]
        if isinstance(module, Table):
            yield parameter, int(name)
        elif isinstance(module, PlateAffine) and name in ("loc", "log_scale"):
            yield parameter, "flat"
        else:
            yield parameter, None


@torch.no_grad()
def _factors(layer: nn.Module) -> Iterator[Tensor]:
    """For each parameter, in order: a number, or one for each of its own."""
    known, ends = dict[int, Tensor](), [part for part in layer.modules() if isinstance(part, PlateAffine)]
    for end in ends:
        known[id(end.loc)] = end.log_scale.exp()
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, Table):
                factor = dependence_factor(len(parameter)) if module.reads_above else 1.0
                known[id(parameter)] = parameter.new_tensor(factor)
            known.setdefault(id(parameter), parameter.new_tensor(step_factor(module, name)))
    return (known[id(parameter)] for parameter in layer.parameters())


def _trained(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in layer.named_parameters() if parameter.requires_grad)
