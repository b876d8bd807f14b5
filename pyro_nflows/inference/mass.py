"""A cloud of points with their densities, and whether a block of a flow is one to move it by."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.base import Exactness, Layer
from ..numerics import LogDensity

#: Points that are sent through a block at once.
ROWS = 2000
#: Nats that are next to nothing; a block that brings less is not taken.
LEVEL = 1e-3
#: Standard errors that are no noise.
CLEAR = 2.0
#: Nats by which a log-determinant may be off, and the points on which that is looked at.
EXACT, NUM_CHECKED = 0.01, 100


class InexactBlockWarning(UserWarning):
    """A block's solver is too coarse for what it has learnt: its density would be wrong, and it is not taken."""


@dataclass
class Mass:
    """A cloud of points with their log densities.

    :param x: ``(N, D)``.
    :param log_q: ``(N,)``, up to a constant.
    """

    x: Tensor
    log_q: Tensor

    @torch.no_grad()
    def through(self, block: Layer) -> "Mass":
        """The cloud behind a block."""
        parts = []
        for x, log_q in zip(self.x.split(ROWS), self.log_q.split(ROWS)):
            noise = torch.randn(len(x), block.noise_dim).to(x) if block.noise_dim else None
            y, log_weight = block(x, noise)
            parts.append((y, log_q - log_weight))
        return Mass(*(torch.cat(part) for part in zip(*parts)))

    @torch.no_grad()
    def log_ratio(self, target: LogDensity) -> Tensor:
        """:math:`\\log p - \\log q` of each point; the mean is minus the divergence, up to a constant."""
        return torch.cat([target(x) for x in self.x.split(ROWS)]) - self.log_q


def inexactness(block: Layer, x: Tensor) -> float:
    """How far a block's log-weight is from the log-determinant of what it does, on average over some points; 0 for
    layers that do not claim it to be that.

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> inexactness(Planar(2), torch.randn(10, 2)) < 1e-5
        True
    """
    if block.exactness is not Exactness.EXACT or block.noise_dim:
        return 0.0
    x = x[:NUM_CHECKED].detach()
    jacobian, _ = block.jacobian(x)
    return float((block(x)[1] - torch.linalg.slogdet(jacobian)[1]).detach().abs().mean())


def is_better(before: Tensor, after: Tensor) -> bool:
    """Whether a block has lowered the divergence of the same points, clearly and by more than next to nothing.

    Example::

        >>> is_better(torch.zeros(100), torch.full((100,), 0.1)), is_better(torch.zeros(2), torch.tensor([1.0, -1.0]))
        (True, False)
    """
    there, here = after.isfinite(), before.isfinite()
    if there.sum() < here.sum():
        return False
    gain = (after - before)[there & here].double()
    if not len(gain):
        return bool(there.sum() > here.sum())
    error = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    return float(gain.mean()) > max(LEVEL, CLEAR * error)


def mean(values: Tensor) -> float:
    """The mean of those that are finite.

    Example::

        >>> mean(torch.tensor([1.0, 2.0, -torch.inf]))
        1.5
    """
    return float(values[values.isfinite()].double().mean())
