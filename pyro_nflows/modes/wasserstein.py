r"""Wasserstein gradient flows of Gaussians and of their mixtures: the best Gaussian in tens of steps.

The flow that lowers :math:`\mathrm{KL}(q \,\|\, p)` fastest in the 2-Wasserstein metric carries :math:`q` to the
posterior [1]. Held to Gaussians [2], it is

.. math:: \dot m = \mathrm E_q[\nabla \log p], \qquad
    \dot \Sigma = 2 I + \Sigma\, \mathrm E_q[\nabla^2 \log p] + \mathrm E_q[\nabla^2 \log p]\, \Sigma .

A step of size :math:`h` is forward in the energy :math:`-\log p` and backward in the entropy [3], so that a Gaussian
posterior is a fixed point, and one step of size 1 reaches it where it has unit curvature:

.. math:: m' = m + h b, \quad S = (I + h H)\, \Sigma\, (I + h H), \quad
    \Sigma' = \tfrac12 \bigl(S + 2 h I + [S (S + 4 h I)]^{1/2}\bigr),

with :math:`b = \mathrm E_q[\nabla \log p]` and :math:`H = \mathrm E_q[\nabla^2 \log p]`, which by Stein's identity
needs gradients alone, :math:`H = L^{-\top} \mathrm E[\epsilon\, \nabla \log p(m + L \epsilon)^\top]`. The backward half
is the step of Jordan, Kinderlehrer and Otto (JKO) for the entropy,
:math:`\operatorname{argmin}_q -\mathcal H(q) + W_2^2(q, \cdot) / 2h`.

In a mixture [2] every component moves so, up :math:`\log p - \log q + \log N_k`; its weight rises with its share of the
bound, :math:`\pi_k' \propto \pi_k \exp(h\, \mathrm E_k[\log p - \log q])` (the Fisher-Rao part of the flow).

**References**

[1] R. Jordan, D. Kinderlehrer, F. Otto (1998). The Variational Formulation of the Fokker-Planck Equation.

[2] M. Lambert, S. Chewi, F. Bach, S. Bonnabel, P. Rigollet (2022). Variational Inference via Wasserstein Gradient
Flows.

[3] M. Diao, K. Balasubramanian, S. Chewi, A. Salim (2023). Forward-Backward Gaussian Variational Inference via JKO in
the Bures-Wasserstein Space.
"""

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from ..engine.budget import OutOfTime
from ..engine.density_gradient import DensityGradient
from ..numerics import quasi_normal
from .mixture_em import Clusters, log_densities

#: Most steps.
NUM_STEPS = 60
#: A step is not tried at less than this share of the largest that the curvature allows.
SMALLEST = 1e-3
#: Nats that are next to none for a full step.
LEVEL = 1e-3


class _Slope(NamedTuple):
    """Of one state: its bound, each component's, and the mean gradient and curvature."""

    elbo: float
    gains: Tensor
    gradient: Tensor
    curvature: Tensor


@dataclass
class Descent:
    """Where a flow has been, and whether it has arrived.

    :param clusters: the mixture (of one Gaussian, say) at the start and after each step.
    :param elbos: its bound each time, over the points that the steps rest on.
    :param step_sizes: of the steps.
    :param arrived: whether the last step brought next to nothing.
    """

    clusters: list[Clusters]
    elbos: list[float]
    step_sizes: list[float] = field(default_factory=list)
    arrived: bool = False

    @property
    def end(self) -> Clusters:
        """The mixture after the last step."""
        return self.clusters[-1]


def descend(
    density: DensityGradient,
    start: Clusters,
    noise: Tensor,
    num_steps: int = NUM_STEPS,
    metric: Tensor | None = None,
    step_size: float = 1.0,
    until: float = math.inf,
) -> Descent:
    """Steps of the flow, each of which raises the bound: one that would not is tried at half its size.

    :param density: the log density.
    :param start: where from: weights ``(K,)``, means ``(K, D)`` and lower Cholesky factors ``(K, D, D)``.
    :param noise: :func:`even_points`, the same at every step; as many as leave the covariance well determined.
    :param num_steps: at most; those that are tried and not taken count.
    :param metric: lower factors ``(D, D)`` or ``(K, D, D)`` of the covariances in whose units distance is measured;
        by default each component's own at each step, which makes steps independent of the model's units.
    :param step_size: the largest.
    :param until: when to stop, by ``time.perf_counter``.

    Example::

        >>> density = DensityGradient(lambda z: -0.5 * ((z - 3) / 0.1).square().sum(-1))
        >>> start = Clusters(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
        >>> end = descend(density, start, even_points(64, 2, start.locs)).end
        >>> bool((end.locs - 3).abs().max() < 1e-4), bool((end.scale_trils[0].diagonal() - 0.1).abs().max() < 1e-4)
        (True, True)
    """
    path = Descent([start], [slope(density, start, noise).elbo])
    _go(path, density, noise, num_steps, metric, step_size, until, weighs=False)
    if len(start.weights) > 1 and path.arrived:
        _go(path, density, noise, num_steps - len(path.step_sizes), metric, step_size, until, weighs=True)
    return path


