"""What layers are called with and what they give: shapes, checked, and points spread over the rows of a context."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_sizes, numbers_in
from ..model.data_checks import MIXED
from ..model.elimination import Elimination
from ..model.hierarchy import Hierarchy
from ..system.shapes import broadcast_shapes


class MixedDtypes(TypeError, RuntimeError):
    """A point, its noise or a context is of another precision than the layer's parameters, and torch refuses that."""


def checked(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's ``forward`` or ``inverse``, with shapes checked of what it is given and of what it gives."""
    point, result = ("x", "y") if name == "forward" else ("y", "x")

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
        if noise_dim and not (isinstance(noise, Tensor) and noise.shape == (*x.shape[:-1], noise_dim)):
            expected = ", ".join(map(str, (*x.shape[:-1], noise_dim)))
            raise ValueError(
                f"{type(self).__name__}.{name}: expected noise of shape ({expected}), got {_shape(noise)}; "
                f"pass torch.randn(*{point}.shape[:-1], {noise_dim})"
            )
        try:
            found = method(self, x, noise) if noise_dim else method(self, x)
        except RuntimeError as error:
            reason = _mixed(self, f"{type(self).__name__}.{name}", {point: x, "noise": noise}, str(error))
            if reason is None or isinstance(error, MixedDtypes):
                raise
            raise reason from error
        if not _is_pair(found, x.shape[:-1], self.output_dim if name == "forward" else self.input_dim):
            raise _other_result(self, name, result, x.shape[:-1], found)
        return found

    return wrapped


def _is_pair(found: Any, batch_shape: torch.Size, dim: int) -> bool:
    if not isinstance(found, tuple) or len(found) != 2:
        return False
    point, log_weight = found
    if not isinstance(point, Tensor) or not isinstance(log_weight, Tensor):
        return False
    return point.shape == (*batch_shape, dim) and log_weight.shape == batch_shape


def _other_result(layer: Any, name: str, result: str, batch_shape: torch.Size, found: Any) -> Exception:
    """What to say of a result that is no point with its log-weight.

    A log-weight of another shape is broadcast, and every density after it is wrong.
    """
    dim = layer.output_dim if name == "forward" else layer.input_dim
    who, weights = f"{type(layer).__name__}.{name}", tuple(batch_shape)
    pair = f"({result}, log_weight), tensors of shapes {(*batch_shape, dim)} and {weights}"
    if not isinstance(found, tuple) or len(found) != 2:
        return TypeError(f"{who}: expected the pair {pair}, got {_shape(found)}; return both, as in layers.Layer")
    remedy = "log_weight is one number a row: sum over the last dimension, or expand it to the batch"
    if not isinstance(found[0], Tensor) or found[0].shape != (*batch_shape, dim):
        remedy = (
            f"{result} has a coordinate for each of the layer's {'output_dim' if name == 'forward' else 'input_dim'}"
        )
    return ValueError(f"{who}: expected the pair {pair}, got {_shape(found[0])} and {_shape(found[1])}; {remedy}")


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _mixed(layer: nn.Module, who: str, given: dict[str, Tensor | None], error: str) -> Exception | None:
    """What to say where a layer is given tensors of another precision, or on another device, than its parameters.

    :param error: what torch says, if that is what it says.
    """
    like = next((p for p in layer.parameters() if p.is_floating_point()), None)
    if like is None or not (MIXED.search(error) or "device" in error):
        return None
    contexts = {f"a context of {type(p).__name__}": p._buffers.get("context") for p in layer.modules()}
    for name, tensor in {**given, **contexts}.items():
        if tensor is None:
            continue
        if tensor.device != like.device:
            return ValueError(
                f"{who}: expected {name} on the device of the layer's parameters, {like.device}, got {tensor.device}; "
                f"move it there, .to({str(like.device)!r}), or the layer to it"
            )
        if tensor.dtype != like.dtype:
            return MixedDtypes(
                f"{who}: expected {name} of the same dtype as the layer's parameters, {like.dtype}, got "
                f"{tensor.dtype}; give .to({like.dtype}), or move the layer, layer.to({tensor.dtype})"
            )
    return None


def _spread(layer: Any, name: str, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A point and its noise in the batch that they and the layer's context have together."""
    try:
        batch_shape = broadcast_shapes(x.shape[:-1], layer.batch_shape)
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
    """Raise an error unless this is an element-wise map, such as those of :mod:`pyro_nflows.transformers`.

    :raises TypeError: if it is none, or does not give a pair of tensors.
    :raises ValueError: if these are of other shapes.

    Example::

        >>> need_transformer("Coupling", "affine")
        Traceback (most recent call last):
        TypeError: Coupling: expected transformer to be an object such as Affine() or RationalQuadratic(), got 'affine'
    """
    if not all(hasattr(transformer, part) for part in ("num_params", "forward", "inverse")):
        raise TypeError(
            f"{who}: expected transformer to be an object such as Affine() or RationalQuadratic(), got {transformer!r}"
        )
    check_sizes(f"{who}: transformer", num_params=transformer.num_params)
    if not type(transformer).__module__.startswith(__name__.split(".")[0]):
        _try_transformer(who, transformer)


def _try_transformer(who: str, transformer: Any) -> None:
    """What a user's own map gives for two elements whose parameters are zero."""
    x, params = torch.zeros(2), torch.zeros(2, transformer.num_params)
    for method in ("forward", "inverse"):
        try:
            found = getattr(transformer, method)(x, params)
        except Exception:  # it may need what is not here, such as another device; layers say what they are given
            return
        if not (isinstance(found, tuple) and len(found) == 2 and all(getattr(f, "shape", ()) == (2,) for f in found)):
            got = ", ".join(str(_shape(part)) for part in found) if isinstance(found, tuple) else _shape(found)
            kind = ValueError if isinstance(found, tuple) and len(found) == 2 else TypeError
            raise kind(
                f"{who}: expected {type(transformer).__name__}.{method}(x, params) to give a pair, the elements and "
                f"their log-slopes, both in the shape of x, (2,) where params is {tuple(params.shape)}; got {got}"
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
