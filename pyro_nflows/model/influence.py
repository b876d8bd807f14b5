r"""Which latents change how all others are tied: those on which the curvature of a log density depends most.

A length-scale, a variance or an autocorrelation changes the whole Hessian of the latents that it belongs to, however
these are written; one of a hundred latents of a field changes what is near to it. So for each latent :math:`i` its
*influence* is the mean square of :math:`\partial_i\, u^\top H v` over standard normal :math:`u` and :math:`v`, the
squared Frobenius norm of the derivative of the Hessian :math:`H`. A mixed difference of four gradients gives it for all
latents at once.
"""

import torch
from torch import Tensor

from ..numerics import LogDensity

#: Pairs of directions, and the length of a step along them; in unconstrained space a prior's width is about one.
NUM_PAIRS, STEP = 64, 0.1
#: Most latents that may be hubs, and by what factor their influence is above the median.
MAX_HUBS, ABOVE_MEDIAN = 16, 10.0


def influence(log_joint: LogDensity, near: Tensor) -> Tensor:
    """How much the Hessian changes with each latent, ``(D,)``.

    :param log_joint: ``(K, D) -> (K,)``.
    :param near: a point of finite density, ``(D,)``.

    Example::

        >>> log_joint = lambda z: -0.5 * (z[:, 0].exp() * z[:, 1:].square().sum(-1))
        >>> found = influence(log_joint, torch.zeros(100))
        >>> bool(found[0] > 5 * found[1:].max())
        True
    """
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(2, NUM_PAIRS, len(near), generator=generator).to(near)
    at = near + 0.3 * torch.randn(NUM_PAIRS, len(near), generator=generator).to(near)
    total = torch.zeros_like(at)
    for first in (STEP, -STEP):
        for second in (STEP, -STEP):
            total += (1 if first == second else -1) * _gradients(log_joint, at + first * pairs[0] + second * pairs[1])
    squares = (total.double() / (4 * STEP**2)).square()
    good = squares.isfinite().all(-1)
    return squares[good].mean(0) if bool(good.any()) else torch.zeros_like(squares[0])


def influential(log_joint: LogDensity, near: Tensor) -> tuple[int, ...]:
    """The latents with an influence far above that of most, at most :data:`MAX_HUBS`, in their order; none, if none is.

    :param log_joint: ``(K, D) -> (K,)``.
    :param near: a point of finite density, ``(D,)``.

    Example::

        >>> log_joint = lambda z: -0.5 * (z[:, 0].exp() * z[:, 1:].square().sum(-1))
        >>> influential(log_joint, torch.zeros(100))
        (0,)
    """
    found = influence(log_joint, near)
    chosen = (found > ABOVE_MEDIAN * found.median()).nonzero()[:, 0]
    chosen = chosen[found[chosen].argsort(descending=True)[:MAX_HUBS]]
    return tuple(sorted(chosen.tolist()))


def _gradients(log_joint: LogDensity, z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(log_joint(z).sum(), z)[0]
