"""Numbers of rows: what each row of a plate has of its own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .views import view_of


class Table(nn.ParameterDict):
    """Parameters ``(num_rows, ..., n)`` by name, the last dimension of which is added up in one number of a row.

    :param parameters: to begin with.
    :param reads_above: whether they say how a row depends on what is outside of its plate.

    Example::

        >>> import torch
        >>> table = Table({"0": nn.Parameter(torch.zeros(100, 2, 3))})
        >>> table.fan_in("0")
        3
    """

    def __init__(self, parameters: Any = None, *, reads_above: bool = False):
        super().__init__(parameters)
        self.reads_above = reads_above

    def fan_in(self, name: str) -> int:
        """How many numbers of a parameter are added up in one that it makes; see :mod:`~pyro_nflows.nets.steps`."""
        return int(self[name].shape[-1])

    def taken(self, numbers: Sequence[Tensor]) -> "Table":
        """A view of chosen rows, whose parameters are functions of these; see :func:`~pyro_nflows.nets.views.on_rows`.

        :param numbers: the rows of each parameter, which is named by its place among them.
        """
        kept = {key: numbers[int(key)] for key in self if int(key) < len(numbers)}
        taken = {key: self[key][at.to(self[key].device)] for key, at in kept.items()}
        return view_of(self, _parameters=taken, _keys=dict.fromkeys(taken))
