"""What layers are called with: shapes, checked, and points spread over the rows of a context."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import numbers_in
from ..model.elimination import Elimination
from ..model.hierarchy import Hierarchy


def checked(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's ``forward`` or ``inverse`` with its arguments' shapes checked."""
    point = "x" if name == "forward" else "y"

    @functools.wraps(method)
    def wrapped(self: Any, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        dim = self.input_dim if name == "forward" else self.output_dim
        noise_dim = self.noise_dim if name == "forward" else self.inverse_noise_dim
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            kind = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{type(self).__name__}.{name}: expected {point} to be a floating-point tensor, got {kind}")
        if x.shape[-1:] != (dim,):
            raise ValueError(
                f"{type(self).__name__}.{name}: expected {point} of shape (..., {dim}), got {tuple(x.shape)}"
            )
        if self.batch_shape:
            x, noise = _spread(self, name, x, noise)
        if noise is None and noise_dim and name == "inverse":
            noise = torch.randn(*x.shape[:-1], noise_dim, dtype=x.dtype, device=x.device)
        if noise_dim and (noise is None or noise.shape[-1] != noise_dim):
            got = "None" if noise is None else tuple(noise.shape)
            raise ValueError(
                f"{type(self).__name__}.{name}: expected noise of shape (..., {noise_dim}), got {got}; "
                f"pass torch.randn(*{point}.shape[:-1], {noise_dim})"
            )
        return method(self, x, noise) if noise_dim else method(self, x)

    return wrapped


def _spread(layer: Any, name: str, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A point and its noise in the batch that they and the layer's context have together."""
    try:
        batch_shape = torch.broadcast_shapes(x.shape[:-1], layer.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"{type(layer).__name__}.{name}: got a point of batch shape {tuple(x.shape[:-1])}, which does not "
            f"broadcast with the context's, {tuple(layer.batch_shape)}"
        ) from None
    spread = x.expand(*batch_shape, -1)
    return spread, noise if noise is None else noise.expand(*batch_shape, -1)


def need_layers(who: str, *parts: Any) -> None:
    """Raise an error unless what a container is made of are layers, and there is one.

    :raises TypeError: if a part is no layer.
    :raises ValueError: if there are none.

    Example::

        >>> need_layers("Chain", [1])
        Traceback (most recent call last):
        TypeError: Chain: expected layers, got list; layers of a list are Chain(*layers)
    """
    if not parts:
        raise ValueError(f"{who}: expected at least one layer, got none")
    for part in parts:
        if not isinstance(part, nn.Module) or not hasattr(part, "input_dim"):
            hint = f"; layers of a list are {who}(*layers)" if isinstance(part, list | tuple) else ""
            raise TypeError(f"{who}: expected layers, got {type(part).__name__}{hint}")


def need_transformer(who: str, transformer: Any) -> None:
    """Raise a TypeError unless this is an element-wise map, such as those of :mod:`pyro_nflows.transformers`.

    Example::

        >>> need_transformer("Coupling", "affine")
        Traceback (most recent call last):
        TypeError: Coupling: expected transformer to be an object such as Affine() or RationalQuadratic(), got 'affine'
    """
    if not all(hasattr(transformer, part) for part in ("num_params", "forward", "inverse")):
        raise TypeError(
            f"{who}: expected transformer to be an object such as Affine() or RationalQuadratic(), got {transformer!r}"
        )


def need_hierarchy(who: str, hierarchy: Any) -> Hierarchy:
    """The plates of a model, unless it is something else.

    Example::

        >>> need_hierarchy("on_plates", 3)
        Traceback (most recent call last):
        TypeError: on_plates: expected hierarchy to be a model.hierarchy.Hierarchy, as guide.hierarchy is, got 3
    """
    if not isinstance(hierarchy, Hierarchy):
        raise TypeError(
            f"{who}: expected hierarchy to be a model.hierarchy.Hierarchy, as guide.hierarchy is, got {hierarchy!r}"
        )
    return hierarchy


def need_elimination(who: str, elimination: Any) -> Elimination:
    """An order of elimination, unless it is something else.

    Example::

        >>> need_elimination("on_hubs", 3)
        Traceback (most recent call last):
        TypeError: on_hubs: expected elimination to be a model.elimination.Elimination, as Elimination.of(...) is, got 3
    """
    if not isinstance(elimination, Elimination):
        raise TypeError(
            f"{who}: expected elimination to be a model.elimination.Elimination, as Elimination.of(...) is, "
            f"got {elimination!r}"
        )
    return elimination


def expanded(start: Tensor | float, dim: int) -> Tensor:
    """Where a layer starts, from a number for all coordinates or a tensor, on whose device the layer is then.

    :raises ValueError: if it is of another shape.

    Example::

        >>> expanded(2.0, 3), expanded(torch.tensor([1.0, 2.0]), 2)
        (tensor([2., 2., 2.]), tensor([1., 2.]))
    """
    given = numbers_in("a layer", "init_loc", start).detach()
    if not given.dim():
        return torch.full((dim,), float(given))
    if given.shape not in ((dim,), (1,)):
        raise ValueError(
            f"a layer: init_loc must be a number or a tensor of shape ({dim},), got shape {tuple(given.shape)}"
        )
    return torch.zeros(dim, device=given.device) + given
