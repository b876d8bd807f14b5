r"""A fit by minibatches: a guide that follows a subsampled plate, whose steps cost as much as the rows they have.

1. A pilot: the Gaussian of what is outside of the plate, fitted to the rows of one minibatch as if these were all. Its
   precision, times :math:`N / B`, is about that of all rows.
2. Where each row starts: by Newton's method, minibatch after minibatch, given the pilot's mean
   (:mod:`~pyro_nflows.inference.row_starts`). The curvature there says how a row depends on what is outside.
3. The affine end, then the whole flow, by stochastic gradients of the ELBO of all rows, all rows equally often. What
   rows have of their own, and what Adam remembers of it, is only touched by the steps that have the rows.
"""

import contextlib
import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from ..diagnostics.verdict import effective
from ..engine import Budget, History, Journal, Progress, Round, Stretch, Trainer, Watch
from ..engine.density_gradient import DensityGradient
from ..engine.lazy import RowState
from ..engine.minibatch_steps import MinibatchSteps
from ..engine.program import Inputs, Program
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers import PlateAffine, Split, TriangularAffine
from ..layers.base import Chain
from ..model.feasible import dispersed_start
from ..model.hierarchy import Hierarchy
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..modes.gaussians import gaussian_at, put_top
from ..modes.pathfinder import best_start
from ..objectives.base import Gradient, Objective
from ..objectives.draws import paired_noise
from .collapsed import Collapser, move
from .encoded import EncodedRows
from .minibatch_journal import BEGINNING, COMPLETE, END, FLOW, FitInJournal
from .plan import Plan
from .tabled import TabledRows

#: The round in which the pilot's Gaussian is fitted.
PILOT = Round(400, 64, 2e-2, share=0.1)
#: Draws a step.
NUM_PARTICLES = 32
#: How often each row is visited, and how many steps there are at least, by the end alone and by the flow.
VISITS, FEWEST = (4, 12), (600, 1600)
#: Step sizes of both.
STEP_SIZES = 5e-2, 3e-3
#: Shares of what is left for training that both may take, where the time of a run is limited.
SHARES = 0.35, 1.0
#: Draws of what is outside of the plate by which it is corrected, how often at most, and an ESS that needs no more.
NUM_CORRECTING, MAX_CORRECTIONS, GOOD = 200, 4, 0.9
#: A correction is the last if the time that is left is not so many times as long as it took.
LATE = 3.0
#: Steps between looks at the bar.
BLOCK = 50


