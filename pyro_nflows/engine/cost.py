r"""What an evaluation takes, by its number of rows: a part for the call, and a part for each row.

Of a model that is a Python loop, nearly all is for the call; of a density that is dear, for its rows. So what a
thousand rows will take cannot be told from one. It is told from one and some.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from ..layers.base import Layer
from ..numerics import LogDensity
from ..objectives.draws import base_noise, draw
from ..system.randomness import forked

#: The share of a run's time that is a moment: what is evaluated at once takes no longer, where it can be divided.
MOMENT = 0.02
#: A gradient takes about so many times what a value takes.
GRADIENT = 3.0
#: A recording takes about so many times what it records.
RECORDING = 10
#: Rows of the second trial, and the shares of a run's time that so many may take: fewer are tried where these are dear.
FEW = {8: 0.04, 4: 0.05, 2: 0.1}
#: Rows of a third trial, where so many times the second one takes no more than that may.
MANY = 64
#: At most so many times as many rows as were ever evaluated at once are the next ones.
GROWTH = 10


class Cost:
    """Seconds of evaluations, by their numbers of rows.

    Example::

        >>> loop, dear = Cost(), Cost()
        >>> for rows in (1, 8):
        ...     loop.note(rows, 0.25)
        ...     dear.note(rows, 0.25 * rows)
        ...
        >>> loop.of(64), dear.of(64)
        (0.25, 16.0)
        >>> loop.rows_in(1.0), dear.rows_in(1.0)  # no more than ten times those that were seen
        (80, 4)
    """

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    @property
    def is_known(self) -> bool:
        """Whether anything has been seen."""
        return bool(self._seen)

    def note(self, rows: int, seconds: float) -> None:
        """Take note of an evaluation."""
        self._seen[rows] = seconds

    def copy(self) -> "Cost":
        """One that further notes leave alone."""
        new = Cost()
        new._seen = dict(self._seen)
        return new

    def of(self, rows: int) -> float:
        """About how many seconds so many rows will take; 0 where nothing is known."""
        call, row = self._line()
        return call + row * rows

    def rows_in(self, seconds: float) -> int:
        """How many rows take so many seconds; where the call takes longer, as many as take as long as that.

        Where only one number of rows has been seen, it is at least twice that, which tells the call from its rows.
        """
        if len(self._seen) == 1:
            ((rows, took),) = self._seen.items()
            return max(2 * rows, min(GROWTH * rows, int(rows * seconds / max(took, 1e-9))))
        call, row = self._line()
        most, left = GROWTH * max(self._seen, default=1), max(seconds - call, call)
        return most if row * most <= left else max(1, int(left / row))

    def _line(self) -> tuple[float, float]:
        """The parts of the call, and of each row."""
        if not self._seen:
            return 0.0, 0.0
        few, many = min(self._seen), max(self._seen)
        if few == many:
            return 0.0, self._seen[many] / many
        row = max(0.0, (self._seen[many] - self._seen[few]) / (many - few))
        return max(0.0, self._seen[few] - row * few), row


def tried(run: Callable[[int], Tensor], seconds: float) -> Cost:
    """The cost of evaluations, from trials of one row and, where there is time for that, of some.

    The random numbers to come do not depend on the trials. Where the model cannot be evaluated, nothing is known.

    :param run: evaluates so many rows.
    :param seconds: of the whole run.
    """
    cost = Cost()
    with suppress(ValueError, RuntimeError), forked():
        _note(cost, run, 1)
        if cost.of(1) < MOMENT * seconds:  # the first one had to get things ready
            _note(cost, run, 1)
        few = next((rows for rows, share in FEW.items() if cost.of(rows) < share * seconds), None)
        if few is not None:
            began = time.perf_counter()
            _note(cost, run, few)
            if MANY * (time.perf_counter() - began) < few * FEW[few] * seconds:  # so few may be nothing but the call
                _note(cost, run, MANY)
    return cost


def _note(cost: Cost, run: Callable[[int], Tensor], rows: int) -> None:
    began = time.perf_counter()
    finish(run(rows))
    cost.note(rows, time.perf_counter() - began)


def finish(found: Tensor) -> None:
    """Wait until a tensor is computed, as a CUDA device does while Python goes on: only then a clock can tell."""
    if found.is_cuda:
        torch.cuda.synchronize(found.device)


class DrawCosts:
    """What draws of layers take, with their log densities.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    """

    def __init__(self, log_joint: LogDensity):
        self.log_joint = log_joint
        self._known: dict[tuple[tuple[str, torch.Size], ...], Cost] = {}

    @torch.no_grad()
    def at(self, layer: Layer, seconds: float) -> Cost:
        """The cost of draws; found out by a few, the first time.

        :param layer: of any parameters.
        :param seconds: of the whole run.
        """
        key = tuple((name, parameter.shape) for name, parameter in layer.named_parameters())
        if key not in self._known:
            self._known[key] = tried(lambda num: draw(self.log_joint, layer, base_noise(layer, num)).log_p, seconds)
        return self._known[key]
