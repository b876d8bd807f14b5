r"""Flows by name: functions ``latent_dim -> Layer``, each starting at the identity.

A recipe is only a composition; write your own and hand it to ``AutoFlow(model, build)``. Where there is a
``context_dim``, the networks read a context too: ``realnvp(3, context_dim=2).at(context)`` is the flow for its rows.
"""

import functools
from collections.abc import Callable, Sequence

import torch

from .layer import Chain, Layer
from .layers import Autoregressive, Conditional, Coupling, Indexed, LocScale, Mixture, Permutation, Planar, Radial
from .nets import check_sizes
from .transformers import Affine, RationalQuadratic, Shift, Transformer

#: A recipe: the latent dimension to a layer.
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

        >>> couplings(2, num_layers=2)(torch.ones(2))[0].allclose(torch.ones(2))
        True
    """
    check_sizes("couplings", num_layers=num_layers)
    coupling = functools.partial(Coupling, latent_dim, transformer, hidden_dims=hidden_dims, context_dim=context_dim)
    generator = torch.Generator().manual_seed(latent_dim)
    order = torch.arange(latent_dim)
    layers: list[Layer] = []
    for i in range(num_layers):
        if latent_dim > 2 and i and i % 2 == 0:
            shuffle = torch.randperm(latent_dim, generator=generator)
            layers.append(Permutation(shuffle))
            order = order[shuffle]
        layers.append(coupling(flip=bool(i % 2)))
    if latent_dim > 2 and num_layers > 2:
        layers.append(Permutation(order.argsort()))
    return Chain(*layers)


def realnvp(latent_dim: int, num_layers: int = 8, hidden_dims: Sequence[int] = (32, 32), context_dim: int = 0) -> Chain:
    """Affine couplings.

    Example::

        >>> realnvp(4).grade.name
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
) -> Chain:
    """Rational-quadratic spline couplings, linear outside ``[-bound, bound]``.

    Example::

        >>> spline(4)(torch.randn(10, 4))[1].abs().max().item() < 1e-5
        True
    """
    return couplings(latent_dim, num_layers, hidden_dims, RationalQuadratic(num_bins, bound), context_dim)


def default(latent_dim: int) -> Chain:
    """What ``AutoFlow`` puts in front of its affine end: affine couplings; splines for one coordinate.

    Example::

        >>> len(default(2))
        8
    """
    return realnvp(latent_dim) if latent_dim > 1 else spline(latent_dim, num_layers=2)


def cif(
    latent_dim: int,
    inner: Build = realnvp,
    index_dim: int = 1,
    hidden_dims: Sequence[int] = (10, 10),
) -> Layer:
    """Each layer of an inner flow continuously indexed; permutations and element-wise ends are left as they are.

    Example::

        >>> cif(4).grade.name
        'PROPER'
    """
    plain = (Permutation, LocScale, Mixture)
    layers = [
        layer if isinstance(layer, plain) else Indexed(layer, index_dim, hidden_dims=hidden_dims)
        for layer in _layers(inner(latent_dim))
    ]
    return Chain(*layers)


def on_mixture(latent_dim: int, inner: Build = default, num_components: int = 2, block_dim: int | None = None) -> Chain:
    """An inner flow on a Gaussian mixture in place of a Gaussian: for several modes.

    Example::

        >>> on_mixture(4, num_components=3)[0].num_components
        3
    """
    flow = inner(latent_dim)
    layers = flow if isinstance(flow, Chain) else [flow]
    return Chain(Mixture(latent_dim, num_components, block_dim), *layers)


def on_modes(latent_dim: int, inner: Build, num_components: int, block_dim: int) -> Layer:
    """What :class:`~pyro_nflows.VI` fits to modes that it found: :func:`on_mixture`, if there are several.

    In few dimensions, the default flow gives way to splines of many bins.

    Example::

        >>> type(on_modes(2, default, 9, 2)[1]).__name__
        'Coupling'
    """
    if inner is default and latent_dim <= 8:
        inner = functools.partial(spline, num_bins=16)
    flow = inner(latent_dim)
    return flow if num_components == 1 else on_mixture(latent_dim, lambda _: flow, num_components, block_dim)


def conditional(
    latent_dim: int,
    context_dim: int,
    inner: Build = realnvp,
    hidden_dims: Sequence[int] = (32, 32),
) -> Chain:
    """Each layer of an inner flow made conditional: a network of the context moves all of its parameters.

    Example::

        >>> flow = conditional(3, context_dim=2, inner=planar)
        >>> y, log_weight = flow.at(torch.randn(10, 2))(torch.randn(10, 3))
    """
    layers = [
        Conditional(layer, context_dim, hidden_dims=hidden_dims)
        if next(layer.parameters(), None) is not None
        else layer
        for layer in _layers(inner(latent_dim))
    ]
    return Chain(*layers)


def _layers(flow: Layer) -> list[Layer]:
    return list(flow) if isinstance(flow, Chain) else [flow]
