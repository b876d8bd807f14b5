r"""Evidence before training: a start that is the posterior already, as far as a verdict can tell, is not trained.

Where there are many data, a posterior is nearly Gaussian, and the start of a fit has about that Gaussian
(:mod:`~pyro_nflows.modes.pathfinder`). Where a few hundred weighed draws do not speak against it, it is moved to the
mean and the covariance of weighed draws (:mod:`~pyro_nflows.inference.moments`), and as many fresh draws are looked at
as a verdict needs: as after a round of training, but with a margin, since training would improve on a Gaussian that
only just passes.
"""

import contextlib
from collections.abc import Iterator

import torch

from ..diagnostics.outliers import outliers
from ..diagnostics.worth import effective, k_limit, tail_index
from ..engine import OutOfTime, Trainer
from ..flows.whitened import Whitened
from ..objectives.draws import Draws
from ..system.randomness import forked
from .fitted import sound, undefined
from .moments import moved
from .schedule import Schedule

#: Draws that are looked at first, and an ESS at which they speak against it.
FIRST_LOOK, HOPELESS = 500, 0.01
#: Where time is limited, the share of training's that these looks may take.
LOOKING = 0.3
#: Draws by which it is moved, and an ESS that needs no move.
MOVED, SETTLED = 2000, 0.995
#: An ESS of a start that needs no training; of many latents, ``Schedule.for_latents`` has another one.
EVIDENT = Schedule.evident_ess


def evident(trainer: Trainer, layer: Whitened, schedule: Schedule) -> Draws | None:
    """All the draws of a layer that a verdict needs, if they show that it is the posterior; its end may be moved.

    The random numbers to come do not depend on whether this is asked.

    :param trainer: has the model.
    :param layer: at its start.
    :param schedule: how many draws, and how good they have to be.
    :return: the draws; None where the layer should be trained, which is then as it was.
    """
    if schedule.num_samples < FIRST_LOOK or schedule.good_ess > 1:  # so few show nothing
        return None
    before = {name: value.clone() for name, value in layer.end.state_dict().items()}
    some, enough = _looked(trainer, layer, schedule), schedule.evident_ess
    if some is not None and is_evident(some, schedule.good_ess, tail=False, enough=enough):
        draws = fresh_draws(trainer, layer, schedule)
        if is_evident(draws, schedule.good_ess, schedule.light_tails, enough):
            return draws
    layer.end.load_state_dict(before)
    return None


def _looked(trainer: Trainer, layer: Whitened, schedule: Schedule) -> Draws | None:
    """Some draws of the layer, which they may have moved; none where they speak against it, or there is no time."""
    budget = trainer.budget
    with contextlib.suppress(OutOfTime), budget.within(budget.after(LOOKING)), aside(0):
        some = trainer.sampler.sample(layer, FIRST_LOOK)
        ess = effective(sound(some).log_weight)
        if not ess >= HOPELESS or bool(undefined(some).any()):
            return None
        if ess < SETTLED:
            some = moved(trainer, layer, SETTLED, min(MOVED, schedule.num_samples))
        return some
    return None


def fresh_draws(trainer: Trainer, layer: Whitened, schedule: Schedule) -> Draws:
    """Those that :func:`evident` judges last, however often they are taken."""
    with aside(1):
        return trainer.sampler.sample(layer, schedule.num_samples)


@contextlib.contextmanager
def aside(number: int) -> Iterator[None]:
    """Random numbers that are not those which training will have, and leave these alone."""
    with forked():
        seed = int(torch.randint(2**60, (), device="cpu")) + number
    with forked(seed):
        yield


def is_evident(draws: Draws, good_ess: float, tail: bool = True, enough: float = EVIDENT) -> bool:
    r"""Whether draws show by a margin that they are of the posterior.

    The ESS has to be high enough, :math:`\hat k` below its threshold by the standard error of its estimate, and no draw
    an outlier, which would spoil the ELBO, and which training draws in.

    :param draws: with their weights.
    :param good_ess: an ESS that is asked for, if that is more.
    :param tail: whether to look at :math:`\hat k`, for which few draws are not enough.
    :param enough: the least ESS.

    Example::

        >>> flat = Draws(torch.zeros(1000, 1), torch.zeros(1000), torch.zeros(1000))
        >>> is_evident(flat, 0.95), is_evident(flat, 2.0)
        (True, False)
    """
    log_weight = sound(draws).log_weight
    if (
        bool(undefined(draws).any())
        or bool(outliers(log_weight).any())
        or not effective(log_weight) >= max(enough, good_ess)
    ):
        return False
    return not tail or tail_index(log_weight) < k_limit(len(log_weight), 0.0)