def _go(
    path: Descent,
    density: DensityGradient,
    noise: Tensor,
    num_steps: int,
    metric: Tensor | None,
    step_size: float,
    until: float,
    weighs: bool,
) -> None:
    """Go on along a path, with the components' weights as they are or moving too."""
    at, share, path.arrived = path.end, 1.0, False
    now = slope(density, at, noise)
    for _ in range(num_steps):
        if not math.isfinite(now.elbo) or share < SMALLEST or time.perf_counter() > until:
            return
        units = at.scale_trils if metric is None else metric
        size = share * min(step_size, _largest(now, units))
        ahead = stepped(at, now, size, units, weighs)
        try:
            then = None if ahead is None else slope(density, ahead, noise)
        except OutOfTime:
            return
        if ahead is None or then is None or not then.elbo > now.elbo - LEVEL:
            share /= 2
            continue
        gain = then.elbo - now.elbo
        path.clusters.append(ahead)
        path.elbos.append(then.elbo)
        path.step_sizes.append(size)
        if abs(gain) < LEVEL * size:
            path.arrived = True
            return
        at, now, share = ahead, then, min(1.0, 1.5 * share)


def _largest(at: _Slope, metric: Tensor) -> float:
    """The step after which no direction has turned round: one over the largest curvature downwards."""
    downwards = -metric.mT @ at.curvature @ metric
    if not torch.isfinite(downwards).all():
        return 1.0
    most = float(torch.linalg.eigvalsh(downwards).max())
    return 1 / most if most > 0 else math.inf


def even_points(num: int, dim: int, like: Tensor, seed: int = 0) -> Tensor:
    """Quasi-random standard normal points in pairs, whose mean is 0 and whose covariance the identity."""
    half = quasi_normal(num // 2, dim, seed)
    x = torch.cat([half, -half])
    x = solve_triangular(torch.linalg.cholesky(x.T @ x / len(x)), x.T, upper=False).T
    return x.to(like)


def slope(density: DensityGradient, clusters: Clusters, noise: Tensor) -> _Slope:
    r"""What a step needs: means over each component of :math:`f = \log p - \log q + \log N_k` and its derivatives."""
    weights, locs, scales = clusters
    num, size = len(weights), len(noise)
    z = locs[:, None] + noise @ scales.mT
    values, grads = density.values_and_grads(z.flatten(0, 1), num_rows=size)
    values, grads = values.reshape(num, size), grads.reshape(num, size, -1)
    inside = log_densities(z.flatten(0, 1), clusters).reshape(num, size, num)
    log_q, share = inside.logsumexp(-1), inside.softmax(-1)
    if num > 1:
        # the gradient of log q - log N_k: those of all components by their shares, without its own
        own = -solve_triangular(scales.mT, noise.T.expand(num, -1, -1), upper=True).mT
        away = z[:, :, None] - locs
        each = -torch.cholesky_solve(away.movedim(2, 0).flatten(1, 2).mT, scales).mT.reshape(num, num, size, -1)
        grads = grads - torch.einsum("jnk,kjnd->jnd", share, each) + own
    gains = (values - log_q).mean(-1)
    stein = torch.einsum("ni,knj->kij", noise, grads) / size
    curvature = solve_triangular(scales.mT, stein, upper=True)
    return _Slope(float(weights @ gains), gains, grads.mean(1), 0.5 * (curvature + curvature.mT))


def stepped(clusters: Clusters, at: _Slope, step_size: float, metric: Tensor, weighs: bool) -> Clusters | None:
    """The state a step on; None where its covariance is none.

    :param metric: factors ``(K, D, D)`` of the covariances in whose units distance is measured.
    :param weighs: whether the weights move.
    """
    weights, locs, scales = clusters
    eye = torch.eye(locs.shape[1]).to(locs)
    turn = eye + step_size * metric.mT @ at.curvature @ metric
    moved = turn @ solve_triangular(metric, scales, upper=False)
    half = moved @ moved.mT
    if not torch.isfinite(half).all():
        return None
    values, vectors = torch.linalg.eigh(half)
    values = values.clamp(min=0)
    after = 0.5 * (values + 2 * step_size + (values * (values + 4 * step_size)).sqrt())
    root = metric @ (vectors * after.sqrt()[:, None])
    scale, failed = torch.linalg.cholesky_ex(root @ root.mT)
    if failed.any() or not torch.isfinite(scale).all():
        return None
    ahead = locs + step_size * (metric @ (metric.mT @ at.gradient[..., None]))[..., 0]
    if weighs:
        weights = (weights.log() + step_size * (at.gains - at.gains.max())).softmax(0)
    return Clusters(weights, ahead, scale)
