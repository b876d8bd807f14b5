r"""How invertible is a fitted flow on this machine? Round trips, and local Lipschitz constants.

In exact arithmetic a flow's inverse undoes it. In floating point an error grows on the way by as much as the inverse
stretches: a flow that has torn a connected base to cover separate pieces has an inverse that explodes there [1], and
the density that it reports for a given point is then wrong. Draws and their weights are computed forward, and suffer
from the forward constants only.

**References**

[1] J. Behrmann, P. Vicol, K.-C. Wang, R. Grosse, J.-H. Jacobsen (2021). Understanding and Mitigating Exploding Inverses
in Invertible Neural Networks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .layer import Layer


class Lipschitz(NamedTuple):
    """The largest local constants at some points: of the map, and of its inverse."""

    forward: float
    inverse: float


@torch.no_grad()
def round_trip_errors(layer: Layer, x: Tensor) -> Tensor:
    r""":math:`\max_i |f^{-1}(f(x))_i - x_i|`, a row each; NaN where the trip ends nowhere.

    :param layer: with an inverse, and without auxiliary variables (whose inverse is random).
    :param x: base points ``(N, D)``.
    :raises ValueError: for another layer.

    Example::

        >>> from pyro_nflows.layers import Coupling
        >>> bool((round_trip_errors(Coupling(3), torch.randn(10, 3)) < 1e-5).all())
        True
    """
    if layer.noise_dim or not layer.has_inverse:
        reason = "has auxiliary variables" if layer.noise_dim else "has no inverse"
        raise ValueError(
            f"round_trip_errors: expected a bijective layer with an inverse, {type(layer).__name__} {reason}"
        )
    y, _ = layer(x)
    back, _ = layer.inverse(y)
    return (back - x).abs().amax(-1)


@torch.no_grad()
def lipschitz(layer: Layer, x: Tensor, noise: Tensor | None = None) -> Lipschitz:
    r"""The largest singular value of the Jacobian at any of some points, and the largest of its inverse.

    They bound the constants of the whole map from below. With auxiliary variables, the Jacobian is that at fixed noise.

    :param layer: a flow.
    :param x: base points ``(N, D)``.
    :param noise: ``(N, noise_dim)``, if the layer needs it.

    Example::

        >>> from pyro_nflows.layers import LocScale
        >>> found = lipschitz(LocScale(2, init_scale=4.0), torch.randn(10, 2))
        >>> round(found.forward, 4), round(found.inverse, 4)
        (4.0, 0.25)
    """
    values = torch.linalg.svdvals(layer.jacobian(x, noise)[0])
    return Lipschitz(float(values[:, 0].max()), float(values[:, -1].reciprocal().max()))
