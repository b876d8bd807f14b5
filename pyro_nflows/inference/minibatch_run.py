"""One run of :class:`~pyro_nflows.VI` on a model with latents in a subsampled plate: by minibatches."""

import time
from collections.abc import Callable
from typing import Any

import torch

from ..engine import History
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers import Rescaled
from ..model.bound import BoundModel
from ..model.row_terms import RowTerms
from ..system.exclusive import seeded, validation
from ..system.signals import imported
from .collapsed import collapser_of
from .elbo import ELBO
from .minibatches import Minibatches
from .plan import Plan
from .posterior import Call
from .row_posterior import RowPosterior, weighed_draws
from .running import NEEDED

#: Draws that are judged and kept: so many numbers at most, and draws at least and at most.
MOST_NUMBERS, FEWEST, MOST = 2**26, 500, 4000


def run_minibatches(
    guide: AutoFlow, plan: Plan, call: Call, keep: Callable[[RowPosterior], Any], checkpoint: Any = None
) -> None:
    """Fit a guide by minibatches, and judge it.

    :param guide: follows the plate.
    :param plan: the engine, the seed, and perhaps how many steps; the rest is not for minibatches.
    :param call: the model's arguments.
    :param keep: takes the posterior.
    :param checkpoint: refused.
    :raises ValueError: if the plan asks for what minibatches have not, or not one plate of the model is subsampled.
    """
    _refuse(guide, plan, checkpoint)
    imported(*NEEDED)
    began, seed = time.perf_counter(), plan.seed
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    with seeded(seed), validation(False):
        terms, history = RowTerms(BoundModel(guide.bare_model, *call), guide.latents), History()
        if terms.joint.leaves(terms.joint.latents.init_loc()):
            raise ValueError(
                f"VI: the model has parameters of its own (pyro.param), which fits by minibatches do not train; train "
                f"{type(guide).__name__} and them by SVI"
            )
        fit = Minibatches(guide, terms, plan, history)
        layer = fit.fit()
        fit.correct()
        num = max(FEWEST, min(MOST, MOST_NUMBERS // guide.latents.dim))
        draws, rows = weighed_draws(collapser_of(layer, terms), 100 if history.interrupted else num)
        history.seconds = time.perf_counter() - began
        kept = Rescaled(layer, Whitened.END)
        keep(RowPosterior(guide, kept, call, draws, [draws], history, seed=seed, row_fit=rows))


def _refuse(guide: AutoFlow, plan: Plan, checkpoint: Any) -> None:
    name = type(guide).__name__
    if guide.amortize:
        raise ValueError(f"VI: the rows of {name} have an encoder, which SVI trains; leave amortize= out for VI")
    if checkpoint is not None:
        raise ValueError(f"VI: {name} is fitted by minibatches here, for which there is no checkpoint=; leave it out")
    if plan.num_starts > 1:
        raise ValueError(f"VI: {name} is fitted by minibatches here, from one start; got num_starts={plan.num_starts}")
    if type(plan.objective) is not ELBO or any(part.annealing for part in plan.schedule.rounds):
        raise ValueError(f"VI: {name} is fitted by minibatches here, by the plain ELBO without annealing")
