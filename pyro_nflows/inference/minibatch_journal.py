"""A fit by minibatches in the journal of its run: where it is, and where another process goes on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import History, Journal, RowCourse, copied
from ..engine.lazy import RowState
from ..model.crossed_terms import CrossedTerms
from ..model.row_terms import RowTerms
from ..system.randomness import forked, random_state
from .mark import put
from .resume import check_density, put_back

#: Stages of a fit: it begins; its rows are placed, and the affine end is trained; the whole flow is; all is done.
BEGINNING, END, FLOW, COMPLETE = -1, 0, 1, 2
#: What ended one process does not end the next.
ENDED = {"interrupted": False, "stopped": False, "out_of_time": False}


class FitInJournal:
    """One fit by minibatches, as a step of a run's journal.

    What it has is asked for when the journal is kept, and is not copied between: a step costs no more than without.

    :param journal: of the run.
    :param name: of the fit in it.
    :param layer: has all numbers that are trained.
    :param terms: the model on chosen rows.
    :param history: of the run.
    :param leaves: the model's own parameters.
    """

    def __init__(
        self,
        journal: Journal,
        name: str,
        layer: nn.Module,
        terms: RowTerms | CrossedTerms,
        history: History,
        leaves: Sequence[Tensor] = (),
    ):
        self.journal, self.name, self.layer, self.terms = journal, name, layer, terms
        self.history, self.leaves, self._before = history, list(leaves), len(history.elbos)
        self._at: dict[str, Any] = {"loc": terms.joint.latents.init_loc(), "log_p": torch.tensor(torch.nan)}
        self._at["begun"] = [leaf.detach().clone() for leaf in self.leaves]
        self._found: dict[str, Any] = {}
        #: How far another process has come before the first stage.
        self.beginning: dict[str, Any] = {}

    def begin(self) -> int:
        """The stage that the fit is at: the beginning, or where another process was.

        :raises ValueError: if the journal is of another model, or of a guide with another flow.
        """
        if not self.journal.is_kept:
            return BEGINNING
        self._at["log_p"] = _log_p(self.terms, self._at["loc"])
        done = self.journal.recall(self.name, self._take)
        if done is not None:
            return COMPLETE
        found = self.journal.resumed()
        if found is None:
            # a copy, since parts are moved until rows are placed
            self.journal.reach(lambda: copied(self._now(BEGINNING, self._history())))
            return BEGINNING
        self._take(found)
        self._found, self.beginning = found.get("course", {}), found.get("beginning", {})
        return int(found["stage"])

    def mark(self, beginning: dict[str, Any]) -> None:
        """How far what comes before the first stage is: tensors and plain values."""
        self.journal.reach(lambda: copied({**self._now(BEGINNING, self._history()), "beginning": beginning}))

    def reached(self, stage: int) -> int:
        """The stage, which is reached, while none of its steps is taken."""
        random, history = random_state(), self._history()
        self.journal.follow(lambda: (self._now(stage, history), random))
        self.journal.look_at_clock()
        return stage

    def course(self, stage: int, state: RowState) -> RowCourse:
        """The steps of a stage, from where they are.

        :param state: of all rows.
        """
        seed = self._found["seed"] if self._found else int(torch.randint(2**31, ()))
        course, history = RowCourse(state, seed), self._history()
        if self._found:
            course.take(self._found)
            self._found = {}

        def here() -> tuple[dict[str, Any], Any]:
            where, random = course.where()
            return {**self._now(stage, history), "course": where}, random

        self.journal.follow(here)
        return course

    def done(self) -> int:
        """The last stage: the fit is complete."""
        if self.journal.is_kept:
            self.journal.record(self.name, self._now(COMPLETE, self._history()))
        return COMPLETE

    def _history(self) -> dict[str, Any]:
        return {**self.history.state(self._before), **ENDED}

    def _now(self, stage: int, history: dict[str, Any]) -> dict[str, Any]:
        return {
            "stage": stage,
            "layer": dict(self.layer.state_dict()),
            "leaves": [leaf.detach() for leaf in self.leaves],
            "history": history,
            **self._at,
        }

    def _take(self, found: dict[str, Any]) -> None:
        put_back({**found, "leaves": found["begun"]}, self.layer, self.leaves)
        check_density(found["log_p"], _log_p(self.terms, found["loc"]))
        with torch.no_grad():
            put(self.leaves, found["leaves"])
        self.history.take(found["history"])


@torch.no_grad()
def _log_p(terms: RowTerms | CrossedTerms, loc: Tensor) -> Tensor:
    """The log density of the first rows at a point; NaN where that is random."""
    terms.choose_first()
    with forked():
        first, second = (terms.log_joint(loc[None])[0].double() for _ in range(2))
    return first if torch.equal(first, second) else torch.full_like(first, torch.nan)