class Minibatches:
    """A fit of a copy of a guide's layer over all rows, by one over the rows of a minibatch.

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

    step_sizes = STEP_SIZES

    def __init__(
        self,
        guide: AutoFlow,
        terms: RowTerms,
        plan: Plan,
        history: History,
        leaves: Sequence[Tensor] = (),
        budget: Budget | None = None,
        progress: Progress | None = None,
        journal: Journal | None = None,
        start: int = 0,
    ):
        self.progress, self.start = progress or Progress(False), start
        self._prefix = f"start {start + 1}, " if start else ""
        self.budget, self.pace = budget or Budget(), 0.0
        self.watch = Watch(plan.callback, self.budget)
        self.guide, self.terms, self.plan, self.history, self.leaves = guide, terms, plan, history, list(leaves)
        self.whole = cast(Hierarchy, guide.hierarchy)
        self.of_rows = EncodedRows(guide, terms) if guide.amortize else TabledRows(guide, terms)
        self.layer, name = self.of_rows.layer, f"start {start + 1}"
        self.num_particles = NUM_PARTICLES
        self.kept = FitInJournal(journal or Journal(), name, self.of_rows.weighed, terms, history, self.leaves)

    def rows(self, numbers: Tensor) -> Rows:
        """Chosen rows of the plate."""
        return Rows.of(self.whole, {self.terms.plate: numbers})

    def batches(self, num: int, seed: int, begun: int = 0) -> Iterator[tuple[Rows, Tensor]]:
        """The rows of so many steps, and their numbers as the model is told them.

        :param seed: of their order.
        :param begun: how many of the steps are taken already.
        """
        for numbers in itertools.islice(minibatches(self.terms.num_rows, self.terms.size, num, seed), begun, None):
            yield self.rows(numbers), self.terms.with_others(numbers)

    @cached_property
    def collapser(self) -> Collapser:
        """What weighs its draws over all rows, once it is trained."""
        return Collapser(self.of_rows.weighed, self.terms, self.rows, self.plan.engine)

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

    def _begun(self) -> int:
        """The stage after the pilot and the rows' starts, which is the same where somebody is waiting."""
        self._pilot()
        if self.history.interrupted:
            return BEGINNING
        self.of_rows.place()
        return self.kept.reached(END)

    def _trained(self, stage: int) -> int:
        """The stage after the steps of this one: the same where they have to end before all are taken."""
        is_done = self._train(stage)
        if self.history.interrupted:
            return stage
        if stage == END and self.plan.schedule.has_flow:
            return stage if self._is_over() else self.kept.reached(FLOW)
        return self.kept.done() if is_done else stage

    def _is_over(self) -> bool:
        """Whether training has to end, though there is more to train."""
        self.history.stopped |= self.budget.is_over and self.budget.is_stopped
        self.history.out_of_time |= self.budget.is_over and not self.budget.is_stopped
        return self.budget.is_over

    def _pilot(self) -> None:
        """Start what is outside of the plate at a Gaussian that one minibatch gives."""
        terms = self.terms
        loc = terms.joint.latents.init_loc()
        terms.choose(torch.randperm(terms.num_rows)[: terms.size])
        small = self.guide.layer_over(terms.hierarchy, dispersed_start(terms.joint, loc) if self.start else loc)

        def density(z: Tensor) -> Tensor:
            outside, rows = terms.here(z)
            return outside + rows.sum(-1)

        trainer = Trainer(density, (), self.plan.engine, False)
        trainer.history = self.history
        trainer.limit(self.budget, None, self.progress)
        with contextlib.closing(trainer):
            init = gaussian_at(small, small.end.loc.detach(), self.guide.init_scale)
            best_start(DensityGradient(density), init).place(small)
            trainer.run(Chain(small.end), Objective(), Gradient.PATH, PILOT, f"{self._prefix}pilot")
        end, found = self.of_rows.end, cast(PlateAffine, small.end)
        with torch.no_grad():
            end.loc[end.hierarchy.top] = found.loc[terms.hierarchy.top]
            put_top(end, terms.factor**-0.5 * found.top_scale_tril())

    def _train(self, stage: int) -> bool:
        """One round of stochastic gradients, of the affine end or of the whole flow; whether all steps are taken."""
        terms, plan = self.terms, self.plan
        small, state = self.of_rows.steps(bool(stage), self.step_sizes[stage], self.leaves)
        num_steps = int(plan.schedule.visits * max(FEWEST[stage], VISITS[stage] * terms.factor))
        if not plan.schedule.is_default:
            num_steps = sum(part.num_steps for part in plan.schedule.rounds)
        course, most, last = self.kept.course(stage, state), 1e3 * terms.num_rows, None  # gradients are of all rows
        num = self.num_particles
        program = Program(terms.log_joint, small, Objective(), Gradient.PATH, num, self.leaves, most)
        steps, one = MinibatchSteps(program, terms.choose, plan.engine), torch.ones(())
        step_sizes = Round(num_steps, num, self.step_sizes[stage]).step_sizes(one)
        stretch = Stretch(self.budget, SHARES[stage])
        is_last = stage or not plan.schedule.has_flow
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
                    inputs = Inputs(paired_noise(small, num), step_size, one, 0 * one)
                    if number == begun:
                        with torch.random.fork_rng():  # the numbers to come do not depend on what is prepared when
                            other = next(self.batches(1, course.seed + 1))[1]
                            steps.prepare(before, inputs, factors, rows, num_steps - number, other)
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

    def correct(self) -> None:
        """Move what is outside of the plate to its weighted moments, until its weights are nearly equal.

        The noise of minibatches leaves it off by parts of its width. Rows follow, since they are told of its image.
        """
        affine = _first_affine(self.layer)
        if affine is not None and not self.history.interrupted:
            name = f"start {self.start + 1}, corrected"
            self.kept.journal.step(name, lambda: self._corrected(affine), affine.load_state_dict)

    @torch.no_grad()
    def _corrected(self, affine: TriangularAffine) -> dict[str, Tensor]:
        """Where the layer that can be moved is in the end."""
        collapser, num = self.collapser, max(NUM_CORRECTING, 20 * affine.input_dim)
        best, best_ess = copy.deepcopy(affine.state_dict()), -1.0
        for _ in range(MAX_CORRECTIONS):
            began = time.perf_counter()
            found = collapser.weigh(num, int(torch.randint(2**31, ())))
            self.pace = (time.perf_counter() - began) / num
            ess = effective(found.log_weight)
            if ess <= best_ess:
                break
            best, best_ess = copy.deepcopy(affine.state_dict()), ess
            if ess > GOOD or self.budget.left < LATE * num * self.pace:
                break
            move(affine, found)
        affine.load_state_dict(best)
        return dict(best)

    def _note(self, state: RowState, steps: MinibatchSteps, losses: list[Tensor]) -> None:
        history = self.history
        history.skipped += int(state.skipped)
        history.elbos += [-torch.stack(losses)] if losses else []
        history.rounds.append(history.num_steps)
        history.engines.append(steps.engine)
        history.tell(steps.note)


def _first_affine(layer: Whitened) -> TriangularAffine | None:
    """The layer that can be moved without moving what rows make of its image; None where all is in the plate."""
    first = layer.flow[0] if isinstance(layer.flow, Chain) else None
    return cast(TriangularAffine, cast(Chain, first.layer)[0]) if isinstance(first, Split) else None


def minibatches(num_rows: int, size: int, num: int, seed: int) -> Iterator[Tensor]:
    """The rows of so many steps: all of them in random order, again and again.

    Example::

        >>> rows = torch.cat(list(minibatches(5, 2, 5, seed=0)))
        >>> rows.bincount().tolist()
        [2, 2, 2, 2, 2]
    """
    order, generator = torch.zeros(0, dtype=torch.long), torch.Generator().manual_seed(seed)
    for _ in range(num):
        if len(order) < size:  # none twice in one minibatch
            fresh = torch.randperm(num_rows, generator=generator)
            waits = torch.isin(fresh, order)
            order = torch.cat([order, fresh[~waits], fresh[waits]])
        yield order[:size]
        order = order[size:]
