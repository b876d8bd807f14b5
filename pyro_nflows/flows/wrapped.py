"""Flows made of other flows, layer by layer."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..checks import check_functions, check_sizes
from ..layers import ActNorm, Conditional, Indexed, LocScale, LULinear, Mixture, Permutation
from ..layers.base import Chain, Inverse, Layer
from ..transformers import Transformer
from .vectors import Build, default, realnvp, spline


def cif(
    latent_dim: int,
    inner: Build = realnvp,
    index_dim: int = 1,
    hidden_dims: Sequence[int] = (10, 10),
    transformer: Transformer | None = None,
    *,
    skip: bool = False,
    shared: bool = False,
    context_dim: int = 0,
) -> Layer:
    """Each layer of an inner flow continuously indexed; permutations and element-wise ends are left as they are.

    For densities of data, ask for ``skip``: then ``flow.initialize(batch)`` gives every index a start at which it
    matters (:meth:`.Indexed.initialize`). Splines, ``transformer=RationalQuadratic(8, 4.0)``, make indices of several
    modes and a tighter bound: for densities with separate pieces they are worth their price. Given its layer's output,
    an index does not depend on the others; ``shared`` makes one network of all reverse models, for fewer parameters.
    With ``context_dim`` the networks of the indices read a context, and those of the inner flow if it takes one too.

    :param inner: the flow whose layers are indexed, ``latent_dim -> Layer``.
    :param index_dim: dimension of each layer's index.
    :param hidden_dims: widths of the three small networks of an index.
    :param transformer: makes the indices' distributions other than Gaussian; see
        :class:`~pyro_nflows.layers.Indexed`.

    Example::

        >>> cif(4).exactness.name
        'PROPER'
    """
    check_functions("cif", inner=inner)
    plain = (Permutation, LocScale, Mixture, ActNorm, LULinear)
    told: Any = {"context_dim": context_dim} if context_dim and takes_context(inner) else {}
    layers = [
        layer
        if isinstance(layer.layer if isinstance(layer, Inverse) else layer, plain)
        else Indexed(
            layer, index_dim, hidden_dims=hidden_dims, transformer=transformer, skip=skip, context_dim=context_dim
        )
        for layer in _layers(inner(latent_dim, **told))
    ]
    if shared:
        _share_reverse([layer for layer in layers if isinstance(layer, Indexed)])
    return Chain(*layers)


def takes_context(build: Callable[..., Layer]) -> bool:
    """Whether a flow has networks that read a context, if asked for.

    Example::

        >>> from pyro_nflows.flows import iaf, planar
        >>> takes_context(iaf), takes_context(planar)
        (True, False)
    """
    return "context_dim" in inspect.signature(build).parameters


def with_context(build: Callable[..., Layer]) -> Callable[[int, int], Layer]:
    """A flow by its dimension and that of its context: its networks read the context, or move as the context says.

    :param build: ``latent_dim -> Layer``; where it has an option ``context_dim``, that is used.

    Example::

        >>> from pyro_nflows.flows import planar
        >>> with_context(planar)(3, 2).at(torch.ones(2))(torch.zeros(3))[0]
        tensor([0., 0., 0.], grad_fn=<AddBackward0>)
    """
    if takes_context(build):
        return lambda latent_dim, context_dim: build(latent_dim, context_dim=context_dim)
    return lambda latent_dim, context_dim: conditional(latent_dim, context_dim, build, ())


def _share_reverse(layers: Sequence[Indexed]) -> None:
    for layer in layers:
        layer.reverse = layers[0].reverse


def conditional(
    latent_dim: int,
    context_dim: int,
    inner: Build = realnvp,
    hidden_dims: Sequence[int] = (32, 32),
) -> Chain:
    """Each layer of an inner flow made conditional: a network of the context moves all of its parameters.

    :param inner: the flow, ``latent_dim -> Layer``.
    :param hidden_dims: widths of the networks of the context.

    Example::

        >>> import torch
        >>> flow = conditional(3, context_dim=2)
        >>> y, log_weight = flow.at(torch.randn(10, 2))(torch.randn(10, 3))
    """
    check_functions("conditional", inner=inner)
    layers = [
        Conditional(layer, context_dim, hidden_dims=hidden_dims)
        if next(layer.parameters(), None) is not None
        else layer
        for layer in _layers(inner(latent_dim))
    ]
    return Chain(*layers)


def on_mixture(latent_dim: int, inner: Build = default, num_components: int = 2, block_dim: int | None = None) -> Chain:
    """An inner flow on a Gaussian mixture in place of a Gaussian: for several modes.

    :param inner: the flow, ``latent_dim -> Layer``.
    :param num_components: Gaussians of the mixture, or of each block.
    :param block_dim: the coordinates of a block, if they are independent mixtures; by default one block has all. See
        :class:`~pyro_nflows.layers.Mixture`.

    Example::

        >>> on_mixture(4, num_components=3)[0].num_components
        3
    """
    check_functions("on_mixture", inner=inner)
    return Chain(Mixture(latent_dim, num_components, block_dim), *_layers(inner(latent_dim)))


def gaussians(latent_dim: int, num_components: int = 1) -> Layer:
    """A mixture of Gaussians, or nothing that changes a Gaussian: with an affine end, a mixture or a Gaussian.

    Example::

        >>> gaussians(3), gaussians(3, num_components=4)
        (Permutation(3), Mixture(3, 4, block_dim=3))
    """
    check_sizes("gaussians", latent_dim=latent_dim, num_components=num_components)
    return Mixture(latent_dim, num_components) if num_components > 1 else Permutation(torch.arange(latent_dim))


def on_modes(latent_dim: int, inner: Build, num_components: int, block_dim: int) -> Layer:
    """What :class:`~pyro_nflows.VI` fits to modes that it found: :func:`on_mixture`, if there are several.

    In few dimensions, splines of many bins replace the default flow. The arguments are those of :func:`on_mixture`.

    Example::

        >>> type(on_modes(2, default, 9, 2)[1]).__name__
        'Coupling'
    """
    check_functions("on_modes", inner=inner)
    check_sizes("on_modes", latent_dim=latent_dim)
    if inner is default and latent_dim <= 8:
        inner = functools.partial(spline, num_bins=16)
    flow = inner(latent_dim)
    return flow if num_components == 1 else on_mixture(latent_dim, lambda _: flow, num_components, block_dim)


def _layers(flow: Layer) -> list[Layer]:
    return list(flow) if isinstance(flow, Chain) else [flow]
