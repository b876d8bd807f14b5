r"""Where the tensors of a recording lie, of which like operations give many in the rows of one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

#: Pieces from which on rows of other operations' results are gathered by their numbers.
MANY_PIECES = 16
#: Rows that are taken out of a tensor by themselves; of more, the gradient would be as many tensors of its size.
FEW_ROWS = 4

#: The tensors made so far, by their places.
Made = list[Any]
#: Gives a tensor that an operation needs.
Source = Callable[[Made], Tensor]


class Places:
    """Where each of a recording's tensors lies: a place, and which row of the tensor there, if that holds several.

    :param num_given: the first tensors, by number, are given: each is in the place of its number.
    :param constants: those that are not computed.

    Example::

        >>> places = Places(1, {})
        >>> places.put([5, 6, 7], place=places.new_place(), rows=[0, 1, 2])
        >>> places.rows([6, 7])([None, torch.tensor([1.0, 2.0, 3.0])])
        tensor([2., 3.])
    """

    def __init__(self, num_given: int, constants: Mapping[int, Tensor]):
        self.num_places = num_given
        self._constants = constants
        self._at: dict[int, tuple[int, int | None]] = {number: (number, None) for number in range(num_given)}
        self._wanted: dict[int, set[int]] = {}  # rows of a place that are wanted one by one
        self._apart: dict[int, int] = {}  # where these lie

    def new_place(self) -> int:
        """A place for one more tensor."""
        self.num_places += 1
        return self.num_places - 1

    def put(self, numbers: Sequence[int], place: int, rows: Sequence[int] | None = None) -> None:
        """Note where tensors will be: all in one place, or in rows of it."""
        for i, number in enumerate(numbers):
            self._at[number] = place, None if rows is None else rows[i]

    def where(self, number: int) -> tuple[int, int]:
        """A place and a row, by which tensors that lie together can be put in order."""
        place, row = self._at.get(number, (-1, number))
        return place, row or 0

    def one(self, number: int) -> Source:
        """One tensor."""
        if number in self._constants:
            return _constant(self._constants[number])
        place, row = self._at[number]
        if row is None:
            return lambda made: made[place]
        wanted = self._wanted.setdefault(place, set())
        wanted.add(row)
        apart = self._apart.get(place) or self.new_place()
        self._apart[place] = apart

        def source(made: Made) -> Tensor:
            if len(wanted) <= FEW_ROWS:
                return cast(Tensor, made[place].select(0, row))
            if made[apart] is None:
                made[apart] = made[place].unbind(0)
            return cast(Tensor, made[apart][row])

        return source

    def rows(self, numbers: Sequence[int]) -> Source:
        """Several tensors of one shape, one a row."""
        runs = list(self._runs(numbers))
        if len(runs) == 1:
            return runs[0]
        places = {self._at[number][0] for number in numbers if number not in self._constants}
        if len(runs) > MANY_PIECES > len(places):
            return self._by_number(numbers, sorted(places))
        return lambda made: torch.cat([run(made) for run in runs])

    def _by_number(self, numbers: Sequence[int], places: Sequence[int]) -> Source:
        """Rows of a few tensors, and constants, by their numbers."""
        last = dict[int, int | None]()
        for place, row in self._at.values():
            last[place] = None if row is None else max(row, last.get(place) or 0)
        known = [number for number in dict.fromkeys(numbers) if number in self._constants]
        sources, starts, start = list[Source](), dict[int, int](), 0
        for place in places:
            row = last[place]
            starts[place], num = start, 1 + (row or 0)
            sources.append(_piece(place, None if row is None else 0, num))
            start += num
        if known:
            sources.append(_constant(torch.stack([self._constants[number] for number in known])))
        at = {number: start + i for i, number in enumerate(known)}
        at |= {n: starts[self._at[n][0]] + (self._at[n][1] or 0) for n in numbers if n not in at}
        index = torch.tensor([at[number] for number in numbers])

        def source(made: Made) -> Tensor:
            rows = [each(made) for each in sources]
            x = torch.cat(rows) if len(rows) > 1 else rows[0]
            return x.index_select(0, index.to(x.device))

        return source

    def _runs(self, numbers: Sequence[int]) -> Iterator[Source]:
        """What gives each of the longest pieces that lie one row after the other."""
        i = 0
        while i < len(numbers):
            j = i + 1
            if numbers[i] in self._constants:
                while j < len(numbers) and numbers[j] in self._constants:
                    j += 1
                yield _constant(torch.stack([self._constants[number] for number in numbers[i:j]]))
            else:
                place, row = self._at[numbers[i]]
                while row is not None and j < len(numbers) and self._at.get(numbers[j]) == (place, row + j - i):
                    j += 1
                yield _piece(place, row, j - i)
            i = j


def _constant(tensor: Tensor) -> Source:
    return lambda made: tensor


def _piece(place: int, row: int | None, num: int) -> Source:
    """Some rows of a place, or what is there as a row."""
    return lambda made: made[place][None] if row is None else made[place].narrow(0, row, num)
