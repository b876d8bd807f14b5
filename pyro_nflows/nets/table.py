"""Numbers of rows: what each row of a plate has of its own."""

from torch import nn


class Table(nn.ParameterDict):
    """Parameters ``(num_rows, ..., n)`` by name, the last dimension of which is added up in one number of a row.

    Example::

        >>> import torch
        >>> table = Table({"0": nn.Parameter(torch.zeros(100, 2, 3))})
        >>> table.fan_in("0")
        3
    """

    def fan_in(self, name: str) -> int:
        """How many numbers of a parameter are added up in one that it makes; see :mod:`~pyro_nflows.nets.steps`."""
        return int(self[name].shape[-1])
