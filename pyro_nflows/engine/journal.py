r"""What a run has come to, step by step, so that another process can go on from there.

A run is a sequence of steps, each a function of what came before and of the random numbers: rounds of training, mostly.
The journal holds what each gave, with the random state after it, and where the one under way is. Another process that
takes the same steps is given what they gave, as far as the journal goes, and goes on with the numbers that would have
come.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..system.randomness import random_state, set_random_state

#: Takes what a journal holds, and puts it where it is safe.
Keep = Callable[[dict[str, Any]], None]
#: See :func:`~pyro_nflows.system.randomness.random_state`.
Random = tuple[Tensor, ...]
#: Says where a step under way is, and the random state there.
Here = Callable[[], tuple[Any, Random]]


class Step(NamedTuple):
    """One that is done or under way: its name, what it gave or where it is, and the random state then."""

    name: str
    value: Any
    random: Random


class Journal:
    """The steps of a run.

    Values are tensors, plain values, and containers of these.

    :param keep: where to; by default nothing is kept, and steps are taken as they come.
    :param seconds: time between the moments at which it is kept.
    :param state: what an earlier one kept.

    Example::

        >>> from pyro_nflows.system.randomness import forked
        >>> kept = []
        >>> journal = Journal(kept.append)
        >>> with forked():
        ...     first = journal.step("draw", lambda: torch.rand(2))
        ...     second = torch.rand(2)
        >>> journal.write()
        >>> again = Journal(kept.append, state=kept[0])
        >>> with forked():
        ...     torch.equal(again.step("draw", lambda: 1 / 0), first), torch.equal(torch.rand(2), second)
        (True, True)
    """

    def __init__(self, keep: Keep | None = None, seconds: float = 60.0, state: dict[str, Any] | None = None):
        self._keep, self.seconds = keep, seconds
        self._done = [Step(*step) for step in state["done"]] if state else []
        self._under_way = Step(*state["under_way"]) if state and state["under_way"] else None
        self._next, self._name = 0, ""
        self._here: Here | None = None
        self._written = time.monotonic()

    @property
    def is_kept(self) -> bool:
        """Whether it is kept anywhere."""
        return self._keep is not None

    def step(self, name: str, take: Callable[[], Any], put: Callable[[Any], None] | None = None) -> Any:
        """What a step gives: what it gave, if it was taken before.

        :param name: where it differs from the next one's in the journal, the rest of the journal is of another way, and
            is forgotten.
        :param take: the step; it gives None if it was given up on the way.
        :param put: is told what the step gave before, in place of taking it, where it changes something.
        """
        value = self.recall(name, put)
        if value is None:
            value = take()
            self.record(name, value)
        return value

    def recall(self, name: str, put: Callable[[Any], None] | None = None) -> Any:
        """What a step gave if it was taken before; else None, and the step is under way: take it and :meth:`record` it.

        :param name: see :meth:`step`, as for ``put``.
        """
        if self._keep is None:
            return None
        if self._next < len(self._done) and self._done[self._next].name == name:
            done, self._next = self._done[self._next], self._next + 1
            if put is not None:
                put(done.value)
            set_random_state(done.random)
            return done.value
        del self._done[self._next :]
        if self._under_way is not None and self._under_way.name != name:
            self._under_way = None
        self._name = name
        return None

    def record(self, name: str, value: Any) -> None:
        """Take note of what a step gave, as it is now; of None, that it was given up on the way."""
        if self._keep is not None and value is not None:
            self._done.append(Step(name, copied(value), random_state()))
            self._next, self._under_way, self._here = self._next + 1, None, None
            self.look_at_clock()

    def resumed(self) -> Any:
        """Where the step under way was when the journal was last kept, and random numbers are from now on; or None."""
        if self._under_way is None:
            return None
        set_random_state(self._under_way.random)
        return self._under_way.value

    def reach(self, value: Callable[[], Any]) -> None:
        """Where the step under way is; what it is made of is not changed afterwards."""
        if self._keep is not None:
            self._under_way = Step(self._name, value(), random_state())
            self.look_at_clock()

    def follow(self, here: Here) -> None:
        """Ask where the step under way is whenever the journal is kept, a signal included: of what is large.

        :param here: until the next step.
        """
        if self._keep is not None:
            self._here, self._under_way = here, None

    def write(self) -> None:
        """Keep it now."""
        if self._keep is not None:
            self._written = time.monotonic()
            under_way = self._under_way if self._here is None else Step(self._name, *self._here())
            self._keep({"done": [tuple(step) for step in self._done], "under_way": under_way and tuple(under_way)})

    def end(self) -> None:
        """Keep it now, and no more: what follows is not to be gone on with."""
        self.write()
        self._keep = self._here = None

    def look_at_clock(self) -> None:
        """Keep it if it is time to."""
        if self._keep is not None and time.monotonic() - self._written >= self.seconds:
            self.write()


def copied(value: Any) -> Any:
    """Tensors, plain values, and containers of these, as they are now: training changes parameters in place.

    Example::

        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> copied({"weight": weight, "at": (3, [weight])})
        {'weight': tensor([0., 0.]), 'at': (3, [tensor([0., 0.])])}
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: copied(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [copied(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
