r"""What is maximised and how its gradient is estimated, apart from how Pyro calls it.

The gradient estimators are described in :mod:`pyro_nflows.inference.elbo`.
"""

import enum
from collections.abc import Hashable
from typing import cast

import torch
from torch import Tensor

from ..layers.base import Layer
from ..numerics import LogDensity
from .draws import Draws, draw, draw_scored


class Gradient(str, enum.Enum):
    """Gradient estimators; see the module's page."""

    TOTAL = "total"
    PATH = "path"
    DREG = "dreg"


#: The log-weights of all particles, and which of them some draws are.
Among = tuple[Tensor, slice]


class Objective:
    """A bound of the log evidence as a function of log-weights; this one is the ELBO."""

    num_particles: int = 1
    #: Where :meth:`mixed` begins; for objectives that mix nothing it means nothing.
    share: float | Tensor = 0.0

    @property
    def key(self) -> Hashable:
        """What a step depends on: objectives of equal keys can share a recording of it.

        These are the class and its settings that are plain values, but for the share, which may change from step to
        step. A subclass that holds anything else adds it.

        Example::

            >>> Objective().key == Objective().key
            True
        """
        settings = {name: value for name, value in vars(self).items() if isinstance(value, int | float | str)}
        return type(self), frozenset((name, value) for name, value in settings.items() if name != "share")

    def bound(self, log_weight: Tensor) -> Tensor:
        """The estimate of the bound from one log-weight a particle."""
        return log_weight.mean()

    def coefficients(self, log_weight: Tensor, gradient: Gradient) -> tuple[Tensor, Tensor]:
        """What multiplies each particle's path gradient, and its gradient at a fixed draw."""
        even = torch.full_like(log_weight, 1 / len(log_weight))
        return even, even

    def weighs(self, share: Tensor) -> bool:
        """Whether a particle's part in the gradient depends on the weights of the others.

        :param share: see :meth:`mixed`.
        """
        ways = (Objective.coefficients, Objective.bound, Objective.surrogate)
        return any(getattr(type(self), way.__name__) is not way for way in ways)

    def surrogate(self, draws: Draws, gradient: Gradient, among: Among | None = None) -> Tensor:
        """A scalar whose gradient is the estimator's; its value means nothing.

        A draw whose weight is zero or no number has no part in it.

        :param among: the log-weights of all particles, and which of them these draws are; by default, these are all.
        """
        good = draws.log_weight.detach().isfinite()
        if among is None:
            weights = self.coefficients(torch.where(good, draws.log_weight.detach(), -torch.inf), gradient)
        else:
            everyone, part = torch.where(among[0].isfinite(), among[0], -torch.inf), among[1]
            weights = cast(tuple[Tensor, Tensor], tuple(w[part] for w in self.coefficients(everyone, gradient)))
        even = [torch.where(good, weight, 0.0) for weight in weights]
        if gradient is Gradient.TOTAL:
            return even[1] @ torch.where(good, draws.log_weight, 0.0)
        along, direct = draws.path()
        return even[0] @ along.nan_to_num() + even[1] @ torch.where(good, direct, 0.0)

    def draws(self, log_joint: LogDensity, layer: Layer, noise: Tensor, gradient: Gradient) -> Draws:
        """The draws that this objective's estimator needs."""
        if gradient is Gradient.TOTAL:
            return draw(log_joint, layer, noise)
        return draw_scored(log_joint, layer, noise, reverse=gradient is Gradient.DREG)

    def mixed(self, share: Tensor) -> "Objective":
        """The objective at a share that may change from step to step; only some have one."""
        return self

    def check_layer(self, layer: Layer) -> None:
        """Refuse a flow on which this objective would be wrong."""
