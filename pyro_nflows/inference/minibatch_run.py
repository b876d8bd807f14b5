"""One run of :class:`~pyro_nflows.VI` on a model with latents in a subsampled plate: by minibatches."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import Budget, History, Progress
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers import Rescaled
from ..model.bound import BoundModel
from ..model.row_terms import RowTerms
from ..system.exclusive import seeded, validation
from ..system.signals import imported
from .collapsed import Collapser
from .elbo import ELBO
from .encoded import EncodedRows
from .minibatches import Minibatches
from .plan import Plan
from .posterior import Call
from .row_modes import described, missed_by_minibatches
from .row_posterior import RowPosterior, weighed_draws
from .running import NEEDED, Keep, unless_kept
from .tabled import TabledRows

#: Draws that are kept with their rows: of so many numbers, but so many at least, and at most.
MOST_NUMBERS, FEWEST, MOST = 2**26, 100, 1000
#: Draws that are judged at least; after an interrupt, no more than the fewest that are kept.
JUDGED = 500
#: The share of the time that is left, where it is limited, that weighing them may take.
WEIGHED = 0.6


def run_minibatches(guide: AutoFlow, plan: Plan, call: Call, keep: Keep, checkpoint: Any = None) -> None:
    """Fit a guide by minibatches, and judge it.

    :param guide: follows the plate.
    :param plan: the engine, the seed, and perhaps how many steps; the rest is not for minibatches.
    :param call: the model's arguments.
    :param keep: takes the posterior.
    :param checkpoint: refused.
    :raises ValueError: if the plan asks for what minibatches have not, or not one plate of the model is subsampled.
    """
    _refuse(guide, plan, checkpoint)
    budget = Budget(plan.max_seconds)
    imported(*NEEDED)
    began, seed = time.perf_counter(), plan.seed
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    with seeded(seed), validation(False), Progress(plan.progress_bar) as progress:
        terms = RowTerms(BoundModel(guide.bare_model, *call), guide.latents)
        history = History(quick=not plan.schedule.has_flow)
        leaves = terms.leaves()
        with unless_kept(guide, leaves, keep) as kept:
            fit = Minibatches(guide, terms, plan, history, leaves, budget, progress)
            fit.fit()
            with progress.phase("correction", follows="the verdict"):
                fit.correct()
            time_for = int(min(MOST, WEIGHED * budget.left / fit.pace)) if fit.pace else MOST
            history.unsearched |= budget.left <= 0
            with progress.phase("verdict"):
                posterior = row_posterior(guide, fit.of_rows, fit.collapser, call, history, leaves, seed, time_for)
            history.seconds = time.perf_counter() - began
            kept(posterior)


def row_posterior(
    guide: AutoFlow,
    rows: TabledRows | EncodedRows,
    collapser: Collapser,
    call: Call,
    history: History,
    leaves: Sequence[Tensor],
    seed: int,
    time_for: int = MOST,
) -> RowPosterior:
    """A flow over all rows, with weighed draws of it, and what it misses.

    :param guide: of the flow's kind.
    :param rows: the flow.
    :param collapser: weighs its draws.
    :param call: the model's arguments.
    :param history: what training has seen.
    :param leaves: the model's own parameters.
    :param seed: of the draws.
    :param time_for: draws that there is time for; :data:`FEWEST` are weighed even if there is none.
    """
    num_kept = FEWEST if history.interrupted else max(FEWEST, min(MOST, MOST_NUMBERS // guide.latents.dim))
    num_judged = FEWEST if history.interrupted else max(JUDGED, num_kept)
    num_kept, num_judged = (max(FEWEST, min(num, time_for)) for num in (num_kept, num_judged))
    draws, worst, judged = weighed_draws(collapser, num_judged, num_kept)
    missed = None if history.interrupted or history.unsearched else missed_by_minibatches(collapser)
    return RowPosterior(
        guide,
        Rescaled(rows.layer, Whitened.END),
        call,
        draws,
        [draws],
        history,
        described(guide, missed, call),
        leaves=[leaf.detach().clone() for leaf in leaves],
        seed=seed,
        row_fit=worst,
        amortizer=rows.amortizer,
        judged=judged if len(judged) > len(draws.z) else judged[:0],
    )


def _refuse(guide: AutoFlow, plan: Plan, checkpoint: Any) -> None:
    name = type(guide).__name__
    if checkpoint is not None:
        raise ValueError(f"VI: {name} is fitted by minibatches here, for which there is no checkpoint=; leave it out")
    if plan.num_starts is not None and plan.num_starts > 1:
        raise ValueError(f"VI: {name} is fitted by minibatches here, from one start; got num_starts={plan.num_starts}")
    if plan.optim is not None:
        raise ValueError(f"VI: {name} is fitted by minibatches here, whose steps are Adam's; leave out optim=")
    if type(plan.objective) is not ELBO or any(part.annealing for part in plan.schedule.rounds):
        raise ValueError(f"VI: {name} is fitted by minibatches here, by the plain ELBO without annealing")
