"""Flows of vectors: ``latent_dim -> Layer``."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..checks import Size, channels, check_sizes
from ..layers import (
    ActNorm,
    Autoregressive,
    Continuous,
    Coupling,
    LocScale,
    LogDet,
    LULinear,
    Permutation,
    Planar,
    Radial,
    Residual,
    Solver,
    Trace,
)
from ..layers.base import Chain, Inverse, Layer
from ..transformers import Affine, RationalQuadratic, Shift, Transformer

#: A flow's builder: the latent dimension to a layer.
Build = Callable[[int], Layer]


def planar(latent_dim: int, num_layers: int = 16) -> Chain:
    """Planar layers.

    Example::

        >>> len(planar(5, num_layers=4))
        4
    """
    check_sizes("planar", num_layers=num_layers)
    return Chain(*(Planar(latent_dim) for _ in range(num_layers)))


def radial(latent_dim: int, num_layers: int = 16) -> Chain:
    """Radial layers.

    Example::

        >>> len(radial(5, num_layers=4))
        4
    """
    check_sizes("radial", num_layers=num_layers)
    return Chain(*(Radial(latent_dim) for _ in range(num_layers)))


def iaf(
    latent_dim: int,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (32, 32),
    transformer: Transformer = Affine(),
    context_dim: int = 0,
) -> Chain:
    """Inverse autoregressive layers, the order of the coordinates reversed at each.

    Example::

        >>> len(iaf(5, num_layers=2))
        2
    """
    check_sizes("iaf", num_layers=num_layers)
    return Chain(
        *(
            Autoregressive(
                latent_dim, transformer, reverse=bool(i % 2), hidden_dims=hidden_dims, context_dim=context_dim
            )
            for i in range(num_layers)
        )
    )


def maf(
    latent_dim: int,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (32, 32),
    transformer: Transformer = Affine(),
    context_dim: int = 0,
) -> Chain:
    """Masked autoregressive layers: the inverse of :func:`iaf`, a density is one pass, a draw ``latent_dim`` steps.

    Example::

        >>> type(maf(5, num_layers=2)[0]).__name__
        'Inverse'
    """
    return Chain(*(Inverse(layer) for layer in iaf(latent_dim, num_layers, hidden_dims, transformer, context_dim)))


def spline_autoregressive(
    latent_dim: int,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (32, 32),
    num_bins: int = 8,
    bound: float = 5.0,
    context_dim: int = 0,
) -> Chain:
    """A masked autoregressive flow of rational-quadratic splines, the identity outside ``[-bound, bound]``.

    Example::

        >>> y, log_weight = spline_autoregressive(3)(torch.randn(10, 3))
    """
    return maf(latent_dim, num_layers, hidden_dims, RationalQuadratic(num_bins, bound), context_dim)


def couplings(
    latent_dim: int,
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (32, 32),
    transformer: Transformer = Affine(),
    context_dim: int = 0,
) -> Chain:
    """Couplings that transform the second and the first half in turn; a shuffle after each pair.

    The shuffles are fixed (they depend on ``latent_dim`` only), and a last one undoes them all, so that the whole
    still starts at the identity.

    Example::

        >>> couplings(2, num_layers=2)(torch.ones(2))[0].allclose(torch.ones(2), atol=1e-4)
        True
    """
    check_sizes("couplings", num_layers=num_layers)
    channels("couplings", latent_dim)
    coupling = functools.partial(Coupling, latent_dim, transformer, hidden_dims=hidden_dims, context_dim=context_dim)
    shuffles = _shuffles(latent_dim, num_layers)
    layers: list[Layer] = []
    for i in range(num_layers):
        layers.append(coupling(flip=bool(i % 2)))
        if i in shuffles:
            layers.append(Permutation(shuffles[i]))
    return Chain(*layers)


def _shuffles(num_channels: int, num_layers: int) -> dict[int, Tensor]:
    """After which layers to shuffle the channels, and how: after each pair, and a last time that undoes them all."""
    if num_channels < 3 or num_layers < 3:
        return {}
    generator = torch.Generator().manual_seed(num_channels)
    after = range(1, num_layers - 1, 2)
    shuffles = {i: torch.randperm(num_channels, generator=generator, device="cpu") for i in after}
    order = functools.reduce(
        lambda order, shuffle: order[shuffle], shuffles.values(), torch.arange(num_channels, device="cpu")
    )
    return {**shuffles, num_layers - 1: order.argsort()}


def realnvp(latent_dim: int, num_layers: int = 8, hidden_dims: Sequence[int] = (32, 32), context_dim: int = 0) -> Chain:
    """Affine couplings.

    Example::

        >>> realnvp(4).exactness.name
        'EXACT'
    """
    return couplings(latent_dim, num_layers, hidden_dims, Affine(), context_dim)


def nice(latent_dim: int, num_layers: int = 8, hidden_dims: Sequence[int] = (32, 32), context_dim: int = 0) -> Chain:
    """Additive couplings, then one diagonal scaling.

    Example::

        >>> type(nice(4)[-1]).__name__
        'LocScale'
    """
    return Chain(*couplings(latent_dim, num_layers, hidden_dims, Shift(), context_dim), LocScale(latent_dim))


def spline(
    latent_dim: int,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (32, 32),
    num_bins: int = 8,
    bound: float = 5.0,
    context_dim: int = 0,
    *,
    inverted: bool = False,
) -> Chain:
    """Rational-quadratic spline couplings, the identity outside ``[-bound, bound]``.

    The splines go from the base to the data. ``inverted`` turns the flow around, so that they go from the data to the
    base: the way to train on data, where bins of equal width then lie on the data's own axes.

    Example::

        >>> spline(4)(torch.randn(10, 4))[1].abs().max().item() < 1e-3
        True
    """
    flow = couplings(latent_dim, num_layers, hidden_dims, RationalQuadratic(num_bins, bound), context_dim)
    return Chain(*(Inverse(layer) for layer in reversed(list(flow)))) if inverted else flow


def glow(
    latent_dim: int,
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (32, 32),
    transformer: Transformer = Affine(),
    context_dim: int = 0,
) -> Chain:
    """Glow for vectors: a coupling, an invertible linear layer and an :class:`ActNorm` in turn.

    Before training on data, ``flow.initialize(batch)`` gives the :class:`ActNorm` layers their start.

    Example::

        >>> len(glow(5, num_layers=2))
        6
    """
    check_sizes("glow", num_layers=num_layers)
    return glow_steps(latent_dim, num_layers, hidden_dims, transformer, context_dim)


def glow_steps(
    size: Size, num_layers: int, hidden_dims: Sequence[int], transformer: Transformer, context_dim: int
) -> Chain:
    """The steps of Glow; the channels are shuffled as in :func:`couplings`. A density multiplies, a draw solves."""
    num_channels, _ = channels("glow", size)
    shuffles = _shuffles(num_channels, num_layers)
    layers: list[Layer] = []
    for i in range(num_layers):
        flip = bool(i % 2)
        layers.append(Coupling(size, transformer, flip=flip, hidden_dims=hidden_dims, context_dim=context_dim))
        shuffle = shuffles[i].argsort() if i in shuffles else None
        layers += [Inverse(LULinear(size, shuffle)), ActNorm(size)]
    return Chain(*layers)


def residual(
    latent_dim: int,
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (32, 32),
    lipschitz: float = 0.9,
    log_det: LogDet | str = LogDet.EXACT,
    context_dim: int = 0,
    *,
    inverted: bool = False,
) -> Chain:
    """Residual layers, an :class:`ActNorm` behind each, for a contraction cannot stretch by much.

    Drawing is one pass, and the density of a given point iterates. ``inverted`` turns each layer around, so that
    densities are one pass: the way to train on data.

    :param lipschitz: bound of each contraction's Lipschitz constant, in (0, 1).
    :param log_det: how log-determinants are computed: :class:`~pyro_nflows.layers.LogDet` or its value.

    Example::

        >>> len(residual(3, num_layers=2))
        4
    """
    check_sizes("residual", num_layers=num_layers)
    layers: list[Layer] = []
    for _ in range(num_layers):
        layer = Residual(
            latent_dim, hidden_dims=hidden_dims, lipschitz=lipschitz, log_det=log_det, context_dim=context_dim
        )
        layers += [Inverse(layer) if inverted else layer, ActNorm(latent_dim)]
    return Chain(*layers)


def cnf(
    latent_dim: int,
    num_layers: int = 1,
    hidden_dims: Sequence[int] = (32, 32),
    num_steps: int = 8,
    trace: Trace | str = Trace.EXACT,
    solver: Solver | str = Solver.RK4,
    context_dim: int = 0,
) -> Chain:
    """Continuous layers (FFJORD): each follows a vector field of its own for one unit of time.

    :param num_steps: of the solver, in each layer.
    :param trace: of the field's Jacobian, exact or estimated: :class:`~pyro_nflows.layers.Trace` or its value.
    :param solver: :class:`~pyro_nflows.layers.Solver` or its value.

    Example::

        >>> y, log_weight = cnf(3)(torch.randn(10, 3))
    """
    check_sizes("cnf", num_layers=num_layers)
    layer = functools.partial(Continuous, trace=trace, solver=solver, num_steps=num_steps, context_dim=context_dim)
    return Chain(*(layer(latent_dim, hidden_dims=hidden_dims) for _ in range(num_layers)))


def default(latent_dim: int) -> Chain:
    """What ``AutoFlow`` puts in front of its affine end: affine couplings; splines for one coordinate.

    Example::

        >>> len(default(2))
        8
    """
    check_sizes("default", latent_dim=latent_dim)
    return realnvp(latent_dim) if latent_dim > 1 else spline(latent_dim, num_layers=2)
