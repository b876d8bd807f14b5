"""All rows of a pass over minibatches, which come batch by batch and are never all in memory where they are many."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..system.mapped import mapped

#: Bytes of all rows up to which they are kept in memory; beyond, they are in a file.
MOST_BYTES = 2**28
#: Rows that are sorted at a time.
CHUNK = 2**14


class RowStore:
    """A column for each tensor of a minibatch, with room for all rows.

    :param like: the tensors of the first minibatch.
    :param num_rows: how many rows there are in all.

    Example::

        >>> store = RowStore([torch.zeros(2)], 4)
        >>> store.put(torch.tensor([3, 1]), [torch.tensor([30.0, 10.0])])
        >>> store.put(torch.tensor([0, 2]), [torch.tensor([0.0, 20.0])])
        >>> store.columns
        [tensor([ 0., 10., 20., 30.])]
    """

    def __init__(self, like: Sequence[Tensor], num_rows: int):
        size = num_rows * sum(tensor[0].numel() * tensor.element_size() for tensor in like)
        self.is_large = size > MOST_BYTES
        self.columns = [_column(tensor, num_rows, self.is_large) for tensor in like]

    @torch.no_grad()
    def put(self, rows: Tensor | slice, tensors: Sequence[Tensor]) -> None:
        """Rows at their places.

        :param rows: where.
        :param tensors: of a minibatch.
        """
        for column, tensor in zip(self.columns, tensors):
            column[rows.to(column.device) if isinstance(rows, Tensor) else rows] = tensor

    def sorted(self, numbers: Tensor) -> "RowStore":
        """The same with each row at its number.

        :param numbers: of the rows, each once.
        """
        found, order = RowStore([column[:1] for column in self.columns], len(numbers)), numbers.argsort()
        for start in range(0, len(order), CHUNK):
            rows = order[start : start + CHUNK]
            part = [column[rows.to(column.device)] for column in self.columns]
            found.put(slice(start, start + len(rows)), part)
        return found


def _column(like: Tensor, num_rows: int, is_large: bool) -> Tensor:
    shape = (num_rows, *like.shape[1:])
    if is_large and like.device.type == "cpu":
        return mapped(shape, like.dtype)
    return torch.empty(shape, dtype=like.dtype, device=like.device)
