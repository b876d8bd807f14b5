r"""Bounds of a flow with auxiliary variables: what its indices cost, and how much of it is slack.

For a draw :math:`z` of a continuously indexed flow, :math:`\log \hat q(z)` of the draw itself gives the
*auxiliary* ELBO. Passing back through the flow :math:`M` times, with fresh indices from the reverse models, gives
:math:`M` unbiased estimates of :math:`q(z)`. Alone they make an estimate whose ELBO is too high on average;
together with the pass that made the draw, a lower bound that tightens with :math:`M`:

.. math:: \mathrm{auxiliary} \le (M{+}1)\text{-sample bound} \le \mathrm{ELBO} \le
    M\text{-sample estimate}.
"""

import math
from typing import NamedTuple

import torch

from ..checks import check_sizes
from ..flows.distribution import FlowDistribution
from ..layers.base import Exactness, Layer
from ..numerics import LogDensity
from ..objectives.draws import base_noise, draw
from ..system.memory import enough_for
from .weights import Estimate


class Bounds(NamedTuple):
    """Three views of the ELBO, in increasing order of their means, each with its standard error."""

    auxiliary: Estimate
    lower: Estimate
    estimate: Estimate


@torch.no_grad()
def elbo_bounds(log_joint: LogDensity, layer: Layer, num_inner: int = 16, num_samples: int = 4000) -> Bounds:
    r"""The auxiliary ELBO, the :math:`(M+1)`-sample bound and the :math:`M`-sample estimate, from the same draws.

    For an exact flow the three are equal.

    :param log_joint: ``z (K, D) -> (K,)``, such as a :class:`~pyro_nflows.model.log_joint.LogJoint`.
    :param layer: the flow, with an inverse.
    :param num_inner: :math:`M`.
    :param num_samples: draws to average over.
    :raises NotImplementedError: if the flow's weight is unbiased in log space only.

    Example::

        >>> from pyro_nflows.layers import Coupling, Indexed
        >>> log_normal = lambda z: -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        >>> bounds = elbo_bounds(log_normal, Indexed(Coupling(2)), num_samples=100)
        >>> [float(b.value) for b in bounds]  # a fresh flow is the standard normal
        [0.0000, 0.0000, 0.0000]

    **References**

    A. Caterini, R. Cornish, D. Sejdinovic, A. Doucet (2021). Variational Inference with Continuously-Indexed
    Normalizing Flows.
    """
    check_sizes("elbo_bounds", num_inner=num_inner, num_samples=num_samples)
    if layer.exactness < Exactness.PROPER:
        raise NotImplementedError("elbo_bounds averages weights, but this flow's are unbiased in log space only")
    like, width = next(layer.parameters()), layer.input_dim
    with enough_for("elbo_bounds", "draws and inverses", (num_samples, num_inner + 1), width, like):
        draws = draw(log_joint, layer, base_noise(layer, num_samples))
        rows = draws.z.expand(num_inner, *draws.z.shape)
        back = FlowDistribution(layer).log_prob(rows)
        alone = back.logsumexp(0) - math.log(num_inner)
        with_own = torch.cat([back, draws.log_q[None]]).logsumexp(0) - math.log(num_inner + 1)
    return Bounds(*(_estimate(draws.log_p - log_q) for log_q in (draws.log_q, with_own, alone)))


def _estimate(values: torch.Tensor) -> Estimate:
    return Estimate(values.mean(), values.std() / len(values) ** 0.5)
