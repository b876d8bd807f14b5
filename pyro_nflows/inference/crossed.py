r"""A fit by minibatches of a model whose latents are in several plates, such as users and items.

1. All rows start at a joint mode (:mod:`~pyro_nflows.inference.crossed_start`), with the widths that they have given
   all else: a Gaussian whose rows of different plates are independent given what is outside of plates has these.
   What the rows of all plates share gets widths of its own (:mod:`~pyro_nflows.inference.shared_widths`). If a few
   draws show nothing wrong (:mod:`~pyro_nflows.inference.conditionals`), as for a normal model, this is it.
2. Else the affine end, and then the whole flow where a step of it is not too long, by stochastic gradients of the ELBO
   of all rows. Rows of plates that are subsampled are looked up, and of plates that are there as a whole all are in
   each step. What rows share is found again.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..diagnostics.crossed_verdict import wrong
from ..engine import Budget, History, Journal, Progress, Watch
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..model.crossed_terms import CrossedTerms
from ..model.hierarchy import Hierarchy
from ..model.row_owners import SeveralRowsError
from ..model.rows import Rows
from .conditionals import FEWEST, Conditionals
from .crossed_start import CrossedStart
from .minibatch_journal import FitInJournal
from .minibatches import NUM_PARTICLES, Minibatches, minibatches
from .plan import Plan
from .shared_widths import take_shared
from .tabled import TabledRows

#: Numbers of a step's draws at once, by which there are fewer particles; at least so many.
AT_ONCE, FEWEST_PARTICLES = 2**19, 4
#: By how much rows are moved before the start.
MOVED = 0.5
#: Step sizes of both, near the optimum from the start.
STEP_SIZES = 1e-2, 1e-3
#: How much of what a verdict allows a Gaussian may be off, if it is not to be trained.
GOOD = 0.6
#: Latents of a step up to which the whole flow is trained.
MAX_FLOW = 2**14


class CrossedMinibatches(Minibatches):
    """A fit of a copy of a guide's layer over all rows of several plates.

    :param guide: follows the plates; it is left alone.
    :param terms: the model on chosen rows.
    :param plan: the engine, and perhaps how many steps.
    :param history: is told of the steps.
    :param leaves: the model's own parameters, which are trained too.
    :param budget: the time of the run.
    :param progress: shows it.
    """

    step_sizes = STEP_SIZES

    def __init__(
        self,
        guide: AutoFlow,
        terms: CrossedTerms,
        plan: Plan,
        history: History,
        leaves: Sequence[Tensor] = (),
        budget: Budget | None = None,
        progress: Progress | None = None,
    ):
        self.progress = progress or Progress(False)
        self.budget, self.start, self._prefix = budget or Budget(), 0, ""
        self.watch = Watch(plan.callback, self.budget)
        self.guide, self.crossed, self.plan, self.history, self.leaves = guide, terms, plan, history, list(leaves)
        self.terms = cast(Any, terms)  # what steps ask of both kinds is the same
        self.whole: Hierarchy = terms.whole
        self.of_rows = TabledRows(guide, terms)
        self.layer = self.of_rows.layer
        self.kept = FitInJournal(Journal(), "start 1", self.layer, self.terms, history, self.leaves)
        self.num_particles = max(FEWEST_PARTICLES, min(NUM_PARTICLES, AT_ONCE // terms.hierarchy.dim // 2 * 2))

    def batches(self, num: int, seed: int, begun: int = 0) -> Iterator[tuple[Rows, Tensor]]:
        """The rows of so many steps: those of each subsampled plate in random order, all equally often."""
        terms = self.crossed
        every = None if terms.own else terms.rows_of({})
        plates = enumerate(terms.plates.values(), seed)
        orders = (minibatches(plate.size, plate.taken, num, number) for number, plate in plates)
        for parts in itertools.islice(zip(*orders), begun, None):
            yield every or terms.rows_of(dict(zip(terms.plates, parts))), torch.cat(parts)

    def fit(self) -> Whitened:
        """The trained layer; after an interrupt, as far as it has come."""
        began = time.perf_counter()
        try:
            self._fit(self._start())
        except KeyboardInterrupt:
            self.history.interrupted = True
        self.history.seconds += time.perf_counter() - began
        return self.layer

    def _fit(self, start: CrossedStart) -> None:
        """Train, unless the Gaussian at the mode is right already."""
        schedule, shares = self.plan.schedule, self.progress.phase("what rows share", follows="the Gaussian")
        with shares:
            take_shared(self.layer, start.product)
            if schedule.is_default and not self.leaves and not self._is_over() and self._is_right():
                self.history.was_right = True
                return
        self._train(0)
        if schedule.has_flow and self.terms.hierarchy.dim <= MAX_FLOW and not self._ends():
            self._train(1)
        if not self._ends():
            take_shared(self.layer, start.product)

    def _ends(self) -> bool:
        return self.history.interrupted or self._is_over()

    def _is_right(self) -> bool:
        """Whether a few draws of each block given the rest show nothing wrong."""
        try:
            blocks = Conditionals(self.layer, self.crossed).judged(FEWEST)[1]
        except SeveralRowsError:
            return False
        return all(wrong(block) < GOOD for block in blocks)

    def _start(self) -> CrossedStart:
        """Where all rows start; they are moved a little first, since products of latents have no slope at zero."""
        loc = self.of_rows.end.loc.detach()
        start = CrossedStart(self.crossed, loc + MOVED * torch.randn_like(loc))
        with self.progress.phase("start", follows="the Gaussian"):
            start.climb(lambda: self.budget.is_over)
            start.settle(self.of_rows.end, lambda: self.budget.is_over)
        return start
