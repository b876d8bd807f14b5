"""What keeps a fit from being good, by the names of the sites; looked for where its weights leave a doubt."""

import math
from dataclasses import replace

from torch import Tensor

from ..diagnostics.findings import Faults
from ..diagnostics.worth import effective, is_heavy, is_hopeless
from ..engine import OutOfTime, Trainer
from ..guides import AutoFlow
from ..model.log_joint import LogJoint
from .blame import not_finite_at, on_the_edge, out_of_scale, runs_away, vaguest
from .fitted import Fit
from .mark import FINE
from .search import round_trip


def faults_of(trainer: Trainer, joint: LogJoint, guide: AutoFlow, best: Fit) -> Faults:
    """What is found wrong with a fit besides its weights and what it misses.

    :param trainer: has the model, and the time that is left.
    :param joint: the model.
    :param guide: knows the sites.
    :param best: the fit.
    """
    draws, history, budget = best.draws, trainer.history, trainer.budget
    hopeless = is_hopeless(draws.log_weight)
    looked = not (history.interrupted or best.failed or hopeless)
    faults = Faults(round_trip=round_trip(best) if looked else 0.0, unobserved=not joint.has_data)
    if best.failed or best.has_gaps or hopeless:
        site, edge = not_finite_at(joint, guide, best.suspects, budget.end if budget.is_limited else math.inf)
        faults = replace(faults, not_finite=site, edge=edge)
    if history.interrupted or hopeless:
        return faults
    faults, ess = replace(faults, edge=on_the_edge(guide, draws.z)), effective(draws.log_weight)
    if ess >= FINE and not is_heavy(draws.log_weight, ess):
        return faults

    def judged(z: Tensor) -> Tensor:
        budget.need(trainer.sampler.costs.at(best.layer, budget.seconds).of(len(z)) if budget.is_limited else 0.0)
        return trainer.judged(z)

    faults = replace(faults, vague=vaguest(guide, draws))
    try:
        with budget.within(budget.end):
            faults = replace(faults, improper=runs_away(judged, trainer.density.hessian, guide, draws))
            return replace(faults, scale=out_of_scale(trainer.density.hessian, guide, draws))
    except OutOfTime:
        return replace(faults, unexamined=not faults.improper)
