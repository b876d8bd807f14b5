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
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from ..diagnostics.verdict import effective
from ..engine import Budget, History, Progress, Round, Stretch, Trainer, Watch
from ..engine.density_gradient import DensityGradient
from ..engine.lazy import RowState
from ..engine.minibatch_steps import MinibatchSteps
from ..engine.program import Inputs, Program
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers import PlateAffine, Split, TriangularAffine
from ..layers.base import Chain
from ..model.hierarchy import Hierarchy
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..modes.gaussians import gaussian_at, put_top
from ..modes.pathfinder import best_start
from ..objectives.base import Gradient, Objective
from ..objectives.draws import paired_noise
from .collapsed import Collapser, move
from .encoded import EncodedRows
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
    """

    def __init__(
        self,
        guide: AutoFlow,
        terms: RowTerms,
        plan: Plan,
        history: History,
        leaves: Sequence[Tensor] = (),
        budget: Budget | None = None,
        progress: Progress | None = None,
    ):
        self.progress = progress or Progress(False)
        self.budget, self.pace = budget or Budget(), 0.0
        self.watch = Watch(plan.callback, self.budget)
        self.guide, self.terms, self.plan, self.history, self.leaves = guide, terms, plan, history, list(leaves)
        self.whole = cast(Hierarchy, guide.hierarchy)
        self.of_rows = EncodedRows(guide, terms) if guide.amortize else TabledRows(guide, terms)
        self.layer = self.of_rows.layer

    def rows(self, numbers: Tensor) -> Rows:
        """Chosen rows of the plate."""
        return Rows.of(self.whole, {self.terms.plate: numbers})

    @cached_property
    def collapser(self) -> Collapser:
        """What weighs its draws over all rows, once it is trained."""
        return Collapser(self.of_rows.weighed, self.terms, self.rows, self.plan.engine)

    def fit(self) -> Whitened:
        """The trained layer; after an interrupt, as far as it has come."""
        began = time.perf_counter()
        try:
            self._pilot()
            if not self.history.interrupted:
                self.of_rows.place()
                self._train(0)
            if self.plan.schedule.has_flow and not (self.history.interrupted or self._is_over()):
                self._train(1)
        except KeyboardInterrupt:
            self.history.interrupted = True
        self.history.seconds += time.perf_counter() - began
        return self.layer

    def _is_over(self) -> bool:
        """Whether training has to end, though there is more to train."""
        self.history.stopped |= self.budget.is_over and self.budget.is_stopped
        self.history.out_of_time |= self.budget.is_over and not self.budget.is_stopped
        return self.budget.is_over

    def _pilot(self) -> None:
        """Start what is outside of the plate at a Gaussian that one minibatch gives."""
        terms = self.terms
        small = self.guide.layer_over(terms.hierarchy, terms.joint.latents.init_loc())
        terms.choose(torch.randperm(terms.num_rows)[: terms.size])

        def density(z: Tensor) -> Tensor:
            outside, rows = terms.here(z)
            return outside + rows.sum(-1)

        trainer = Trainer(density, (), self.plan.engine, False)
        trainer.history = self.history
        trainer.limit(self.budget, None, self.progress)
        with contextlib.closing(trainer):
            init = gaussian_at(small, small.end.loc.detach(), self.guide.init_scale)
            best_start(DensityGradient(density), init).place(small)
            trainer.run(Chain(small.end), Objective(), Gradient.PATH, PILOT, "pilot")
        end, found = self.of_rows.end, cast(PlateAffine, small.end)
        with torch.no_grad():
            end.loc[end.hierarchy.top] = found.loc[terms.hierarchy.top]
            put_top(end, terms.factor**-0.5 * found.top_scale_tril())

    def _train(self, stage: int) -> None:
        """One round of stochastic gradients: of the affine end alone, or of the whole flow."""
        terms, plan = self.terms, self.plan
        small, state = self.of_rows.steps(bool(stage), STEP_SIZES[stage], self.leaves)
        num_steps = int(plan.schedule.visits * max(FEWEST[stage], VISITS[stage] * terms.factor))
        if not plan.schedule.is_default:
            num_steps = sum(part.num_steps for part in plan.schedule.rounds)
        losses, most = list[Tensor](), 1e3 * terms.num_rows  # gradients are of all rows
        program = Program(terms.log_joint, small, Objective(), Gradient.PATH, NUM_PARTICLES, self.leaves, most)
        steps, one = MinibatchSteps(program, terms.choose, plan.engine), torch.ones(())
        step_sizes = Round(num_steps, NUM_PARTICLES, STEP_SIZES[stage]).step_sizes(one)
        stretch = Stretch(self.budget, SHARES[stage])
        is_last = stage or not plan.schedule.has_flow
        title, follows = "flow" if stage else "Gaussian", "the verdict" if is_last else "the flow"
        try:
            with self.progress.phase(title, num_steps, follows):
                for number, rows in enumerate(minibatches(terms.num_rows, terms.size, num_steps)):
                    if stretch.is_over and losses:
                        self._is_over()
                        break
                    chosen, rows = self.rows(rows), terms.with_others(rows)
                    index, factors = state.index(chosen), state.factors(chosen)
                    before = state.take(index)
                    step_size = stretch.slowed(number / num_steps) * step_sizes[number]
                    inputs = Inputs(paired_noise(small, NUM_PARTICLES), step_size, one, 0 * one)
                    if not number:
                        steps.prepare(before, inputs, factors, rows, num_steps)
                    after, loss = steps.run(before, inputs, factors, rows)
                    state.put(index, after)
                    losses.append(loss.detach().clone())
                    if number % BLOCK == BLOCK - 1:
                        elbo = -float(torch.stack(losses[-BLOCK:]).nanmean())
                        self.progress.advance(BLOCK, elbo)
                        self.watch.show(title, number + 1, num_steps, elbo)
        except KeyboardInterrupt:
            self.history.interrupted = True
        finally:
            steps.close()
            state.write()
            self._note(state, steps, losses)

    @torch.no_grad()
    def correct(self) -> None:
        """Move what is outside of the plate to its weighted moments, until its weights are nearly equal.

        The noise of minibatches leaves it off by parts of its width. Rows follow, since they are told of its image.
        """
        affine = _first_affine(self.layer)
        if affine is None or self.history.interrupted:
            return
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


def minibatches(num_rows: int, size: int, num: int) -> Iterator[Tensor]:
    """The rows of so many steps: all of them in random order, again and again.

    Example::

        >>> rows = torch.cat(list(minibatches(5, 2, 5)))
        >>> rows.bincount().tolist()
        [2, 2, 2, 2, 2]
    """
    order = torch.zeros(0, dtype=torch.long)
    for _ in range(num):
        if len(order) < size:  # none twice in one minibatch
            fresh = torch.randperm(num_rows)
            waits = torch.isin(fresh, order)
            order = torch.cat([order, fresh[~waits], fresh[waits]])
        yield order[:size]
        order = order[size:]
