r"""Draws of a flow of hubs, whose others are drawn anew from what curvature says of them there.

What a flow's layers say of the others given the hubs is regressed on these, and is not exact. For a draw of the hubs
:math:`g` alone the Gaussian :math:`N(m(g), \Lambda(g)^{-1})` of the others can be had itself, by some products with the
Hessian (:mod:`~pyro_nflows.modes.conditional_modes`): so the others are drawn from that, and

.. math:: \log w = \log p(x, g, z) - \log q(g) - \log N(z; m(g), \Lambda(g)^{-1}) .

The weights then tell how good the flow of the hubs is, which has few dimensions, and how far the others are from a
Gaussian, of whatever shape their dependence on the hubs is. Such a draw costs as much as ten to a hundred of the
flow's.
"""

from typing import cast

import torch
from torch import Tensor

from ..diagnostics.moves import Redrawn
from ..diagnostics.verdict import ENOUGH
from ..diagnostics.worth import HALF, effective, is_nearly_equal, k_limit, smoothed_worth, tail_index
from ..engine import DensityGradient, Trainer
from ..flows.whitened import Whitened
from ..layers import SparseAffine
from ..modes.conditional_modes import ConditionalModes
from ..modes.sparse_curvature import log_widths
from ..numerics import LogDensity, quasi_normal, standard_normal_log_prob
from ..objectives.draws import Draws, concatenate, even_noise
from .fitted import sound, weighed
from .hub_layers import Parts

#: Draws, and those that are looked at first.
NUM_SAMPLES, FIRST_LOOK = 4000, 500
#: Values of the hubs whose matrices are in memory at a time.
NUM_AT_ONCE = 500
#: The share of the ESS that is asked for which the first ones have to show.
HOPEFUL = 0.75


@torch.no_grad()
def redrawn(log_joint: LogDensity, density: DensityGradient, layer: Whitened, num_samples: int) -> Draws:
    """Draws of a layer with all but the hubs drawn anew.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param density: the same, with its derivatives.
    :param layer: a flow of hubs, and of the others given them.
    :param num_samples: how many.
    :raises ValueError: if the layer is of another kind.
    """
    parts = Parts.of(layer)
    if parts is None:
        raise ValueError(f"redrawn: expected a flow of hubs and of the others given them, got {layer}")
    noise = even_noise(layer, num_samples)
    return concatenate([_some(log_joint, density, layer, parts, some) for some in noise.split(NUM_AT_ONCE)])


def _some(log_joint: LogDensity, density: DensityGradient, layer: Whitened, parts: Parts, noise: Tensor) -> Draws:
    """Draws at points of the base; in double precision, but for what the model computes."""
    end, pattern = parts.end, parts.end.elimination.pattern
    hubs, others = pattern.hubs, pattern.others
    about, x = noise.clone(), noise[:, others].double().cpu()
    about[:, others] = 0.0
    z, _ = layer(about)  # the hubs as they are drawn, and the others at about their mean
    modes = ConditionalModes(density, pattern, parts.among, lambda _: z)
    given = modes.at(z[:, hubs].double().cpu())
    given = modes.at_means(given, quasi_normal(len(x), x.shape[1], 0), torch.ones(len(x), device="cpu"))
    u = noise[:, hubs]
    log_hubs = standard_normal_log_prob(u) - parts.hubs(u)[1] - end.log_scale[hubs].sum()
    log_others = standard_normal_log_prob(x) - log_widths(parts.among, given.nodes).sum(-1)
    z = z.clone()
    z[:, others] = modes.draws(given, x).to(z)
    # Where no mode was found, the Gaussian is of the last point: it is as good as its weight says.
    return Draws(z, log_joint(z).double(), log_hubs.double() + log_others.to(z.device))


def good_redrawn(trainer: Trainer, layer: Whitened, ess: float) -> Draws | None:
    """Such draws, if a few have weights about as even as a fit may end with, and then all of them have.

    :param trainer: has the model.
    :param layer: a flow of hubs, and of the others given them.
    :param ess: that is asked for.
    """
    first = redrawn(trainer.judged, trainer.density, layer, FIRST_LOOK)
    if not smoothed_worth(sound(first).log_weight) >= HOPEFUL * ess:
        return None
    draws = concatenate([first, redrawn(trainer.judged, trainer.density, layer, NUM_SAMPLES - FIRST_LOOK)])
    fit = weighed(layer, draws)
    return draws if not fit.has_gaps and _are_even(fit.draws.log_weight, ess) else None


def _are_even(log_weight: Tensor, least: float) -> bool:
    """Whether weights are good enough for a fit to end with."""
    ess = effective(log_weight)
    if not (smoothed_worth(log_weight) >= least and ess >= min(HALF, least) and ess * len(log_weight) >= ENOUGH):
        return False
    return tail_index(log_weight) < k_limit(len(log_weight), 0.0) or is_nearly_equal(log_weight, ess)


def told_of(layer: Whitened, own: Draws) -> Redrawn:
    """What is said of draws that were drawn anew.

    :param layer: a flow of hubs, and of the others given them.
    :param own: its own draws.
    """
    pattern = cast(SparseAffine, layer.end).elimination.pattern
    return Redrawn(len(pattern.hubs), len(pattern.others), effective(own.log_weight), tail_index(own.log_weight))
