r"""Evidence before training: a start that is the posterior already, as far as a verdict can tell, is not trained.

Where there are many data, a posterior is nearly Gaussian, and the start of a fit has that Gaussian
(:mod:`~pyro_nflows.modes.pathfinder`). A few hundred weighed draws say whether that is so; if they do, so have to all
the draws that a verdict needs. Both are looked at as after a round of training, but with a margin: training would
improve on a start that only just passes.
"""

import torch

from ..diagnostics.verdict import effective, k_limit, tail_index
from ..engine import Trainer
from ..flows.whitened import Whitened
from ..objectives.draws import Draws
from .fitted import sound, undefined
from .schedule import Schedule

#: Draws that are looked at first.
FIRST_LOOK = 500
#: An ESS of a start that needs no training.
EVIDENT = 0.98


def evident(trainer: Trainer, layer: Whitened, schedule: Schedule) -> Draws | None:
    """All the draws of a layer as it is that a verdict needs, if they show that it is the posterior.

    The random numbers to come do not depend on whether this is asked.

    :param trainer: has the model.
    :param layer: at its start.
    :param schedule: how many draws, and how good they have to be.
    :return: the draws; None where the layer should be trained.
    """
    if schedule.num_samples < FIRST_LOOK:  # so few show nothing
        return None
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, ())))  # not those that training will have
        few = trainer.sampler.sample(layer, FIRST_LOOK)
        if not is_evident(few, schedule.good_ess, tail=False):
            return None
        draws = trainer.sampler.sample(layer, schedule.num_samples)
    return draws if is_evident(draws, schedule.good_ess, schedule.light_tails) else None


def is_evident(draws: Draws, good_ess: float, tail: bool = True) -> bool:
    r"""Whether draws show by a margin that they are of the posterior.

    The ESS has to be 0.98 at least, and :math:`\hat k` below its threshold by the standard error of its estimate.

    :param draws: with their weights.
    :param good_ess: an ESS that is asked for, if that is more.
    :param tail: whether to look at :math:`\hat k`, for which a few hundred draws are not enough.

    Example::

        >>> flat = Draws(torch.zeros(1000, 1), torch.zeros(1000), torch.zeros(1000))
        >>> is_evident(flat, 0.95), is_evident(flat, 2.0)
        (True, False)
    """
    log_weight = sound(draws).log_weight
    if bool(undefined(draws).any()) or not effective(log_weight) >= max(EVIDENT, good_ess):
        return False
    return not tail or tail_index(log_weight) < k_limit(len(log_weight), 0.0)
