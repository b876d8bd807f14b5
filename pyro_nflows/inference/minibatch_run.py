"""One run of :class:`~pyro_nflows.VI` on a model with latents in subsampled plates: by minibatches."""

import contextlib
import time
from dataclasses import replace

import torch

from ..engine import Budget, History, Journal, Progress
from ..guides import AutoFlow
from ..system.exclusive import seeded, validation
from ..system.signals import before_sigterm
from .crossed_posterior import is_crossed
from .elbo import ELBO
from .foreseen import foreseen
from .kept import Keep, unless_kept
from .minibatch_apart import best_apart, is_apart
from .minibatch_starts import Starts, terms_of
from .no_data import warn_of_no_data
from .plan import Plan
from .posterior import Call
from .resume import Checkpoint


def run_minibatches(guide: AutoFlow, plan: Plan, call: Call, keep: Keep, checkpoint: Checkpoint | None = None) -> None:
    """Fit a guide by minibatches, and judge it.

    :param guide: follows the plates.
    :param plan: the engine, the seed, how many starts, and perhaps how many steps; the rest is not for minibatches.
    :param call: the model's arguments.
    :param keep: takes the posterior.
    :param checkpoint: a file to go on from, and to keep the state of the run in.
    :raises ValueError: if the plan asks for what minibatches have not, or the model is none that they can be taken of.
    """
    _refuse(guide, plan)
    budget = Budget(plan.max_seconds)
    began, seed = time.perf_counter(), plan.seed if checkpoint is None or checkpoint.seed is None else checkpoint.seed
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    journal = Journal() if checkpoint is None else checkpoint.journal(seed)
    with foreseen(plan.engine), seeded(seed), validation(False), Progress(plan.progress_bar) as progress:
        history, terms = History(quick=not plan.schedule.has_flow), terms_of(guide, call)
        warn_of_no_data(terms.joint)
        leaves = terms.leaves()
        kept = unless_kept(guide, leaves, keep)
        with before_sigterm(journal.write), kept as keeping, contextlib.ExitStack() as at_the_end:
            at_the_end.callback(journal.write)
            fits = Starts(guide, terms, plan, history, leaves, budget, progress, journal)
            best = best_apart(fits, call) if is_apart(fits) else fits.run()
            history.unsearched |= budget.left <= 0
            with progress.phase("verdict"):
                posterior = best.fit.posterior(best.found, call, seed)
            posterior = replace(posterior, starts=fits.seen or posterior.starts)
            history.seconds = time.perf_counter() - began
            keeping(posterior)
            if checkpoint is not None and not (history.interrupted or history.out_of_time or history.stopped):
                at_the_end.pop_all()
                checkpoint.finish(seed, posterior)


def _refuse(guide: AutoFlow, plan: Plan) -> None:
    name = type(guide).__name__
    if plan.optim is not None:
        raise ValueError(f"VI: {name} is fitted by minibatches here, whose steps are Adam's; leave out optim=")
    if type(plan.objective) is not ELBO or any(part.annealing for part in plan.schedule.rounds):
        raise ValueError(f"VI: {name} is fitted by minibatches here, by the plain ELBO without annealing")
    if guide.amortize and is_crossed(guide.latents, guide.hierarchy):
        raise ValueError(
            f"VI: {name} has rows by an encoder (amortize=), which VI trains for latents in one subsampled plate; "
            "leave amortize out, or train it by SVI"
        )
