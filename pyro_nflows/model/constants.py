"""A model's arguments as arrays with names, for the data that ArviZ keeps beside the draws."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor


def arguments(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model by the names of its signature."""
    try:
        signature = signature_of(model)
        bound = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # a decorator hides what the model takes
        return {"args": args, **kwargs}
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound.update(bound.pop(parameter.name, {}))
    return bound


def signature_of(model: Callable[..., Any]) -> inspect.Signature:
    """What a model takes: a function, a module, or either inside of handlers.

    :raises ValueError, TypeError: if that cannot be told.
    """
    model = _bare(model)
    return inspect.signature(getattr(model, "forward", model))


def _bare(model: Any) -> Any:
    """The model inside ``poutine.condition`` and its like, such as an autoguide puts around it."""
    while isinstance(getattr(model, "func", None), functools.partial) and isinstance(model.func.args[0], Messenger):
        model = model.func.args[1]
    return model


def arrays(named: Mapping[str, Any]) -> Iterator[tuple[str, Tensor | np.ndarray]]:
    """The tensors and arrays among the arguments; those in a container carry its name and their place in it."""
    for name, value in named.items():
        if isinstance(value, (Tensor, np.ndarray)):
            yield name, value
        elif isinstance(value, (Mapping, list, tuple)):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            yield from arrays({f"{name}_{key}": item for key, item in items})


def as_array(value: Tensor | np.ndarray) -> np.ndarray:
    """What ``xarray`` and a NetCDF file can hold.

    :raises TypeError: for an array of Python objects that are not all strings, or one with fields.
    """
    if isinstance(value, Tensor):
        return array(value.to_dense() if value.layout is not torch.strided else value)
    if value.dtype.kind == "O":
        if not all(isinstance(item, str) for item in value.flat):
            raise TypeError("an array of Python objects")
        return value.astype(str)
    if value.dtype.kind == "V":
        raise TypeError(f"an array with fields, {value.dtype}")
    # xarray knows dates to the nanosecond, or, of late, to the second.
    return value.astype(f"{value.dtype.kind}8[ns]") if value.dtype.kind in "mM" else np.ascontiguousarray(value)


def same(value: Tensor | np.ndarray, held: np.ndarray, data: Tensor) -> bool:
    """Whether an argument, held as an array, is some observed data."""
    if value is data:
        return True
    return held.dtype.kind in "biufc" and np.array_equal(held, array(data))


def array(values: Tensor) -> np.ndarray:
    """A tensor as NumPy can hold it."""
    values = values.detach().cpu()
    return values.float().numpy() if values.dtype is torch.bfloat16 else values.numpy()
