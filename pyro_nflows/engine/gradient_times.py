"""What gradients take where time is limited: how many rows at once, whether a recording pays, what is not begun."""

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable

from torch import Tensor

from .budget import Budget
from .cost import MOMENT, RECORDING, Cost, tried

#: Products with a Hessian take about so many times what gradients do.
TWICE = 5.0
#: The share of a run's time within which nobody minds a recording that is used once.
CHEAP = 0.01
#: The share of the time left that a recording may take.
MOST = 0.3


class GradientTimes:
    """Of one log density, in the time of a run; where that has no limit, nothing is timed.

    :param run: computes gradients at rows, for trials.

    Example::

        >>> times = GradientTimes(lambda z: z)
        >>> times.num_at_once(torch.zeros(3, 2), 256)
        256
    """

    def __init__(self, run: Callable[[Tensor], Tensor]):
        self.budget, self._run = Budget(), run
        self._cost: Cost | None = None
        self._last, self._num_runs = dict[Hashable, float](), Counter[Hashable]()

    def cost_at(self, z: Tensor) -> Cost:
        """What gradients at rows take, found out by a few the first time.

        :param z: rows, or one point.
        """
        if self._cost is None:
            self.budget.need()
            point = z.detach().reshape(-1, z.shape[-1])[:1]
            self._cost = tried(lambda num: self._run(point.expand(num, -1)), self.budget.seconds)
        return self._cost

    def num_at_once(self, z: Tensor, most: int) -> int:
        """How many rows are evaluated at once: what takes a moment, and a power of four, since each has a recording.

        :param z: the rows.
        :param most: how many without a limit.
        """
        if not self.budget.is_limited or not len(z):
            return most
        cost, moment = self.cost_at(z), MOMENT * self.budget.seconds
        if cost.of(most) <= moment:
            return most
        return min(most, 4 ** int(math.log(cost.rows_in(moment), 4) + 1e-9))

    def expected(self, key: Hashable, z: Tensor, num_products: int = 0) -> float:
        """Seconds of gradients at rows, or of products with the Hessian at a point: as long as the last time.

        :param key: of the function and its shapes.
        :param z: the rows, or the point.
        :param num_products: how many; 0 for gradients.
        """
        if key in self._last:
            return self._last[key]
        cost = self.cost_at(z)
        return TWICE * cost.of(num_products) if num_products else cost.of(len(z) if z.dim() > 1 else 1)

    def is_too_soon(self, key: Hashable, expected: float) -> bool:
        """Whether a function runs as it is: until that has taken as long as a recording will, and where none has time.

        What takes next to no time is recorded at once.

        :param key: of the function and its shapes.
        :param expected: seconds that it takes.
        """
        if RECORDING * expected < CHEAP * self.budget.seconds:
            return False
        self._num_runs[key] += 1
        return self._num_runs[key] <= RECORDING or RECORDING * expected > MOST * self.budget.time_for_piece

    def note(self, key: Hashable, began: float, num_rows: int = 0) -> None:
        """Take note of how long a function took.

        :param key: of the function and its shapes.
        :param began: by ``time.perf_counter``.
        :param num_rows: of gradients that were not recorded.
        """
        self._last[key] = time.perf_counter() - began
        if num_rows and self._cost is not None:
            self._cost.note(num_rows, self._last[key])
