"""Fits that go side by side: each asks for rounds, and those that ask for the same one get it together."""

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from ..engine import Round, Trainer
from ..layers.base import Layer
from ..objectives.base import Gradient, Objective

T = TypeVar("T")


@dataclass
class Task:
    """A round that a fit asks for, of its trainer; when it is done, ``well`` says whether it went well."""

    trainer: Trainer
    layer: Layer
    objective: Objective
    gradient: Gradient
    plan: Round
    title: str
    well: bool = True


#: A fit as it goes along: it asks for rounds, and is resumed when they are done.
Fitting = Generator[Task, None, T]
#: A fit with what it draws its random numbers from.
Started = tuple[Trainer, Fitting[T]]


def drive(starts: Iterable[Started[T]], prefix: str = "", width: int | None = None) -> Iterator[tuple[int, T]]:
    """Give every fit its rounds: those that ask for the same one get it together.

    :param starts: fits; each is started as a slot becomes free.
    :param prefix: before a round's title on the bar.
    :param width: how many are under way at a time; all, by default.
    :return: each fit with its place among ``starts``, as it is done.
    """
    fresh, waiting = enumerate(starts), dict[int, tuple[Fitting[T], Task]]()
    ready = list(itertools.islice(fresh, width))
    while ready:
        done = []
        for i, (trainer, fitting) in ready:
            result = _resume(trainer, fitting)
            if isinstance(result, Task):
                waiting[i] = fitting, result
            else:
                done.append((i, result))
        yield from done
        ready = list(itertools.islice(fresh, len(done))) or _together(waiting, prefix)


def _together(waiting: dict[int, tuple[Fitting[T], Task]], prefix: str) -> list[tuple[int, Started[T]]]:
    """Run the round that most fits ask for, and remove them from the queue."""
    groups = [[i for i, (_, task) in waiting.items() if _alike(task, first)] for _, first in waiting.values()]
    chosen = {i: waiting.pop(i) for i in max(groups, key=len, default=[])}
    tasks = [task for _, task in chosen.values()]
    for first in tasks[:1]:
        layers, trainers = [task.layer for task in tasks], [task.trainer for task in tasks]
        title = prefix + first.title
        well = first.trainer.run_many(layers, first.objective, first.gradient, first.plan, title, trainers)
        for task, fine in zip(tasks, well):
            task.well = fine
    return [(i, (task.trainer, fitting)) for i, (fitting, task) in chosen.items()]


def _resume(trainer: Trainer, fitting: Fitting[T]) -> Task | T:
    with trainer.stream or contextlib.nullcontext():
        try:
            return next(fitting)
        except StopIteration as end:
            return cast(T, end.value)


def _alike(a: Task, b: Task) -> bool:
    same = (a.plan, a.gradient, type(a.objective)) == (b.plan, b.gradient, type(b.objective))
    return same and vars(a.objective) == vars(b.objective) and a.trainer.shares(b.trainer)
