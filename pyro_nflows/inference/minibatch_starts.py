"""Fits by minibatches from several starts: the one of the best bound is kept, and the others are evidence about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..diagnostics.weights import elbo
from ..engine import Budget, History, Journal, Progress
from ..guides import AutoFlow
from ..model.row_terms import RowTerms
from ..objectives.draws import Draws
from .collapsed import Collapser, Outside
from .fitted import bound_of
from .mark import put
from .minibatches import Minibatches
from .plan import Plan

#: Draws that are kept with their rows: of so many numbers, but so many at least, and at most.
MOST_NUMBERS, FEWEST, MOST = 2**26, 100, 1000
#: Draws that are judged at least; after an interrupt, no more than the fewest that are kept.
JUDGED = 500
#: The share of the time that is left, where it is limited, that weighing them may take.
WEIGHED = 0.6


class Sizes(NamedTuple):
    """How many draws are judged, and how many of them are kept with their rows."""

    judged: int
    kept: int

    @staticmethod
    def of(guide: AutoFlow, history: History, time_for: int = MOST) -> "Sizes":
        """As many as there is time for, but :data:`FEWEST` even if there is none.

        :param guide: says how many numbers a draw has.
        :param history: says whether somebody is waiting.
        :param time_for: draws that there is time for.
        """
        kept = FEWEST if history.interrupted else max(FEWEST, min(MOST, MOST_NUMBERS // guide.latents.dim))
        judged = FEWEST if history.interrupted else max(JUDGED, kept)
        return Sizes(*(max(FEWEST, min(num, time_for)) for num in (judged, kept)))


class Start(NamedTuple):
    """A fit, the draws of it that are judged, and the model's own parameters after it."""

    fit: Minibatches
    num: Sizes
    found: Outside
    leaves: list[Tensor]


@dataclass
class Starts:
    """The fits of a run, one after the other.

    :param guide: follows the plate.
    :param terms: the model on chosen rows.
    :param plan: how many starts, and how each is trained.
    :param history: is told of all steps.
    :param leaves: the model's own parameters; each fit begins with what they are now.
    :param budget: the time of the run, of which each has its share.
    :param progress: shows it.
    :param journal: of the run.
    :param seen: of each start, the best one first, its draws of what is outside of the plate with their weights.
    """

    guide: AutoFlow
    terms: RowTerms
    plan: Plan
    history: History
    leaves: Sequence[Tensor]
    budget: Budget
    progress: Progress
    journal: Journal
    seen: list[Draws] = field(default_factory=list)

    def run(self) -> Start:
        """The best of them; after an interrupt, of those that are complete, or the first."""
        before = [leaf.detach().clone() for leaf in self.leaves]
        best, bound = self._fitted(0), float("-inf")
        if self.plan.starts > 1:
            bound = self._see(best)
        for number in range(1, self.plan.starts):
            if self._is_over():
                break
            with torch.no_grad():
                put(self.leaves, before)
            other = self._fitted(number)
            if self.history.interrupted:
                break
            found = self._see(other)
            if found > bound:
                best, bound = other, found
                self.seen.insert(0, self.seen.pop())
        with torch.no_grad():
            put(self.leaves, best.leaves)
        return best

    def _is_over(self) -> bool:
        return self.history.interrupted or self.history.stopped or self.budget.left <= 0

    def _fitted(self, number: int) -> Start:
        """One fit, with its draws; after an interrupt, without."""
        self.budget.share(self.plan.starts - number)
        parts = self.guide, self.terms, self.plan, self.history, self.leaves
        fit = Minibatches(*parts, self.budget, self.progress, self.journal, number)
        fit.fit()
        follows = "the verdict" if number == self.plan.starts - 1 else "another start"
        with self.progress.phase("correction", follows=follows):
            fit.correct()
        time_for = int(min(MOST, WEIGHED * self.budget.left / fit.pace)) if fit.pace else MOST
        num = Sizes.of(self.guide, self.history, time_for)
        with self.progress.phase("weighing draws", follows=follows):
            found = self.journal.step(f"start {number + 1}, weighed", lambda: _weighed(fit.collapser, num.judged))
        return Start(fit, num, Outside(*found), [leaf.detach().clone() for leaf in self.leaves])

    def _see(self, start: Start) -> float:
        """Take note of a start's draws; the bound that it has reached."""
        found = start.found
        z, none = outside_of(start.fit.collapser, found), torch.zeros_like(found.log_weight)
        self.seen.append(Draws(z, found.log_weight, none))
        return float(bound_of(found.log_weight, elbo).value)


def _weighed(collapser: Collapser, num: int) -> list[object]:
    return list(collapser.weigh(num, int(torch.randint(2**31, ()))))


@torch.no_grad()
def outside_of(collapser: Collapser, found: Outside) -> Tensor:
    """The latents outside of the plate at draws, ``(S, width)``."""
    hierarchy = collapser.terms.hierarchy
    inner = found.base.new_zeros(len(found.base), hierarchy.dim - len(hierarchy.top))
    z = collapser.ratios(torch.arange(collapser.terms.size), found.base, inner).z
    return z[:, hierarchy.top]
