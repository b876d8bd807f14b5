"""How long a run may take: training leaves a part of it for judging, and its steps fall to zero as its time ends.

What a run consists of besides (a start, looks at draws, the search for other modes) are pieces that have parts of its
time. Before each evaluation of the model they ask whether it will end in time, and are given up where it will not.
"""

import contextlib
import math
import time
from collections.abc import Iterator

#: The share of a run's time that is left for judging.
JUDGING = 0.25
#: How much of its steps a round may be behind its time before they are made smaller.
LATE = 0.02


class OutOfTime(Exception):
    """A piece of work was given up: it would not have ended in its time."""


class Budget:
    """The seconds of a run, from now on.

    :param seconds: how many; by default there is no limit.

    Example::

        >>> Budget().is_over, Budget(1e-9).is_over, Budget(100.0).left > 99
        (False, True, True)
    """

    def __init__(self, seconds: float = math.inf):
        self.seconds, began = seconds, time.perf_counter()
        self.end = began + seconds
        self._training = self.until = began + (1 - JUDGING) * seconds
        self.is_stopped = False
        #: When the piece of work under way has to end, by ``time.perf_counter``.
        self.deadline = math.inf
        #: How often something was refused because it would not have ended in time.
        self.num_refused = 0

    @staticmethod
    def of_training(seconds: float) -> "Budget":
        """One whose training has so many seconds.

        Example::

            >>> 90 < Budget.of_training(100.0).until - time.perf_counter() < 101
            True
        """
        return Budget(max(0.0, seconds) / (1 - JUDGING))

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self.seconds < math.inf

    @property
    def left(self) -> float:
        """Seconds to the end; 0 after it."""
        return max(0.0, self.end - time.perf_counter())

    @property
    def is_over(self) -> bool:
        """Whether training has to end."""
        return time.perf_counter() >= self.until

    def stop(self) -> None:
        """End training now, whatever time there is; judging has all that is left."""
        self.is_stopped = True
        self._training = self.until = min(self.until, time.perf_counter())

    def give_up(self) -> None:
        """End training now, since not even its next step would end in time; judging has all that is left."""
        self._training = self.until = min(self.until, time.perf_counter())

    @contextlib.contextmanager
    def within(self, until: float) -> Iterator[None]:
        """A piece of work that has to end by then; what would take longer there is refused by :meth:`need`.

        :param until: by ``time.perf_counter``.

        Example::

            >>> budget = Budget(100.0)
            >>> with budget.within(budget.end):
            ...     budget.need(50.0)
            ...     budget.need(200.0)
            Traceback (most recent call last):
            ...
            pyro_nflows.engine.budget.OutOfTime
            >>> budget.need(200.0), budget.num_refused  # outside of pieces nothing is refused
            (None, 1)
        """
        before, self.deadline = self.deadline, min(self.deadline, until)
        try:
            yield
        finally:
            self.deadline = before

    def need(self, seconds: float = 0.0) -> None:
        """Ask for so many seconds of the piece of work under way.

        :raises OutOfTime: where they are not left.
        """
        if time.perf_counter() + seconds > self.deadline:
            self.refuse()

    def refuse(self) -> None:
        """Give up the piece of work under way, if there is one.

        :raises OutOfTime: in one.
        """
        if self.deadline < math.inf:
            self.num_refused += 1
            raise OutOfTime

    def of_all(self, share: float) -> float:
        """When a share of all the time that is left, judging's included, will be over, by ``time.perf_counter``."""
        return self.end - (1 - share) * self.left if self.is_limited else math.inf

    @property
    def time_for_piece(self) -> float:
        """Seconds that are left to the piece of work under way, or else to the run."""
        return max(0.0, min(self.deadline, self.end) - time.perf_counter())

    def share(self, num_left: int) -> None:
        """Have training end once its part of the time that is left is over.

        :param num_left: fits, one after the other, of which this is the first.
        """
        now = time.perf_counter()
        self.until = now + (self._training - now) / num_left

    def after(self, share: float) -> float:
        """When a share of training's time that is left will be over, by ``time.perf_counter``."""
        now = time.perf_counter()
        return self.until if share == 1 else now + share * (self.until - now)


class Stretch:
    """A round's part of a budget: its steps are as small, at any time, as if the round ended when its time does.

    :param budget: of the run.
    :param share: of training's time that is left.

    Example::

        >>> Stretch(Budget(), 1.0).slowed(0.3), Stretch(Budget(1e-9), 1.0).slowed(0.3)
        (1.0, 0.0)
    """

    def __init__(self, budget: Budget, share: float):
        self.budget, self.began, self.until = budget, time.perf_counter(), budget.after(share)

    @property
    def is_over(self) -> bool:
        """Whether its time is."""
        return time.perf_counter() >= min(self.until, self.budget.until)

    @property
    def left(self) -> float:
        """Seconds to its end; 0 after it."""
        return max(0.0, min(self.until, self.budget.until) - time.perf_counter())

    def slowed(self, done: float) -> float:
        """What steps are to be multiplied by.

        Their size falls along a cosine of the steps that are done. Where the time ends first, it is to be that of the
        share of the time.

        :param done: the share of the steps that are.
        """
        if not self.budget.is_limited:
            return 1.0
        length = self.until - self.began
        gone = min(1.0, (time.perf_counter() - self.began) / length) if length > 0 else 1.0
        if gone <= done + LATE:
            return 1.0
        return (1 + math.cos(math.pi * gone)) / (1 + math.cos(math.pi * done))
