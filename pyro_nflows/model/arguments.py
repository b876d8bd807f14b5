r"""A model's arguments as a user has them, made ready for it.

What holds numbers becomes a tensor (:mod:`~pyro_nflows.model.arrays`). Where data have another precision than torch's
default, the model is run once: torch promotes most of what it combines, and where it refuses, the data are cast.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..checks import first_line
from ..system.exclusive import usable, validation
from ..system.frames import user_level
from ..system.randomness import forked
from . import data_checks
from .arrays import DataWarning, converted, rounded, unread
from .constants import signature_of

Call = tuple[tuple[Any, ...], dict[str, Any]]


def ready(who: str, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A model's arguments, with tensors in the place of arrays, columns and lists, of dtypes that go together.

    :param who: takes them, for the messages.
    :param model: the Pyro model.
    :param args: its arguments, with ``kwargs``.
    :return: both; the objects that came, where nothing had to be done.
    :raises TypeError: if the model cannot use a data frame, or an array of something else than numbers, as it is.
    :raises ValueError: if data are on the device ``meta``, or hold numbers that their dtype cannot.

    Example::

        >>> import numpy as np, pyro.distributions as dist
        >>> def model(x, y):
        ...     b = pyro.sample("b", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(b * x, 1.0).to_event(1), obs=y)
        ...
        >>> ready("VI.run", model, (np.zeros(2), [1, 2]), {})
        ((tensor([0., 0.]), tensor([1, 2])), {})
    """
    args, kwargs = usable((args, kwargs))
    labels, default = _labels(model, args, kwargs), torch.get_default_dtype()
    call = _each(who, labels, args, kwargs, default)
    odd = _unread(labels, call)
    # What was converted has the default dtype, but the model's own constants may have that which came.
    if not odd and all(dtype == default for dtype in _float_dtypes((call, _each(who, labels, args, kwargs, None)))):
        return call
    refusal = _refusal(model, call)
    if isinstance(refusal, RuntimeError) and data_checks.MIXED.search(str(refusal)):
        return _cast(who, labels, model, call, (args, kwargs), refusal)
    if odd and refusal is not None and not isinstance(refusal, RuntimeError):  # a prior without a sampler is no misuse
        raise TypeError(
            f"{who}: the model cannot use argument {odd[0]}: {odd[1]}. It ends in {type(refusal).__name__}: "
            f"{first_line(refusal)}"
        ) from refusal
    return call


def _unread(labels: list[str], call: Call) -> tuple[str, str] | None:
    """The first argument that holds something else than numbers, and what."""
    for label, value in zip(labels, (*call[0], *call[1].values())):
        for leaf in tree_leaves(value):
            what = unread(leaf)
            if what is not None:
                return label, what
    return None


def _cast(who: str, labels: list[str], model: Any, call: Call, given: Call, refusal: Exception) -> Call:
    """Data in a precision that the model can use; those that came where there is none, for the model's own error."""
    default = torch.get_default_dtype()

    def cast(label: str, value: Any) -> Any:
        return tree_map(lambda x: rounded(who, label, x, default) if _is_float(x) else x, value)

    other = _by_label(labels, *call, cast)
    if _refusal(model, other) is None:
        warnings.warn(
            f"{who}: data are cast to {default}, torch's default dtype, since the model combines tensors of several "
            f"dtypes in a way that torch refuses ({first_line(refusal)}); give them that dtype yourself to have no "
            "warning, or run torch.set_default_dtype(torch.float64) first for double precision",
            DataWarning,
            stacklevel=user_level(),
        )
        return other
    as_they_came = _each(who, labels, *given, None)
    return as_they_came if _refusal(model, as_they_came) is None else call


def _each(who: str, labels: list[str], args: Any, kwargs: Any, floats: torch.dtype | None) -> Call:
    return _by_label(labels, args, kwargs, lambda label, value: converted(who, label, value, floats))


def _by_label(labels: list[str], args: Any, kwargs: Any, change: Callable[[str, Any], Any]) -> Call:
    changed = [change(label, value) for label, value in zip(labels, (*args, *kwargs.values()))]
    return tuple(changed[: len(args)]), dict(zip(kwargs, changed[len(args) :]))


def _labels(model: Callable[..., Any], args: Any, kwargs: Any) -> list[str]:
    """What the model calls its arguments."""
    try:
        known = [
            p.name for p in signature_of(model).parameters.values() if p.kind is not inspect.Parameter.VAR_POSITIONAL
        ]
    except (TypeError, ValueError):
        known = []
    names = [f"'{known[i]}'" if i < len(known) else f"argument {i}" for i in range(len(args))]
    return [*names, *(f"'{name}'" for name in kwargs)]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _float_dtypes(data: Any) -> Iterator[torch.dtype]:
    """Those of data that are no integers, as they came."""
    for leaf in tree_leaves(data):
        if _is_float(leaf):
            yield leaf.dtype


def _refusal(model: Callable[..., Any], call: Call) -> Exception | None:
    """What the model raises at these arguments, with its latents drawn from their priors."""
    with pyro.get_param_store().scope(), forked(), validation(False), torch.no_grad():
        try:
            with poutine.block():
                poutine.trace(model).get_trace(*call[0], **call[1]).compute_log_prob()
        except Exception as error:
            return error
    return None
