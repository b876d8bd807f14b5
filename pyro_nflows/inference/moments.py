r"""A fit whose log density was noisy while it was trained is moved to where its weighted draws are.

Steps of training on minibatches leave a guide some way off: its shape is right, and its place is off by the noise of
the last minibatches. Draws that are weighed over all rows know where it should be. With :math:`u` the draws in whitened
coordinates, :math:`m_0, C_0` their mean and covariance, and :math:`m_1, C_1` the weighted ones, the affine end

.. math:: y = \mu + L u \quad \text{becomes} \quad y = \mu + L \big( m_1 + T (u - m_0) \big), \qquad
    T = C_1^{1/2} C_0^{-1/2} ,

with triangular roots, so that the draws of the fit have the mean and the covariance that the weights said. Where few
draws have most of the weight, their logarithms are multiplied by a number below one first, and only the mean and the
scales are moved (adaptive importance sampling [1]).

**References**

[1] J.-M. Cornuet, J.-M. Marin, A. Mira, C. Robert (2012). Adaptive Multiple Importance Sampling.
"""

import math

import torch
from torch import Tensor

from ..diagnostics.outliers import trimmed_elbo
from ..diagnostics.worth import effective, is_hopeless
from ..engine import Trainer
from ..engine.sampler import LOOK
from ..flows.whitened import Whitened
from ..layers import LocScale, TriangularAffine
from ..objectives.draws import Draws
from ..triangles import log_scale_and_lower
from .fitted import sound

#: How often a fit is moved at most.
MAX_MOVES = 5
#: Nats that the noise of a covariance may cost; with more noise, scales alone are moved.
NOISE = 0.25
#: The noise that the draws of a move are enough for, and the least number of them.
AIMED, FEWEST = 0.01, 2000
#: Draws, for each dimension, that weights must be worth.
WORTH = 20
#: An ESS below which it says less than the bound which of two fits is better.
UNSURE = 0.1


def moved(trainer: Trainer, layer: Whitened, good_ess: float, most: int) -> Draws:
    """Move a layer's affine end by the weighted moments of its draws, until that does no good.

    :param trainer: draws, with weights over all rows.
    :param layer: is moved in place.
    :param good_ess: an ESS at which nothing is moved.
    :param most: draws at most.
    :return: fresh draws of the layer as it then is.
    """
    dim = layer.end.input_dim
    num = min(most, max(FEWEST, int(_noise(dim, 1) / AIMED)))
    draws = sound(trainer.sampler.sample(layer, num, LOOK))
    for _ in range(MAX_MOVES):
        if trainer.history.interrupted or not effective(draws.log_weight) < good_ess:
            break
        before = {name: value.clone() for name, value in layer.end.state_dict().items()}
        if not move(layer, draws):
            break
        fresh = sound(trainer.sampler.sample(layer, num, LOOK))
        if not _is_better(fresh.log_weight, draws.log_weight):
            layer.end.load_state_dict(before)
            break
        draws = fresh
    return draws


@torch.no_grad()
def move(layer: Whitened, draws: Draws) -> bool:
    """Give a layer's draws the mean and the covariance of its weighted draws.

    :param layer: its affine end is changed in place.
    :param draws: of the layer.
    :return: whether that could be done.
    """
    end, known = layer.end, draws.log_weight > -torch.inf
    dim = end.input_dim
    if not isinstance(end, LocScale | TriangularAffine) or int(known.sum()) < 2 * WORTH * dim:
        return False
    u, log_weight = end.inverse(draws.z[known])[0].double(), draws.log_weight[known]
    weight = (tempered(log_weight, WORTH * dim) * log_weight).softmax(0)
    mean, mean_to = u.mean(0), weight @ u
    cov, cov_to = u.T.cov().reshape(dim, dim), (u - mean_to).T @ (weight[:, None] * (u - mean_to))
    if isinstance(end, LocScale) or _noise(dim, float(1 / weight.square().sum())) > NOISE:
        cov, cov_to = cov.diagonal().diag(), cov_to.diagonal().diag()
    (root, failed), (root_to, failed_to) = torch.linalg.cholesky_ex(cov), torch.linalg.cholesky_ex(cov_to)
    if failed or failed_to:
        return False
    turn = torch.linalg.solve_triangular(root, root_to, upper=False, left=False)
    _set(end, mean_to - turn @ mean, turn)
    return True


def _set(end: LocScale | TriangularAffine, shift: Tensor, turn: Tensor) -> None:
    """Put an affine map, with a lower triangular matrix, in front of the end."""
    if isinstance(end, LocScale):
        scale = end.log_scale.double().exp()
        end.loc.copy_(end.loc + scale * shift)
        end.log_scale.copy_(end.log_scale + turn.diagonal().log())
        return
    tril = end.scale_tril().double()
    log_scale, lower = log_scale_and_lower(tril @ turn)
    end.loc.copy_(end.loc + tril @ shift)
    end.log_scale.copy_(log_scale)
    end.lower.copy_(lower)


def tempered(log_weight: Tensor, worth: float) -> float:
    """The largest power, at most 1, at which weights are worth so many draws.

    Example::

        >>> tempered(torch.zeros(100), 50)
        1.0
        >>> 0.0 < tempered(torch.arange(100.0), 50) < 0.1
        True
    """

    def is_enough(power: float) -> bool:
        return effective(power * log_weight) * len(log_weight) >= worth

    if is_enough(1.0):
        return 1.0
    low, high = -30.0, 0.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_enough(math.exp(middle)) else (low, middle)
    return math.exp(low)


def _noise(dim: int, worth: float) -> float:
    """What the noise of a mean and a covariance of so many draws costs, in nats."""
    return dim * (dim + 3) / (4 * worth)


def _is_better(now: Tensor, before: Tensor) -> bool:
    """Whether weights tell of a better fit: by their ESS, or where that is too small to be known, by their bound."""
    if is_hopeless(now) or is_hopeless(before):
        return not is_hopeless(now)
    if max(effective(now), effective(before)) < UNSURE:
        return float(trimmed_elbo(now).value) > float(trimmed_elbo(before).value)
    return effective(now) > effective(before)
