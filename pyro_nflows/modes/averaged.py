r"""Where the log density has no bound, climb its average over a Gaussian's draws, which has one.

A model with a latent for each observation and noise of unknown scale (a regression with errors in its variables, an
effect for each row) has points at which all observations are met exactly: there the density of the noise grows without
bound as its scale falls, and every ascent ends in a region that has no mass. The ELBO has no such end. Over fixed draws
of a Gaussian with independent coordinates,

.. math:: \hat{\mathcal L}(m, s) = \frac{1}{K} \sum_k \log p(m + e^s \odot \epsilon_k) + \sum_d s_d,

it is an ordinary function of :math:`m` and :math:`s`, for L-BFGS to climb [1]. The noise comes in pairs
:math:`\pm \epsilon`, so that it says nothing of :math:`m` where the density is quadratic.

**References**

[1] R. Giordano, M. Ingram, T. Broderick (2024). Black Box Variational Inference with a Deterministic Objective: Faster,
More Accurate, and Even More Black Box.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..engine.density_gradient import DensityGradient
from ..system.randomness import forked
from .lbfgs import FAR, climbed

#: Draws, half of them the mirror images of the others.
NUM_DRAWS = 32


def averaged_path(
    density: DensityGradient,
    start: Tensor,
    widths: Tensor,
    num_iterations: int = 200,
    until: float = math.inf,
) -> tuple[list[Tensor], Tensor]:
    """Means on the way to the best Gaussian with independent coordinates, the start first, and its widths at the end.

    :param start: its mean at first, ``(D,)``.
    :param widths: its standard deviations at first, ``(D,)``.
    :param until: when to make do with what was found, by ``time.perf_counter``.

    Example::

        >>> density = DensityGradient(lambda z: -0.5 * ((z - 2.0) / 0.5).square().sum(-1))
        >>> path, widths = averaged_path(density, torch.zeros(3), torch.ones(3))
        >>> bool((path[-1] - 2).abs().max() < 1e-2), bool((widths - 0.5).abs().max() < 0.1)
        (True, True)
    """
    dim = len(start)
    with forked(seed=0):
        noise = torch.randn(NUM_DRAWS // 2, dim, device="cpu").to(start)
    noise = torch.cat([noise, -noise])

    def loss(x: Any) -> tuple[float, Any]:
        at = torch.as_tensor(x).to(start)
        loc, scale = at[:dim], at[dim:].exp()
        values, grads = density.values_and_grads(loc + scale * noise, NUM_DRAWS)
        if not torch.isfinite(values).all() or not torch.isfinite(grads).all():
            return FAR, 0.0 * x
        value = values.double().mean() + at[dim:].double().sum()
        slope = torch.cat([grads.mean(0), (grads * noise).mean(0) * scale + 1])
        return -float(value), -slope.double().cpu().numpy()

    first = torch.cat([start, widths.log()]).double().cpu().numpy()
    points = climbed(loss, first, num_iterations, until)
    widths = torch.as_tensor(points[-1][dim:]).exp().to(start) if points else widths
    return [start, *(torch.as_tensor(point[:dim]).to(start) for point in points)], widths
