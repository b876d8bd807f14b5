"""What a caller sees of a run while it trains, and how it ends one."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from .budget import Budget


@dataclass(frozen=True)
class Look:
    """Where training is, every fifty steps or so.

    :param title: of the round, such as ``"flow, round 2"``.
    :param step: steps of the round that are done.
    :param num_steps: that the round has.
    :param elbo: mean estimate over the latest steps; of several starts, the best one's. NaN where no step was finite.
    :param seconds: since the run began.
    """

    title: str
    step: int
    num_steps: int
    elbo: float
    seconds: float


#: Takes a look; what it returns ends training if it is true.
Callback = Callable[[Look], object]


class CallbackWarning(UserWarning):
    """A callback raised an error; the fit goes on without it."""


class Watch:
    """Calls a callback, and ends training where it says so.

    :param callback: None for nobody who looks.
    :param budget: of the run.

    Example::

        >>> budget = Budget()
        >>> Watch(lambda look: look.elbo > -1.0, budget).show("flow", 50, 600, -0.5)
        >>> budget.is_over, budget.is_limited
        (True, False)
    """

    def __init__(self, callback: Callback | None, budget: Budget):
        self.callback, self.budget = callback, budget
        self._began = time.perf_counter()

    def show(self, title: str, step: int, num_steps: int, elbo: float) -> None:
        """Show where training is."""
        if self.callback is None:
            return
        look = Look(title, step, num_steps, elbo, time.perf_counter() - self._began)
        try:
            ends = bool(self.callback(look))
        except Exception as error:
            self.callback = None
            warnings.warn(
                f"VI: the callback raised {type(error).__name__}: {error}; the fit goes on without it",
                CallbackWarning,
                stacklevel=2,
            )
            return
        if ends:
            self.budget.stop()
