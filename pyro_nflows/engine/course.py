r"""A fit's way through one round: where it is, the best place it has seen, and how large its steps are.

Training diverges when steps are too large: values are no longer finite, or the bound falls far below what it was. Then
the fit goes back to where it was best and goes on with steps half as large; after so many of these, the round ends
there.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .program import Program, State

#: How often a round goes back before it is given up.
MAX_RESTARTS = 6
#: Losses are looked at by their medians over so many steps, which a few wild ones do not change.
STRETCH = 10
#: A fall of the bound by so many nats, and by so many times the noise of a step, is no noise.
FALL, NOISES = 10.0, 20.0


class Course:
    """The state of one fit in a round.

    :param program: its steps; the layer is written to only by :meth:`finish`.
    :param stream: a context in which its random numbers are drawn.
    """

    def __init__(self, program: Program, stream: Any):
        self.program, self.stream = program, stream
        self.state = self.best = self._before = self._begun = program.init()
        self.elbos: list[Tensor] = []
        self.factor, self.num_restarts = 1.0, 0
        self.cools_from: int | None = None
        self.failed = self.done = False
        self._height, self._noise, self._pending = -math.inf, 0.0, list[Tensor]()
        self._arrived: tuple[State, Tensor] | None = None

    def advance(self, state: State, losses: Tensor) -> None:
        """Go where some steps have led, for the time being; see :meth:`look`."""
        self._arrived = state, -losses  # at once: an interrupt may come between any two lines
        self._take_arrived()

    def _take_arrived(self) -> None:
        """Count the latest steps; what is done of it already is not done again."""
        if self._arrived is None:
            return
        state, elbos = self._arrived
        for kept in (self.elbos, self._pending):
            if not (kept and kept[-1] is elbos):
                kept.append(elbos)
        self.state, self._arrived = state, None

    def look(self, comparable: bool) -> None:
        """Stay where the steps since the last look have led, unless that is astray.

        :param comparable: whether losses mean what they did a look ago, which they do not while ``log p`` is annealed.
        """
        values, before = torch.cat(self._pending), self._before
        skipped, self._pending = int(self.state.skipped - before.skipped), []
        if 2 * skipped > len(values):
            hopeless = skipped == len(values) and before.params is self.best.params
            self._go_back(finite=False, hopeless=hopeless)
        elif self._is_astray(values, comparable):
            self._go_back(finite=True)
        self._before = self.state

    def latest(self, num: int) -> Tensor:
        """The bounds of so many of the latest steps."""
        return torch.cat(self.elbos[-num:])[-num:]

    def _is_astray(self, values: Tensor, comparable: bool) -> bool:
        """Whether the bound fell too far; else, whether it is the best yet is noted."""
        medians = _medians(values)
        top = float(medians.max())
        if self._before is self._begun and bool(values[0].isfinite()):
            top = max(top, float(values[0]))  # steps may be so large that the first one is fatal
        if not comparable:
            self.best, self._height = self._before, -math.inf
        elif top > self._height:
            # Of a block in which the bound falls out of sight, the differences are no noise.
            self.best, self._height, self._noise = self._before, top, min(_noise(values), 1 + abs(top))
        return comparable and float(medians[-1]) < self._height - FALL - NOISES * self._noise

    def _go_back(self, finite: bool, hopeless: bool = False) -> None:
        self.state = self.best = self.best._replace(skipped=self.state.skipped)
        self.num_restarts += 1
        self.factor *= 0.5
        if hopeless or self.num_restarts > MAX_RESTARTS:
            self.done, self.failed = True, not finite

    def finish(self) -> None:
        """Put what was reached into the layer; that may be done again."""
        self._take_arrived()
        if self._pending:  # interrupted between two looks
            self.look(comparable=False)
        self.program.write(self.state)

    def where(self) -> dict[str, Any]:
        """All of it between two looks, as tensors and plain values."""
        states = [self.state, self.best, self._before, self._begun]
        first = [next(i for i, other in enumerate(states) if other is state) for state in states]
        numbers = self.factor, self.num_restarts, self.failed, self.done, self._height, self._noise
        random = {"stream": getattr(self.stream, "state", None), "cools_from": self.cools_from}
        return {"states": [*map(tuple, states)], "first": first, "elbos": [*self.elbos], "numbers": numbers, **random}

    def take(self, where: dict[str, Any]) -> None:
        """Go on from :meth:`where` an earlier course was."""
        states = [State(*state) for state in where["states"]]
        self.state, self.best, self._before, self._begun = (states[i] for i in where["first"])
        self.elbos, self.cools_from = list(where["elbos"]), where.get("cools_from")
        self.factor, self.num_restarts, self.failed, self.done, self._height, self._noise = where["numbers"]
        if where["stream"] is not None:
            self.stream.state = where["stream"]


def look_at(courses: Sequence[Course], powers: Tensor) -> None:
    """Whether a block of steps has led some fits astray.

    :param courses: the fits.
    :param powers: of ``log p`` in these steps; losses compare with earlier ones where it is not annealed.
    """
    for course in courses:
        course.look(bool((powers == 1).all()))


def place(start: int, courses: Sequence[Course]) -> dict[str, Any]:
    """Where the round of some fits is."""
    return {"start": start, "courses": [course.where() for course in courses]}


def finish(courses: Sequence[Course]) -> None:
    """Put what was reached into the layers."""
    for course in courses:
        course.finish()


def _medians(values: Tensor) -> Tensor:
    """Of each stretch; infinite values are as good as any that are far below."""
    values = values.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    num = len(values) // STRETCH
    return values[: num * STRETCH].view(num, STRETCH).median(1)[0] if num else values.median()[None]


def _noise(values: Tensor) -> float:
    """A step's standard deviation, from how neighbours differ: a trend is no noise."""
    steps = values[values.isfinite()].diff().abs()
    return float(steps.median()) * 1.05 if len(steps) else 0.0
