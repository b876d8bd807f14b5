"""Work in parts that take a moment each, so that an interrupt is noticed soon and costs no more than a moment."""

import math
import time
from collections.abc import Callable, Iterator

from torch import Tensor

#: At most so many times longer than the last part is the next one, lest one quick step is taken for the rule.
GROWTH = 10
#: Where time is limited, rows that come first, and the share of what is left that the next ones may take.
FEW, PART = 4, 0.25


class Pace:
    """How many steps take a moment, from how long the last ones took.

    :param seconds: a moment.

    Example::

        >>> pace = Pace(seconds=60.0)
        >>> [(part.start, part.stop) for part in pace.parts(150)]
        [(0, 1), (1, 11), (11, 111), (111, 150)]
    """

    def __init__(self, seconds: float):
        self.seconds, self.num_steps = seconds, 1

    def parts(self, num_steps: int) -> Iterator[slice]:
        """So many steps in parts; what is done with one, before the next is asked for, sets the pace."""
        start = 0
        while start < num_steps:
            num, began = min(self.num_steps, num_steps - start), time.perf_counter()
            yield slice(start, start + num)
            step = (time.perf_counter() - began) / num
            self.num_steps = int(max(1, min(self.seconds / max(step, 1e-9), GROWTH * num)))
            start += num


def portions(rows: Tensor, most: int, until: float = math.inf) -> Iterator[Tensor]:
    """Rows a part at a time; where time is limited, some at first, then as many as take a part of what is left.

    There are no further ones once it is over; what is done with a part, before the next is asked for, sets the pace.

    :param rows: any number of them.
    :param most: at a time.
    :param until: when it is over, by ``time.perf_counter``.

    Example::

        >>> rows = torch.zeros(10)
        >>> [len(part) for part in portions(rows, 4)], [len(part) for part in portions(rows, 8, until=0.0)]
        ([4, 4, 2], [4])
    """
    start, size = 0, most if until == math.inf else min(most, FEW)
    while start < len(rows):
        began = time.perf_counter()
        if start and began > until:
            return
        yield rows[start : start + size]
        start, now = start + size, time.perf_counter()
        if until < math.inf:
            size = max(1, min(most, int(PART * (until - now) * size / (now - began + 1e-9))))


def unbroken(action: Callable[[], None]) -> None:
    """Do to its end what may be done again, and let an interrupt through only then.

    Example::

        >>> calls = []
        >>> def interrupted_once():
        ...     calls.append(len(calls))
        ...     if len(calls) == 1:
        ...         raise KeyboardInterrupt
        ...
        >>> try:
        ...     unbroken(interrupted_once)
        ... except KeyboardInterrupt:
        ...     calls
        [0, 1]
    """
    late: KeyboardInterrupt | None = None
    while True:
        try:
            action()
            break
        except KeyboardInterrupt as error:
            late = error
    if late is not None:
        raise late
