r"""How invertible is a fitted flow on this machine? Round trips, and local Lipschitz constants.

In exact arithmetic a flow's inverse undoes it. In floating point an error grows on the way by as much as the inverse
stretches: a flow that has torn a connected base to cover separate pieces has an inverse that explodes there [1], and
the density that it reports for a given point is then wrong. Draws and their weights are computed forward, and suffer
from the forward constants only.

A continuously indexed flow is one bijection for each value of its indices ``u`` [2]: a trip goes back with the indices
that it came with, and the constants are those of the bijections that the draws took.

**References**

[1] J. Behrmann, P. Vicol, K.-C. Wang, R. Grosse, J.-H. Jacobsen (2021). Understanding and Mitigating Exploding Inverses
in Invertible Neural Networks.

[2] R. Cornish, A. Caterini, G. Deligiannidis, A. Doucet (2020). Relaxing Bijectivity Constraints with Continuously
Indexed Normalising Flows.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..layers import Indexed
from ..layers.base import Chain, Layer


class Lipschitz(NamedTuple):
    """The largest local constants at some points: of the map, and of its inverse."""

    forward: float
    inverse: float


@torch.no_grad()
def round_trip_errors(layer: Layer, x: Tensor, noise: Tensor | None = None) -> Tensor:
    r""":math:`\max_i |f^{-1}(f(x))_i - x_i|`, a row each; NaN where the trip ends nowhere.

    :param layer: with an inverse, whose auxiliary variables, if any, are continuous indices.
    :param x: base points ``(N, D)``.
    :param noise: ``(N, noise_dim)``, if the layer needs it.
    :raises ValueError: for another layer.

    Example::

        >>> from pyro_nflows.layers import Coupling
        >>> bool((round_trip_errors(Coupling(3), torch.randn(10, 3)) < 1e-3).all())
        True
        >>> layer = Indexed(Coupling(3))
        >>> bool((round_trip_errors(layer, torch.randn(10, 3), torch.randn(10, layer.noise_dim)) < 1e-3).all())
        True
    """
    _check_layer("round_trip_errors", layer)
    if not layer.has_inverse:
        raise ValueError(
            f"round_trip_errors: expected a layer with an inverse, {type(layer).__name__} has none; "
            "lipschitz(layer, x) needs only the forward pass"
        )
    y, _ = layer(x, noise)
    back, _ = layer.inverse(y, _returning(layer, x, noise))
    return (back - x).abs().amax(-1)


def _check_layer(who: str, layer: Layer) -> None:
    if not isinstance(layer, Layer):
        raise TypeError(f"{who}: expected a layer, such as guide.layer, got {layer!r}")


def _returning(layer: Layer, x: Tensor, noise: Tensor | None) -> Tensor | None:
    """The noise with which the inverse draws the indices that the forward pass from ``(x, noise)`` drew."""
    if not layer.noise_dim and not layer.inverse_noise_dim:
        return None
    if isinstance(layer, Indexed):
        at = layer.passage(x, cast(Tensor, noise))
        inner = _returning(layer.inner, at.x_prime, at.rest)
        return at.back if inner is None else torch.cat([at.back, inner], -1)
    if isinstance(layer, Chain):
        parts = []
        for part, share in zip(layer, cast(Tensor, noise).split([part.noise_dim for part in layer], -1)):
            parts.append(_returning(part, x, share))
            x, _ = part(x, share if part.noise_dim else None)
        return torch.cat([part for part in parts if part is not None], -1)
    raise ValueError(
        f"round_trip_errors: {type(layer).__name__} has auxiliary variables that are not continuous indices, "
        "and its inverse draws others"
    )


@torch.no_grad()
def lipschitz(layer: Layer, x: Tensor, noise: Tensor | None = None) -> Lipschitz:
    r"""The largest singular value of the Jacobian at any of some points, and the largest of its inverse.

    They bound the constants of the whole map from below. With continuous indices, the Jacobian is that of the bijection
    at the indices drawn; with other auxiliary variables, at fixed noise.

    :param layer: a flow.
    :param x: base points ``(N, D)``.
    :param noise: ``(N, noise_dim)``, if the layer needs it.

    Example::

        >>> from pyro_nflows.layers import LocScale
        >>> found = lipschitz(LocScale(2, init_scale=4.0), torch.randn(10, 2))
        >>> found.forward, found.inverse
        (4.0000, 0.2500)
    """
    _check_layer("lipschitz", layer)
    values = torch.linalg.svdvals(_jacobian(layer, x, noise))
    return Lipschitz(float(values[:, 0].max()), float(values[:, -1].reciprocal().max()))


def _jacobian(layer: Layer, x: Tensor, noise: Tensor | None) -> Tensor:
    """``dy/dx`` at fixed indices, rows in one batch."""
    if isinstance(layer, Indexed):
        at = layer.passage(x, cast(Tensor, noise))
        return _jacobian(layer.inner, at.x_prime, at.rest) * at.stretch[..., None, :]
    if not (isinstance(layer, Chain) and layer.noise_dim):
        return layer.jacobian(x, noise)[0]
    jacobian = torch.eye(layer.input_dim, dtype=x.dtype, device=x.device)
    for part, share in zip(layer, cast(Tensor, noise).split([part.noise_dim for part in layer], -1)):
        share = share if part.noise_dim else None
        jacobian = _jacobian(part, x, share) @ jacobian
        x, _ = part(x, share)
    return jacobian
