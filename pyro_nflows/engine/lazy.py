"""Training of some rows' numbers at a time: a step costs as much as the rows that it has, however many there are."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..layers import PlateAffine
from ..model.rows import Rows
from ..nets.steps import step_factor
from ..nets.table import Table
from .program import State


class RowState:
    """All parameters of a layer over all rows, with Adam's moments and a count of the steps that each has taken.

    ``factors`` is what the step size of each is multiplied by: a location moves in units of its scale; and what says
    how a row depends on what is outside of its plate moves the less, the more rows there are that tell of that.

    :param layer: over all rows.

    Example::

        >>> from pyro_nflows.layers import PlateAffine
        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> whole = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((9,), {"groups": 0})})
        >>> state = RowState(PlateAffine(whole, torch.arange(10.0)))
        >>> index = state.index(Rows.of(whole, {"groups": torch.tensor([4, 0])}))
        >>> state.take(index).params[:3]
        tensor([0., 5., 1.])
    """

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self._parts = list(_parts(layer))
        self.params = torch.cat([parameter.detach().reshape(-1) for parameter, _ in self._parts])
        self.mean, self.square, self.steps = (torch.zeros_like(self.params) for _ in range(3))
        self.skipped = self.params.new_zeros(())
        self.factors = torch.cat(list(_factors(layer)))

    def index(self, rows: Rows) -> Tensor:
        """Where the parameters of a layer over these rows are among all, in its own order."""
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

    def take(self, index: Tensor) -> State:
        """The state of some of them."""
        params, mean, square, steps = (part[index] for part in (self.params, self.mean, self.square, self.steps))
        return State(params, mean, square, steps, self.skipped)

    def put(self, index: Tensor, state: State) -> None:
        """Where a step has led some of them."""
        for part, new in zip((self.params, self.mean, self.square, self.steps), state):
            part[index] = new
        self.skipped = state.skipped

    @torch.no_grad()
    def write(self) -> None:
        """Put the parameters into the layer."""
        sizes = [parameter.numel() for parameter, _ in self._parts]
        for (parameter, _), part in zip(self._parts, self.params.split(sizes)):
            parameter.copy_(part.view(parameter.shape))


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


#: Tables of up to so many rows take full steps where they say how rows depend on what is outside of their plate.
FEW_ROWS = 1000


@torch.no_grad()
def _factors(layer: nn.Module) -> Iterator[Tensor]:
    """For each parameter, in order."""
    known, ends = dict[int, Tensor](), [part for part in layer.modules() if isinstance(part, PlateAffine)]
    for end in ends:
        known[id(end.loc)] = end.log_scale.exp()
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, Table):
                factor = min(1.0, FEW_ROWS / len(parameter)) if module.reads_above else 1.0
                known[id(parameter)] = torch.full_like(parameter, factor)
            known.setdefault(id(parameter), torch.full_like(parameter, step_factor(module, name)))
    for parameter in layer.parameters():
        yield known[id(parameter)].reshape(-1)
