r"""A fit by minibatches: one flow over all rows, trained by steps that cost as much as the rows that they have.

It goes through stages, between which it may be killed and gone on with
(:mod:`~pyro_nflows.inference.minibatch_journal`): where all rows start, in which kinds of models differ; the affine
end; and the whole flow, by stochastic gradients of the ELBO of all rows, all rows equally often. What rows have of
their own, and what Adam remembers of it, is only touched by the steps that have the rows.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..engine import Budget, History, Journal, Progress, Round, Stretch, Watch
from ..engine.lazy import RowState
from ..engine.minibatch_steps import Example, MinibatchSteps
from ..engine.program import Inputs, Program
from ..engine.shared_minibatches import SharedMinibatchSteps
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..model.crossed_terms import CrossedTerms
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..objectives.base import Gradient, Objective
from ..objectives.draws import Draws, paired_noise
from ..system.randomness import forked
from .encoded import EncodedRows
from .minibatch_journal import BEGINNING, COMPLETE, END, FLOW, FitInJournal
from .plan import Plan
from .posterior import Call
from .row_posterior import RowPosterior
from .row_team import RowTeam
from .tabled import TabledRows

#: Draws a step.
NUM_PARTICLES = 32
#: How often each row is visited, and how many steps there are at least, by the end alone and by the flow.
VISITS, FEWEST = (4, 12), (600, 1600)
#: Shares of what is left for training that both may take, where the time of a run is limited.
SHARES = 0.35, 1.0
#: Steps between looks at the bar.
BLOCK = 50

Terms = TypeVar("Terms", RowTerms, CrossedTerms)


class MinibatchFit(ABC, Generic[Terms]):
    """A fit of a copy of a guide's layer over all rows, by one over the rows of a minibatch.

    Of a kind of model: where all rows start, and which rows a step has.

    :param guide: follows the plates; it is left alone.
    :param terms: the model on chosen rows.
    :param plan: the engine, and perhaps how many steps.
    :param history: is told of the steps.
    :param leaves: the model's own parameters, which are trained too.
    :param budget: the time of the run.
    :param progress: shows it.
    :param journal: of the run.
    :param start: which of several starts it is; the first one's is the guide's own, others are dispersed.
    """

    #: The largest steps of the affine end and of the whole flow.
    step_sizes: tuple[float, float]

    def __init__(
        self,
        guide: AutoFlow,
        terms: Terms,
        plan: Plan,
        history: History,
        leaves: Sequence[Tensor] = (),
        budget: Budget | None = None,
        progress: Progress | None = None,
        journal: Journal | None = None,
        start: int = 0,
    ):
        self.progress, self.start = progress or Progress(False), start
        self.name, self._prefix = f"start {start + 1}", f"start {start + 1}, " if start else ""
        self.budget = budget or Budget()
        self.watch = Watch(plan.callback, self.budget)
        self.guide, self.plan, self.history, self.leaves = guide, plan, history, list(leaves)
        self.terms: Terms = terms
        self.team = RowTeam(plan.ranks, self.leaves)
        if guide.amortize and isinstance(terms, RowTerms):
            self.of_rows: EncodedRows | TabledRows = EncodedRows(guide, terms)
        else:
            self.of_rows = TabledRows(guide, terms)
        self.layer = self.of_rows.layer
        journal = journal or Journal()
        self.kept = FitInJournal(journal, self.name, self.of_rows.weighed, terms, history, self.leaves)

    @abstractmethod
    def batches(self, num: int, seed: int, begun: int = 0) -> Iterator[tuple[Rows, Tensor]]:
        """The rows of so many steps, and their numbers as the model is told them.

        :param seed: of their order.
        :param begun: how many of the steps are taken already.
        """

    @abstractmethod
    def _begun(self) -> int:
        """The stage after all rows have their starts, which is the same where somebody is waiting."""

    def _finish(self) -> None:
        """What is left to do once all steps are taken."""

    def correct(self) -> None:
        """What draws of the trained flow tell how to improve."""

    @abstractmethod
    def weigh(self) -> Any:
        """Draws that are judged, and what is known of them: tensors and plain values, for a journal."""

    @abstractmethod
    def compared(self, found: Any) -> Draws:
        """What of these is compared with other starts': latents outside of plates, with weights.

        :param found: see :meth:`weigh`.
        """

    @abstractmethod
    def posterior(self, found: Any, call: Call, seed: int) -> RowPosterior:
        """What the fit leaves.

        :param found: see :meth:`weigh`.
        :param call: the model's arguments.
        :param seed: of the run.
        """

    @property
    def num_particles(self) -> int:
        """Draws a step."""
        return NUM_PARTICLES

    @property
    def has_flow(self) -> bool:
        """Whether the whole flow is trained, after the affine end."""
        return self.plan.schedule.has_flow

    def fit(self) -> Whitened:
        """The trained layer; after an interrupt, as far as it has come."""
        began, stage = time.perf_counter(), BEGINNING
        try:
            stage = self.kept.begin()
            if stage == BEGINNING:
                stage = self._begun()
            if stage == END:
                stage = self._trained(END)
            if stage == FLOW:
                stage = self._trained(FLOW)
        except KeyboardInterrupt:
            self.history.interrupted = True
        if stage != COMPLETE:
            self.kept.journal.end()
        self.history.seconds += time.perf_counter() - began
        return self.layer

    def _trained(self, stage: int) -> int:
        """The stage after the steps of this one: the same where they have to end before all are taken."""
        is_done = self._train(stage)
        if self.history.interrupted:
            return stage
        if stage == END and self.has_flow:
            return stage if self._is_over() else self.kept.reached(FLOW)
        if not is_done:
            return stage
        self._finish()
        return self.kept.done()

    def _is_over(self) -> bool:
        """Whether training has to end, though there is more to train."""
        self.history.stopped |= self.budget.is_over and self.budget.is_stopped
        self.history.out_of_time |= self.budget.is_over and not self.budget.is_stopped
        return self.budget.is_over

    def _train(self, stage: int) -> bool:
        """One round of stochastic gradients, of the affine end or of the whole flow; whether all steps are taken."""
        terms, plan = self.terms, self.plan
        program, state = self.program(stage)
        num_steps = int(plan.schedule.visits * max(FEWEST[stage], VISITS[stage] * terms.factor))
        if not plan.schedule.is_default:
            num_steps = sum(part.num_steps for part in plan.schedule.rounds)
        course, last, num = self.kept.course(stage, state), None, program.num_particles
        steps, one = self._steps(stage, program), torch.ones(())
        step_sizes = Round(num_steps, num, self.step_sizes[stage]).step_sizes(one)
        stretch = Stretch(self.budget, SHARES[stage])
        is_last = stage or not self.has_flow
        title = self._prefix + ("flow" if stage else "Gaussian")
        follows, begun = "the verdict" if is_last else "the flow", course.number
        try:
            with self.progress.phase(title, num_steps, follows):
                self.progress.advance(begun)
                batches = self.batches(num_steps, course.seed, begun)
                for number, (chosen, rows) in enumerate(batches, begun):
                    if stretch.is_over and number:
                        self._is_over()
                        break
                    if chosen is not last:
                        index, factors, last = state.index(chosen), state.factors(chosen), chosen
                    before = state.take(index)
                    step_size = stretch.slowed(number / num_steps) * step_sizes[number]
                    inputs = Inputs(paired_noise(program.layer, num), step_size, one, 0 * one)
                    if number == begun:
                        with forked():  # the numbers to come do not depend on what is prepared when
                            other = next(self.batches(1, course.seed + 1))[1]
                            left = stretch.left if self.budget.is_limited else math.inf
                            example = Example(before, inputs, factors, rows)
                            steps.prepare(example, num_steps - number, other, left)
                    after, loss = steps.run(before, inputs, factors, rows)
                    course.advance(index, after, loss)
                    if number % BLOCK == BLOCK - 1:
                        elbo = -float(torch.stack(course.losses[-BLOCK:]).nanmean())
                        self.progress.advance(BLOCK, elbo)
                        self.watch.show(title, number + 1, num_steps, elbo)
                        self.kept.journal.look_at_clock()
        except KeyboardInterrupt:
            self.history.interrupted = True
        finally:
            steps.close()
            course.settle()
            self._note(state, steps, course.losses)
        return course.number == num_steps

    def program(self, stage: int) -> tuple[Program, RowState]:
        """A step on the rows of a minibatch, and the state of all rows.

        :param stage: whether the affine end alone is trained, or the whole flow.
        """
        small, state = self.of_rows.steps(bool(stage), self.step_sizes[stage], self.leaves)
        most = 1e3 * self.terms.num_rows  # gradients are of all rows
        parts = Objective(), Gradient.PATH, self.num_particles, self.leaves, most
        return Program(self.terms.log_joint, small, *parts), state

    def _steps(self, stage: int, program: Program) -> MinibatchSteps:
        if self.team.ranks.has_peers:
            return SharedMinibatchSteps(self.team.ranks, stage, program, self.terms.choose, self.plan.engine)
        return MinibatchSteps(program, self.terms.choose, self.plan.engine)

    def _note(self, state: RowState, steps: MinibatchSteps, losses: list[Tensor]) -> None:
        history = self.history
        history.skipped += int(state.skipped)
        history.elbos += [-torch.stack(losses)] if losses else []
        history.rounds.append(history.num_steps)
        history.engines.append(steps.engine)
        history.tell(steps.note)


def minibatches(num_rows: int, size: int, num: int, seed: int) -> Iterator[Tensor]:
    """The rows of so many steps: all of them in random order, again and again.

    Example::

        >>> rows = torch.cat(list(minibatches(5, 2, 5, seed=0)))
        >>> rows.bincount().tolist()
        [2, 2, 2, 2, 2]
    """
    order, generator = torch.zeros(0, dtype=torch.long, device="cpu"), torch.Generator().manual_seed(seed)
    for _ in range(num):
        if len(order) < size:  # none twice in one minibatch
            fresh = torch.randperm(num_rows, generator=generator, device="cpu")
            waits = torch.isin(fresh, order)
            order = torch.cat([order, fresh[~waits], fresh[waits]])
        yield order[:size]
        order = order[size:]
