"""Steps on chosen rows' numbers, of which none is half taken, whenever a signal comes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..system.randomness import random_state
from .journal import Random
from .lazy import RowState
from .program import State


class _At(NamedTuple):
    """After so many steps: the random state, and what the last one led to, by the places of its numbers."""

    number: int
    random: Random
    places: Tensor | slice | None = None
    after: State | None = None


class RowCourse:
    """Where a round of steps on minibatches is.

    A step is noted, with the random state after it, by one assignment, and then put into the state of all rows, which
    can be done again. So :meth:`where` may be asked at any time, and costs a step nothing that grows with the rows.

    :param state: of all rows.
    :param seed: of the order in which rows come.

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> state = RowState(Planar(2), factors={name: torch.ones(()) for name in ("w", "u", "b")})
        >>> course = RowCourse(state, seed=3)
        >>> index = torch.tensor([1, 0])
        >>> course.advance(index, state.take(index)._replace(params=torch.tensor([5.0, 6.0])), torch.tensor(1.5))
        >>> state.params[:2], course.number
        (tensor([6., 5.]), 1)
    """

    def __init__(self, state: RowState, seed: int):
        self.state, self.seed = state, seed
        self._losses = list[Tensor]()
        self._at = _At(0, random_state())

    @property
    def number(self) -> int:
        """Steps taken."""
        return self._at.number

    @property
    def losses(self) -> list[Tensor]:
        """Of each step."""
        return self._losses[: self.number]

    def advance(self, index: Tensor | slice, after: State, loss: Tensor) -> None:
        """Take note of a step.

        :param index: see :meth:`~pyro_nflows.engine.lazy.RowState.index`.
        :param after: the state that it has led to.
        """
        del self._losses[self.number :]
        self._losses.append(loss.detach().clone())
        self._at = _At(self.number + 1, random_state(), index, after)
        self.state.put(index, after)

    def settle(self) -> None:
        """Put the last step into the state of all rows, where a signal came between, and that into the layer."""
        if self._at.places is not None and self._at.after is not None:
            self.state.put(self._at.places, self._at.after)
        self.state.write()

    def where(self) -> tuple[dict[str, Any], Random]:
        """All but the parameters, which are then in the layer; and the random state."""
        self.settle()
        state, losses = self.state, self.losses
        return {
            "number": self.number,
            "seed": self.seed,
            "mean": state.mean,
            "square": state.square,
            "steps": state.steps,
            "skipped": state.skipped,
            "own_factors": state.own_factors,
            "losses": torch.stack(losses) if losses else torch.zeros(0),
        }, self._at.random

    def take(self, where: dict[str, Any]) -> None:
        """Go on from :meth:`where`, with the layer as it was then, and torch's random numbers where they were."""
        for name in ("mean", "square", "steps", "skipped", "own_factors"):
            setattr(self.state, name, where[name])
        self._losses = list(where["losses"].unbind())
        self._at = _At(where["number"], random_state())
