"""Fits by minibatches from several starts: the one of the best bound is kept, and the others are evidence about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..diagnostics.outliers import trimmed_elbo
from ..engine import Budget, History, Journal, Progress
from ..guides import AutoFlow
from ..model.bound import BoundModel
from ..model.crossed_terms import CrossedTerms
from ..model.row_terms import RowTerms
from ..objectives.draws import Draws
from .crossed import CrossedMinibatches
from .crossed_posterior import crossed_terms, is_crossed
from .fitted import bound_of
from .mark import put
from .minibatch_fit import MinibatchFit
from .minibatches import Minibatches
from .plan import Plan
from .posterior import Call


class Start(NamedTuple):
    """A fit, its draws that are judged, and the model's own parameters after it."""

    fit: MinibatchFit[Any]
    found: Any
    leaves: list[Tensor]


def terms_of(guide: AutoFlow, call: Call) -> RowTerms | CrossedTerms:
    """The model on chosen rows, of the kind that its latents ask for.

    :param guide: follows the plates.
    :param call: the model's arguments.
    """
    if is_crossed(guide.latents, guide.hierarchy):
        return crossed_terms(guide, call)
    return RowTerms(BoundModel(guide.bare_model, *call), guide.latents)


@dataclass
class Starts:
    """The fits of a run, one after the other.

    :param guide: follows the plates.
    :param terms: the model on chosen rows.
    :param plan: how many starts, and how each is trained.
    :param history: is told of all steps.
    :param leaves: the model's own parameters; each fit begins with what they are now.
    :param budget: the time of the run, of which each has its share.
    :param progress: shows it.
    :param journal: of the run.
    :param seen: of each start, the best one first, its draws of what is outside of plates with their weights.
    """

    guide: AutoFlow
    terms: RowTerms | CrossedTerms
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
        best, bound = self.fitted(0), float("-inf")
        if self.plan.starts > 1:
            bound = self.see(best)
        for number in range(1, self.plan.starts):
            if self._is_over():
                break
            with torch.no_grad():
                put(self.leaves, before)
            other = self.fitted(number)
            if self.history.interrupted:
                break
            found = self.see(other)
            if found > bound:
                best, bound = other, found
                self.seen.insert(0, self.seen.pop())
        with torch.no_grad():
            put(self.leaves, best.leaves)
        return best

    def _is_over(self) -> bool:
        return self.history.interrupted or self.history.stopped or self.budget.left <= 0

    def fresh(self, number: int) -> MinibatchFit[Any]:
        """A fit that nothing is done for yet.

        :param number: of the start.
        """
        parts = self.plan, self.history, self.leaves, self.budget, self.progress, self.journal, number
        if isinstance(self.terms, CrossedTerms):
            return CrossedMinibatches(self.guide, self.terms, *parts)
        return Minibatches(self.guide, self.terms, *parts)

    def fitted(self, number: int) -> Start:
        """One fit, with its draws; after an interrupt, without.

        :param number: of the start.
        """
        self.budget.share(self.plan.starts - number)
        fit = self.fresh(number)
        fit.fit()
        follows = "the verdict" if number == self.plan.starts - 1 else "another start"
        with self.progress.phase("correction", follows=follows):
            fit.correct()
        with self.progress.phase("weighing draws", follows=follows):
            found = self.journal.step(f"{fit.name}, weighed", fit.weigh)
        return Start(fit, found, [leaf.detach().clone() for leaf in self.leaves])

    def see(self, start: Start) -> float:
        """Take note of a start's draws; the bound that it has reached."""
        self.seen.append(start.fit.compared(start.found))
        return float(bound_of(self.seen[-1].log_weight, trimmed_elbo).value)
