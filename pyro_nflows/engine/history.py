"""What training has seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from .course import Course, finish
from .runners import Engine, Runner


@dataclass(repr=False)
class History:
    """What training has seen: minus the loss at every step, and why it ended. ``repr`` says it in a line.

    ``restarts`` is how often training diverged and went back, and ``failed`` says that this did not help: values were
    not finite however small the steps. ``quick`` says that no flow was asked for, ``was_right`` that a start needed no
    training,
    ``stopped`` that a callback ended training, ``out_of_time`` that the time of the run was over before training was,
    and ``unsearched`` that it was before other modes were searched for. ``out_of_memory`` says that a step had too
    little, which ends training like an interrupt.
    ``seconds`` are those of training, and of the whole run once ``VI`` is done.
    ``descent`` is the number of steps by which the Gaussian that a flow starts from was found, and
    ``path`` where a guide has been whose mass is moved step by step, in unconstrained space: the weights, means and
    Cholesky factors of a mixture of Gaussians (:class:`~pyro_nflows.AutoWasserstein`), or some points
    (:class:`~pyro_nflows.AutoJKO`). ``bounds`` are the ELBOs there.
    ``drift`` is how much the model's own parameters changed the log joint in the last round.
    ``engines`` are those that the rounds ended on; ``engine_notes`` say, once each, why a faster one could not be used
    (none where rounds were only too short for it), and why draws were weighed in double precision, if they were.
    """

    elbos: list[Tensor] = field(default_factory=list)
    skipped: int = 0
    restarts: int = 0
    interrupted: bool = False
    out_of_memory: bool = False
    failed: bool = False
    quick: bool = False
    was_right: bool = False
    out_of_time: bool = False
    stopped: bool = False
    unsearched: bool = False
    seconds: float = 0.0
    drift: float = 0.0
    engines: list[Engine] = field(default_factory=list)
    engine_notes: list[str] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    descent: int = 0
    path: list[tuple[Tensor, ...]] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        steps = self.num_steps
        said = [f"{steps:,} step{'s' * (steps != 1)} in {len(self.rounds)} round{'s' * (len(self.rounds) != 1)}"]
        if steps:
            last = self.trace()[-max(1, steps // 20) :]
            said.append(f"ELBO {float(last.nanmedian()):.3f} at the end")
        said += [
            f"{number} {what}" for number, what in ((self.skipped, "skipped"), (self.restarts, "restarts")) if number
        ]
        said += [what for happened, what in ((self.interrupted, "interrupted"), (self.failed, "failed")) if happened]
        engines = sorted({engine.value for engine in self.engines})
        return f"History({', '.join([*said, *engines, f'{self.seconds:.1f} s'])})"

    @property
    def num_steps(self) -> int:
        """Steps taken, in all rounds and starts."""
        return sum(len(part) for part in self.elbos)

    def add(self, course: Course) -> None:
        """A fit's steps of a round."""
        self.skipped += int(course.state.skipped)
        self.restarts += course.num_restarts
        self.failed |= course.failed
        self.elbos += course.elbos

    def mark(self) -> tuple[int, int, bool, int]:
        """What :meth:`add` adds to."""
        return self.skipped, self.restarts, self.failed, len(self.elbos)

    def rewind(self, mark: tuple[int, int, bool, int]) -> None:
        """Back to a :meth:`mark`."""
        self.skipped, self.restarts, self.failed, num = mark
        del self.elbos[num:]

    def add_path(self, path: Sequence[tuple[Tensor, ...]], elbos: Sequence[float], kept: bool) -> None:
        """Steps of a flow of Gaussians; the bound after each, and the way, where there is nothing else to train."""
        self.descent += len(elbos) - 1
        if kept:
            self.elbos.append(torch.tensor(elbos[1:]))
            self.rounds.append(self.num_steps)
            self.path, self.bounds = list(path), list(elbos)

    def join(self, other: "History") -> None:
        """Count what another fit of the same run has seen, elsewhere.

        Example::

            >>> history = History(elbos=[torch.zeros(50)], rounds=[50])
            >>> history.join(History(elbos=[torch.ones(20)], rounds=[20], skipped=1))
            >>> history.rounds, history.num_steps, history.skipped
            ([50, 70], 70, 1)
        """
        before = self.num_steps
        self.elbos += other.elbos
        self.rounds += [before + number for number in other.rounds]
        self.engines += other.engines
        self.tell(*other.engine_notes)
        for name in ("skipped", "restarts", "descent"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("failed", "quick", "was_right", "out_of_time", "out_of_memory"):
            setattr(self, name, getattr(self, name) or getattr(other, name))
        self.drift = max(self.drift, other.drift)
        if other.path and not self.path:
            self.path, self.bounds = other.path, other.bounds

    def note(self, runner: Runner) -> None:
        """What a round ended on, and why not on something faster."""
        self.engines.append(runner.engine)
        self.tell(runner.note)

    def tell(self, *notes: str | None) -> None:
        """Why something faster could not be used, once."""
        for note in notes:
            if note is not None and note not in self.engine_notes:
                self.engine_notes.append(note)

    def trace(self) -> Tensor:
        """The ELBO estimate of every step."""
        return torch.cat(self.elbos) if self.elbos else torch.empty(0)

    def state(self, since: int = 0) -> dict[str, Any]:
        """All of it as tensors and plain values, for a file; of the ELBOs, those after so many parts.

        Example::

            >>> history = History(skipped=3, engines=[Engine.TRACED])
            >>> again = History()
            >>> again.take(history.state())
            >>> again == history
            True
        """
        elbos = [torch.cat(self.elbos[since:])] if self.elbos[since:] else []
        return {**asdict(replace(self, elbos=elbos)), "engines": [engine.value for engine in self.engines]}

    def take(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`: its ELBOs come after those that there are, all else is as it was then."""
        known = {part.name: state[part.name] for part in fields(self) if part.name in state}
        known["elbos"] = [*self.elbos, *state["elbos"]]
        known["engines"] = [Engine(name) for name in state["engines"]]
        for name, value in known.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)


def histories_of(members: Sequence[Any]) -> list[History]:
    """Those of some trainers, each once."""
    return list({id(member.history): member.history for member in members}.values())


def record(courses: Sequence[Course], histories: Sequence[History], before: Sequence[Any]) -> None:
    """Put what a round has reached into the layers, and count its steps; that may be done again.

    :param courses: of the fits.
    :param histories: one for each of these, which may be the same.
    :param before: the mark of each when the round began.
    """
    finish(courses)
    for history, mark in zip(histories, before):
        history.rewind(mark)
    for history, course in zip(histories, courses):
        history.add(course)
