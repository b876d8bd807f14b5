r"""Do draws stay where they are? Resampled draws, moved by Hamiltonian Monte Carlo in the flow's coordinates.

Importance weights mend a guide where it goes. A part of the posterior in which it has next to no draws, such as the
neck of a funnel, is in no weight, and whether :math:`\hat k` shows it is a matter of luck where few weights count. But
chains that begin at draws of the posterior stay so distributed, and those that begin elsewhere move towards it. So
where all hangs on the weights, resampled draws are moved, and each latent's mean and standard deviation are compared
with what the weights say.
"""

import math
import time

import torch
from torch import Tensor

from ..diagnostics.findings import Drift
from ..diagnostics.weights import psis_resample
from ..diagnostics.worth import effective
from ..engine import DensityGradient, Trainer
from ..guides import AutoFlow
from ..layers.base import Exactness, Layer
from ..numerics import LogDensity
from ..objectives.draws import Draws
from ..system.randomness import forked
from .blame import columns
from .chains import Hamiltonian
from .fitted import Fit

#: Chains side by side, and trajectories: those that find the step size, which move the draws too, and further ones.
NUM_CHAINS, NUM_WARMUP, NUM_MOVES = 512, 30, 60
#: Seconds of processor time that they may take, about; where they would take longer, nothing is moved. A fit that is to
#: be quick has less.
SECONDS, BRIEF = 30.0, 5.0
#: What is too far: of a mean, in standard deviations; of these, as a ratio; and both in standard errors.
SHIFT, RATIO, NOISE = 0.25, 1.25, 4.5


def drift(trainer: Trainer, guide: AutoFlow, fit: Fit, brief: bool) -> Drift | None:
    """What moves beyond noise; None if nothing does, or if it cannot be known.

    :param trainer: has the model, and the time that is left.
    :param guide: for the names of its sites.
    :param fit: whose draws are moved, unless its flow has no inverse or auxiliary variables.
    :param brief: whether the fit was to be quick.
    """
    layer, seconds = fit.layer, min(BRIEF if brief else SECONDS, trainer.budget.left)
    if layer.exactness < Exactness.EXACT or layer.noise_dim or not layer.has_inverse:
        return None
    try:
        with forked():
            after = moved(trainer.judged, layer, fit.draws, seconds)
    except (ValueError, RuntimeError, NotImplementedError):  # the model refuses points that a trajectory meets
        return None
    found = None if after is None else furthest(fit.draws, after)
    if found is None:
        return None
    column, shift, ratio = found
    return Drift(next(name for name, at in columns(guide) if at.start <= column < at.stop), shift, ratio)


def moved(log_joint: LogDensity, layer: Layer, draws: Draws, seconds: float = SECONDS) -> Tensor | None:
    """Resampled draws after some trajectories, ``(NUM_CHAINS, D)``; None if these would take too long.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param layer: the trained flow, a bijection.
    :param draws: of it.
    :param seconds: of processor time that there are.
    """
    density = DensityGradient(lambda x: in_flow(log_joint, layer, x))
    with torch.no_grad():
        starts, _ = layer.inverse(draws.z[psis_resample(draws.log_weight, NUM_CHAINS)])
    density.values_and_grads(starts, NUM_CHAINS)  # which is recorded
    began = time.process_time()
    density.values_and_grads(starts, NUM_CHAINS)
    leapfrogs = max(2.0, 0.5 * math.pi * starts.shape[1] ** 0.25)
    if (time.process_time() - began) * leapfrogs * (NUM_WARMUP + NUM_MOVES) > seconds:
        return None
    chains = Hamiltonian.warmed(density, starts, NUM_WARMUP).advance(NUM_MOVES)
    with torch.no_grad():
        return layer(chains.x[:, -1])[0]


def in_flow(log_joint: LogDensity, layer: Layer, x: Tensor) -> Tensor:
    """The log density in the flow's coordinates. The base density is not part of it: x is a point, not a draw."""
    z, log_weight = layer(x)
    return log_joint(z) + log_weight


def furthest(draws: Draws, after: Tensor) -> tuple[int, float, float] | None:
    """Of the latent that moved most: its number, its mean's way in standard deviations, and how much wider it is.

    None if that is not too far.

    :param draws: with their weights.
    :param after: draws without, ``(N, D)``.

    Example::

        >>> z = torch.randn(4000, 2)
        >>> draws = Draws(z, torch.zeros(4000), torch.zeros(4000))
        >>> furthest(draws, torch.randn(500, 2)) is None
        True
        >>> furthest(draws, torch.tensor([1.0, 3.0]) * torch.randn(500, 2))[0]
        1
    """
    weights = draws.log_weight.double().softmax(0)[:, None]
    before, after = draws.z.double(), after.double()
    mean = (weights * before).sum(0)
    sd = (weights * (before - mean).square()).sum(0).sqrt()
    shift, ratio = (after.mean(0) - mean) / sd, after.std(0) / sd
    kurtosis = ((after - after.mean(0)) / after.std(0)).pow(4).mean(0).clamp(min=3)
    share = 1 / len(after) + 1 / (effective(draws.log_weight) * len(before))
    most = (NOISE * share**0.5 * ratio.clamp(min=1)).clamp(min=SHIFT)
    most_wider = (NOISE * ((kurtosis - 1) * share / 4).sqrt()).clamp(min=math.log(RATIO))
    far = torch.maximum(shift.abs() / most, ratio.log().abs() / most_wider).nan_to_num(0.0)
    column = int(far.argmax())
    return (column, float(shift[column]), float(ratio[column])) if far[column] > 1 else None
