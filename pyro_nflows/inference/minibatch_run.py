"""One run of :class:`~pyro_nflows.VI` on a model with latents in a subsampled plate: by minibatches."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..diagnostics.findings import Faults
from ..engine import Budget, History, Journal, Progress
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers import Rescaled
from ..model.bound import BoundModel
from ..model.row_terms import RowTerms
from ..system.exclusive import seeded, validation
from ..system.signals import before_sigterm, imported
from .collapsed import Collapser, Outside
from .crossed import CrossedMinibatches
from .crossed_posterior import crossed_posterior, crossed_terms, is_crossed
from .elbo import ELBO
from .encoded import EncodedRows
from .minibatch_starts import Sizes, Starts
from .no_data import warn_of_no_data
from .plan import Plan
from .posterior import Call
from .resume import Checkpoint
from .row_modes import described, missed_by_minibatches
from .row_posterior import RowPosterior, weighed_draws
from .running import NEEDED, Keep, unless_kept
from .tabled import TabledRows


def run_minibatches(guide: AutoFlow, plan: Plan, call: Call, keep: Keep, checkpoint: Checkpoint | None = None) -> None:
    """Fit a guide by minibatches, and judge it.

    :param guide: follows the plate.
    :param plan: the engine, the seed, how many starts, and perhaps how many steps; the rest is not for minibatches.
    :param call: the model's arguments.
    :param keep: takes the posterior.
    :param checkpoint: a file to go on from, and to keep the state of the run in.
    :raises ValueError: if the plan asks for what minibatches have not, or not one plate of the model is subsampled.
    """
    _refuse(guide, plan)
    budget = Budget(plan.max_seconds)
    imported(*NEEDED)
    began, seed = time.perf_counter(), plan.seed if checkpoint is None or checkpoint.seed is None else checkpoint.seed
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    journal = Journal() if checkpoint is None else checkpoint.journal(seed)
    with seeded(seed), validation(False), Progress(plan.progress_bar) as progress:
        history = History(quick=not plan.schedule.has_flow)
        if is_crossed(guide.latents, guide.hierarchy):
            _refuse_crossed(guide, plan, checkpoint)
            _run_crossed(guide, plan, call, keep, history, budget, progress, seed)
            return
        terms = RowTerms(BoundModel(guide.bare_model, *call), guide.latents)
        warn_of_no_data(terms.joint)
        leaves = terms.leaves()
        kept = unless_kept(guide, leaves, keep)
        with before_sigterm(journal.write), kept as keeping, contextlib.ExitStack() as at_the_end:
            at_the_end.callback(journal.write)
            fits = Starts(guide, terms, plan, history, leaves, budget, progress, journal)
            best = fits.run()
            history.unsearched |= budget.left <= 0
            parts = guide, best.fit.of_rows, best.fit.collapser, call, history, leaves, seed, best.num, best.found
            with progress.phase("verdict"):
                posterior = row_posterior(*parts)
            posterior = replace(posterior, starts=fits.seen or posterior.starts)
            history.seconds = time.perf_counter() - began
            keeping(posterior)
            if checkpoint is not None and not (history.interrupted or history.out_of_time or history.stopped):
                at_the_end.pop_all()
                checkpoint.finish(seed, posterior)


def _run_crossed(
    guide: AutoFlow,
    plan: Plan,
    call: Call,
    keep: Keep,
    history: History,
    budget: Budget,
    progress: Progress,
    seed: int,
) -> None:
    """The same where latents are in several plates."""
    began = time.perf_counter()
    terms = crossed_terms(guide, call)
    warn_of_no_data(terms.joint)
    leaves = terms.leaves()
    with unless_kept(guide, leaves, keep) as kept:
        layer = CrossedMinibatches(guide, terms, plan, history, leaves, budget, progress).fit()
        with progress.phase("verdict"):
            posterior = crossed_posterior(guide, layer, terms, call, history, leaves, seed)
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
    sizes: Sizes | None = None,
    found: Outside | None = None,
) -> RowPosterior:
    """A flow over all rows, with weighed draws of it, and what it misses.

    :param guide: of the flow's kind.
    :param rows: the flow.
    :param collapser: weighs its draws.
    :param call: the model's arguments.
    :param history: what training has seen.
    :param leaves: the model's own parameters.
    :param seed: of the draws.
    :param sizes: how many are judged and kept.
    :param found: draws of what is outside of the plate that have been weighed already.
    """
    sizes = sizes or Sizes.of(guide, history)
    draws, worst, judged = weighed_draws(collapser, sizes.judged, sizes.kept, found)
    missed = None if history.interrupted or history.unsearched else missed_by_minibatches(collapser)
    return RowPosterior(
        guide,
        Rescaled(rows.layer, Whitened.END),
        call,
        draws,
        [draws],
        history,
        described(guide, missed, call),
        Faults(unobserved=not collapser.terms.joint.has_data),
        leaves=[leaf.detach().clone() for leaf in leaves],
        seed=seed,
        row_fit=worst,
        amortizer=rows.amortizer,
        judged=judged if len(judged) > len(draws.z) else judged[:0],
    )


def _refuse(guide: AutoFlow, plan: Plan) -> None:
    name = type(guide).__name__
    if plan.optim is not None:
        raise ValueError(f"VI: {name} is fitted by minibatches here, whose steps are Adam's; leave out optim=")
    if type(plan.objective) is not ELBO or any(part.annealing for part in plan.schedule.rounds):
        raise ValueError(f"VI: {name} is fitted by minibatches here, by the plain ELBO without annealing")


def _refuse_crossed(guide: AutoFlow, plan: Plan, checkpoint: Checkpoint | None) -> None:
    name = type(guide).__name__
    if guide.amortize:
        raise ValueError(
            f"VI: {name} has rows by an encoder (amortize=), which VI trains for latents in one subsampled plate; "
            "leave amortize out, or train it by SVI"
        )
    if checkpoint is not None:
        raise ValueError(f"VI: {name} has latents in several plates, for which there is no checkpoint=; leave it out")
    if plan.num_starts is not None and plan.num_starts > 1:
        raise ValueError(
            f"VI: {name} has latents in several plates, fitted from one start; got num_starts={plan.num_starts}"
        )
