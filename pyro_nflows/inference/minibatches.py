r"""A fit by minibatches: a guide that follows a subsampled plate, whose steps cost as much as the rows they have.

1. A pilot: the Gaussian of what is outside of the plate, fitted to the rows of one minibatch as if these were all. Its
   precision, times :math:`N / B`, is about that of all rows.
2. Where each row starts: by Newton's method, minibatch after minibatch, given the pilot's mean
   (:mod:`~pyro_nflows.inference.row_starts`). The curvature there says how a row depends on what is outside.
3. The affine end, then the whole flow (:mod:`~pyro_nflows.inference.minibatch_fit`).
4. What is outside of the plate is moved to its weighted moments.
"""

import contextlib
import copy
import itertools
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from ..diagnostics.worth import effective
from ..engine import Round, Trainer
from ..engine.density_gradient import DensityGradient
from ..flows.whitened import Whitened
from ..layers import PlateAffine, Split, TriangularAffine
from ..layers.base import Chain
from ..model.feasible import dispersed_start
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..modes.gaussians import gaussian_at, put_top
from ..modes.pathfinder import best_on_way
from ..objectives.base import Gradient, Objective
from ..objectives.draws import Draws
from .collapsed import MAX_CANDIDATES, NUM_RULES, Collapser, Outside, collapser_of, move
from .judged_rows import MOST, Sizes, row_posterior
from .minibatch_fit import MinibatchFit, minibatches
from .minibatch_journal import BEGINNING, END
from .posterior import Call
from .row_posterior import RowPosterior

#: The round in which the pilot's Gaussian is fitted.
PILOT = Round(400, 64, 2e-2, share=0.1)
#: Step sizes of the affine end and of the flow.
STEP_SIZES = 5e-2, 3e-3
#: Draws of what is outside of the plate by which it is corrected, how often at most, and an ESS that needs no more.
NUM_CORRECTING, MAX_CORRECTIONS, GOOD = 200, 4, 0.9
#: A correction is the last if the time that is left is not so many times as long as it took.
LATE = 3.0
#: Where time is limited, the share of training's that the rows' starts may take.
PLACING = 0.3
#: Where time is limited: draws by which it is seen what draws take, the share of the time left that a correction may
#: take, that weighing draws may, and what is left for choosing draws of rows among candidates.
FEW, CORRECTING, WEIGHED, CHOOSING = 4, 0.15, 0.6, 0.2


class Minibatches(MinibatchFit[RowTerms]):
    """A fit of rows of one subsampled plate."""

    step_sizes, pace = STEP_SIZES, 0.0

    def rows(self, numbers: Tensor) -> Rows:
        """Chosen rows of the plate."""
        return self.collapser.rows(numbers)

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
        parts = self.of_rows.weighed, self.terms, self.guide.hierarchy, self.plan.engine, self.team
        return collapser_of(*parts)

    def _begun(self) -> int:
        """The stage after the pilot and the rows' starts, which is the same where somebody is waiting."""
        self._pilot()
        if self.history.interrupted:
            return BEGINNING
        self.team.tell(self.of_rows.weighed)
        self.of_rows.place(self.team, self.budget.after(PLACING))
        return self.kept.reached(END)

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
            # A start that is better by one minibatch's ELBO ends in weights with heavier tails.
            until = self.budget.after(PILOT.share)
            with self.budget.within(until):
                best_on_way(DensityGradient(density).within(self.budget), init, until=until)[0].place(small)
            trainer.run(Chain(small.end), Objective(), Gradient.PATH, PILOT, f"{self._prefix}pilot")
        end, found = self.of_rows.end, cast(PlateAffine, small.end)
        with torch.no_grad():
            end.loc[end.hierarchy.top] = found.loc[terms.hierarchy.top]
            put_top(end, terms.factor**-0.5 * found.top_scale_tril())

    def correct(self) -> None:
        """Move what is outside of the plate to its weighted moments, until its weights are nearly equal.

        The noise of minibatches leaves it off by parts of its width. Rows follow, since they are told of its image.
        """
        affine = _first_affine(self.layer)
        if affine is not None and not self.history.interrupted:
            self.kept.journal.step(f"{self.name}, corrected", lambda: self._corrected(affine), affine.load_state_dict)

    @torch.no_grad()
    def _corrected(self, affine: TriangularAffine) -> dict[str, Tensor]:
        """Where the layer that can be moved is in the end."""
        collapser, num = self.collapser, max(NUM_CORRECTING, 20 * affine.input_dim)
        if self.budget.is_limited:
            num = self._affordable(num)
            if num < FEW:
                return dict(affine.state_dict())
        best, best_ess = copy.deepcopy(affine.state_dict()), -1.0
        for _ in range(MAX_CORRECTIONS):
            began = time.perf_counter()
            found = collapser.weigh(num, int(torch.randint(2**31, ())), self.budget.of_all(WEIGHED))
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

    def weigh(self) -> Any:
        """Draws of what is outside of the plate, with their weights."""
        if self.budget.is_limited and not self.pace:
            self._affordable(FEW)
        until = self.budget.of_all(WEIGHED)
        return list(self.collapser.weigh(self.sizes.judged, int(torch.randint(2**31, ())), until))

    def _affordable(self, num: int) -> int:
        """How many of so many draws there is time for, by how long a few take."""
        began = time.perf_counter()
        self.collapser.weigh(FEW, until=began)
        self.pace = (time.perf_counter() - began) / FEW
        return min(num, int(CORRECTING * self.budget.left / self.pace))

    @cached_property
    def sizes(self) -> Sizes:
        """How many these are, as the time is when it is asked first."""
        time_for = int(min(MOST, WEIGHED * self.budget.left / self.pace)) if self.pace else MOST
        sizes = Sizes.of(self.guide, self.history, time_for)
        if not (self.pace and self.budget.is_limited):
            return sizes
        once = self.pace * max(FEW, sizes.kept / (1 + 2 * NUM_RULES))  # a rule has two points or more a draw
        return sizes._replace(candidates=max(1, int(min(MAX_CANDIDATES, CHOOSING * self.budget.left / once))))

    @torch.no_grad()
    def compared(self, found: Any) -> Draws:
        """Latents outside of the plate, with weights."""
        hierarchy, (base, log_weight, _) = self.terms.hierarchy, found
        inner = base.new_zeros(len(base), hierarchy.dim - len(hierarchy.top))
        z = self.collapser.ratios(torch.arange(self.terms.size), base, inner).z
        return Draws(z[:, hierarchy.top], log_weight, torch.zeros_like(log_weight))

    def posterior(self, found: Any, call: Call, seed: int) -> RowPosterior:
        """A flow over all rows, with weighed draws of it, and what it misses."""
        parts = self.guide, self.of_rows, self.collapser, call, self.history, self.leaves, seed
        return row_posterior(*parts, self.sizes, Outside(*found), self.budget)


def _first_affine(layer: Whitened) -> TriangularAffine | None:
    """The layer that can be moved without moving what rows make of its image; None where all is in the plate."""
    first = layer.flow[0] if isinstance(layer.flow, Chain) else None
    return cast(TriangularAffine, cast(Chain, first.layer)[0]) if isinstance(first, Split) else None
