"""A guide judged as it is, however it was trained: draws with their weights, what it misses, and the verdict."""

import math
import time
from dataclasses import replace

import torch

from ..engine import History, work_of
from ..guides import AutoFlow
from ..model.crossed_terms import CrossedTerms
from ..system.exclusive import seeded, validation
from .collapsed import collapser_of
from .crossed_posterior import crossed_posterior, judged
from .encoded import EncodedRows
from .fitted import weighed
from .foreseen import foreseen
from .judged_rows import row_posterior
from .minibatch_starts import terms_of
from .plan import Plan
from .posterior import Call, Posterior
from .running import Fitter, RowsAreSubsampled
from .tabled import TabledRows


def judged_as_it_is(guide: AutoFlow, plan: Plan, call: Call, settles: bool = False) -> Posterior:
    """What a guide's draws are worth at these arguments of the model; the guide is left alone.

    :param guide: trained or not.
    :param plan: the engine, the seed and the number of draws; nothing is trained.
    :param call: the model's arguments.
    :param settles: whether draws whose weights are bad are moved until they settle, as those of a fit are.
    :raises ValueError: if the model cannot be evaluated at its start.
    """
    found = list[Posterior]()
    no_refit = replace(plan, schedule=replace(plan.schedule, good_ess=math.inf), max_seconds=math.inf)
    fitter = Fitter(guide)
    try:
        with fitter.ready(no_refit, call, found.append, as_it_is=True) as ready:
            layer, trainer = guide.plain_layer(), ready.trainer
            num = plan.schedule.for_work(work_of(trainer.log_joint, layer.end.loc)).num_samples
            trainer.sampler.expect(layer, num)
            draws = trainer.sampler.sample(layer, num)
            fitter.judge(no_refit, ready, [weighed(layer, draws)], settles=settles)
    except RowsAreSubsampled:
        found.append(_of_rows(guide, plan, call))
    return found[-1]


def _of_rows(guide: AutoFlow, plan: Plan, call: Call) -> Posterior:
    """The same by minibatches of a subsampled plate's rows."""
    began, history = time.perf_counter(), History()
    seed = int(torch.randint(2**31, ())) if plan.seed is None else plan.seed
    with foreseen(plan.engine), seeded(seed), validation(False):
        terms = terms_of(guide, call)
        if isinstance(terms, CrossedTerms):
            layer = guide.plain_layer()
            posterior = crossed_posterior(
                guide, layer, judged(layer, terms, history), call, history, terms.leaves(), seed
            )
            history.seconds = time.perf_counter() - began
            return posterior
        rows = EncodedRows(guide, terms) if guide.amortize else TabledRows(guide, terms)
        collapser = collapser_of(rows.weighed, terms, guide.hierarchy, plan.engine)
        found = row_posterior(guide, rows, collapser, call, history, terms.leaves(), seed)
        history.seconds = time.perf_counter() - began
        return found
