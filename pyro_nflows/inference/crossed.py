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
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..diagnostics.crossed_verdict import wrong
from ..model.crossed_terms import CrossedTerms
from ..model.row_owners import SeveralRowsError
from ..model.rows import Rows
from ..objectives.draws import Draws
from .conditionals import FEWEST, Conditionals
from .crossed_posterior import CrossedPosterior, Judged, crossed_posterior, judged
from .crossed_start import CrossedStart
from .minibatch_fit import NUM_PARTICLES, MinibatchFit, minibatches
from .minibatch_journal import END
from .posterior import Call
from .shared_widths import take_shared

#: Numbers of a step's draws at once, by which there are fewer particles; at least so many.
AT_ONCE, FEWEST_PARTICLES = 2**19, 4
#: By how much rows are moved before the start; of other starts than the first, how far at most; and how often that is
#: halved where the model has no density.
MOVED, DISPERSED, NUM_HALVINGS = 0.5, 2.0, 10
#: Step sizes of both, near the optimum from the start.
STEP_SIZES = 1e-2, 1e-3
#: How much of what a verdict allows a Gaussian may be off, if it is not to be trained.
GOOD = 0.6
#: Where time is limited, the shares of training's that the start and a look at it may take, and of what is left that
#: judging may.
STARTING, LOOKING, JUDGING = 0.4, 0.3, 0.8
#: Latents of a step up to which the whole flow is trained.
MAX_FLOW = 2**14


class CrossedMinibatches(MinibatchFit[CrossedTerms]):
    """A fit of rows of several plates."""

    step_sizes = STEP_SIZES

    @property
    def num_particles(self) -> int:
        """Draws a step."""
        return max(FEWEST_PARTICLES, min(NUM_PARTICLES, AT_ONCE // self.terms.hierarchy.dim // 2 * 2))

    @property
    def has_flow(self) -> bool:
        """Whether the whole flow is trained: where a step of it is not too long."""
        return self.plan.schedule.has_flow and self.terms.hierarchy.dim <= MAX_FLOW

    def batches(self, num: int, seed: int, begun: int = 0) -> Iterator[tuple[Rows, Tensor]]:
        """The rows of so many steps: those of each subsampled plate in random order, all equally often."""
        terms = self.terms
        every = None if terms.own else terms.rows_of({})
        plates = enumerate(terms.plates.values(), seed)
        orders = (minibatches(plate.size, plate.taken, num, number) for number, plate in plates)
        for parts in itertools.islice(zip(*orders), begun, None):
            yield every or terms.rows_of(dict(zip(terms.plates, parts))), torch.cat(parts)

    @cached_property
    def _crossed(self) -> CrossedStart:
        return CrossedStart(self.terms, self.of_rows.end.loc.detach())

    def _begin(self) -> None:
        """Where the way to the mode begins, or as far as another process has come.

        Rows are moved a little, since products of latents have no slope at zero; those of other starts far.
        """
        start, loc = self._crossed, self.of_rows.end.loc.detach()
        if self.kept.beginning:
            start.take(self.kept.beginning)
        elif self.start == 0:
            start.go_to(loc + MOVED * torch.randn_like(loc))
        else:
            for halvings in range(NUM_HALVINGS):
                start.go_to(loc + DISPERSED * 0.5**halvings * (2 * torch.rand_like(loc) - 1))
                if abs(start.value) < torch.inf:
                    break

    def _begun(self) -> int:
        """The stage after the start: the last one if the Gaussian there is right already."""
        start, schedule = self._crossed, self.plan.schedule
        with self.progress.phase(f"{self._prefix}start", follows="the Gaussian"):
            self._begin()
            until = self.budget.after(STARTING)
            start.run(self.of_rows.end, lambda: self._is_late(until), lambda: self.kept.mark(start.where()))
        with self.progress.phase(f"{self._prefix}what rows share", follows="the Gaussian"):
            take_shared(self.layer, start.model.product)
            trained = self.plan.goes_on or not schedule.is_default or self.leaves or self._is_over()
            if not trained and self._is_right():
                self.history.was_right = True
                return self.kept.done()
        return self.kept.reached(END)

    def _is_late(self, until: float) -> bool:
        """Whether the start has to make do with where it is."""
        return self.budget.is_over or time.perf_counter() > until

    def _finish(self) -> None:
        take_shared(self.layer, self._crossed.model.product)

    def _is_right(self) -> bool:
        """Whether a few draws of each block given the rest show nothing wrong."""
        try:
            blocks = Conditionals(self.layer, self.terms).judged(FEWEST, self.budget.after(LOOKING))[1]
        except SeveralRowsError:
            return False
        return bool(blocks) and all(wrong(block) < GOOD for block in blocks)

    # ---- what it has come to ----------------------------------------------------------------------------------

    def weigh(self) -> Any:
        """Draws with their weights, and how each block is fitted given the others."""
        return judged(self.layer, self.terms, self.history, self.budget.of_all(JUDGING)).state()

    @torch.no_grad()
    def compared(self, found: Any) -> Draws:
        """Latents outside of plates, with weights of whole draws."""
        draws = Judged.of(found).draws
        return Draws(draws.z[:, self.terms.whole.top], draws.log_weight, torch.zeros_like(draws.log_weight))

    def posterior(self, found: Any, call: Call, seed: int) -> CrossedPosterior:
        """Draws of all rows, and how each block is fitted given the others."""
        return crossed_posterior(self.guide, self.layer, Judged.of(found), call, self.history, self.leaves, seed)
