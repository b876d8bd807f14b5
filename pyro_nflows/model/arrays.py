r"""What holds numbers, as a tensor: NumPy arrays, columns of data frames, lists of numbers.

One rule for all of a model's arguments, wherever they are nested in lists, tuples and dicts:

- An array becomes a tensor: whatever has ``to_numpy()`` or ``__array__()``, as a NumPy array, a column (``Series``) of
  pandas or polars and an array of JAX or xarray have. Its integers become ``int64``, its truth values ``bool``,
  and other numbers torch's default dtype, as ``torch.tensor([0.5])`` has.
- So does a list of numbers, and a list of such lists of one length. A tuple stays what it is: a shape, or sizes.
- A single number of NumPy's becomes Python's: a size that is counted in data remains a size.
- All else stays what it is, as tensors do. So do data frames, and arrays of something else than numbers, which a model
  may read.
"""

import warnings
from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..system.frames import user_level

#: Rounding to another precision is told where it moves a number by more than this share of the spread of them all.
ROUNDING = 1e-3


class DataWarning(UserWarning):
    """Data were converted, and not everything of them is what it was."""


def is_frame(value: Any) -> bool:
    """Whether a value is a data frame: columns, each with numbers of its own.

    Example::

        >>> import pandas
        >>> frame = pandas.DataFrame({"x": [1, 2]})
        >>> is_frame(frame), is_frame(frame["x"]), is_frame({"x": [1, 2]})
        (True, False, False)
    """
    return hasattr(value, "columns") and (hasattr(value, "dtypes") or hasattr(value, "schema"))


def converted(who: str, label: str, value: Any, floats: torch.dtype | None) -> Any:
    """An argument of a model, by the rule of this module.

    :param who: takes it, for the messages.
    :param label: what it is called there.
    :param floats: the dtype of numbers that are no integers; None for that which they have.
    :raises ValueError: if it holds numbers that this dtype cannot.

    Example::

        >>> converted("VI.run", "'x'", {"x": np.array([1.0, 2.5]), "n": np.int64(2)}, torch.float32)
        {'x': tensor([1.0000, 2.5000]), 'n': 2}
        >>> converted("VI.run", "'x'", ([28, 8, -3], (2, 3)), torch.float32)
        (tensor([28,  8, -3]), (2, 3))
    """
    return tree_map(lambda leaf: _leaf(who, label, leaf, floats), value, is_leaf=_is_numbers)


def _leaf(who: str, label: str, value: Any, floats: torch.dtype | None) -> Any:
    if isinstance(value, np.number | np.bool_):
        return value.item()
    array = _numbers(value)
    if array is None:
        return value
    tensor = torch.from_numpy(np.array(array, dtype=_dtype(array), order="C"))
    return tensor if floats is None or not tensor.is_floating_point() else rounded(who, label, tensor, floats)


def unread(value: Any) -> str | None:
    """What a value is that is neither converted nor a plain one, and what to give instead; None for others.

    Example::

        >>> unread(np.array(["a", "b"]))
        "it holds str such as 'a'; give groups by their numbers, as pandas.factorize(x)[0] does"
        >>> unread(np.zeros(2)) is None
        True
    """
    if is_frame(value):
        return "it is a data frame; give columns, as in run(df['x'], df['y']) or run(**df[['x', 'y']])"
    return _kind(np.asarray(value)) if _is_array(value) and _numbers(value) is None else None


def rounded(who: str, label: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Data in another precision.

    :param who: takes them, for the messages.
    :param label: what they are called there.
    :param values: the data.
    :param dtype: that they are to have.
    :raises ValueError: if it cannot hold them.

    Example::

        >>> years = torch.tensor([2.0e9, 2.0e9 + 1], dtype=torch.float64)
        >>> with warnings.catch_warnings(record=True, action="always") as caught:
        ...     rounded("VI.run", "'when'", years, torch.float32)
        tensor([2.0000e+09, 2.0000e+09])
        >>> str(caught[0].message)[:60]
        "VI.run: as torch.float32, values of 'when' differ from what "
    """
    found = values.to(dtype)
    if not values.numel() or torch.finfo(dtype).eps <= torch.finfo(values.dtype).eps:
        return found
    if bool((values.isfinite() & ~found.isfinite()).any()):
        raise ValueError(
            f"{who}: {label} holds values up to {float(values.abs().nan_to_num().max()):.3g}, more than {dtype} can; "
            "scale it, or run torch.set_default_dtype(torch.float64) first"
        )
    known = values[values.isfinite()]
    spread = float(known.std(correction=0)) if len(known) else 0.0
    apart = float((known - known.to(dtype)).abs().max()) if len(known) else 0.0
    if apart > ROUNDING * spread > 0:
        warnings.warn(
            f"{who}: as {dtype}, values of {label} differ from what they were by up to {apart / spread:.2g} of their "
            "standard deviation; subtract their mean first, or run torch.set_default_dtype(torch.float64) first",
            DataWarning,
            stacklevel=user_level(),
        )
    return found


def _is_array(value: Any) -> bool:
    if isinstance(value, Tensor | type | Mapping | str | bytes) or is_frame(value):
        return False
    return hasattr(value, "__array__") or hasattr(value, "to_numpy")


def _is_numbers(value: Any) -> bool:
    """Whether it is a list of numbers, or of such lists of one length."""
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(each, Number | np.bool_) for each in value):
        return True
    shapes = {np.shape(each) for each in value} if all(map(_is_numbers, value)) else set()
    return len(shapes) == 1


def _numbers(value: Any) -> Any:
    """An array of the numbers that a value holds; None where it is no array, or not one of numbers."""
    if not (_is_numbers(value) or _is_array(value)):
        return None
    try:
        array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
    except (TypeError, ValueError):  # some have the method only to say no
        return None
    if array.dtype.kind == "O" and all(isinstance(each, Number | np.bool_) for each in array.flat):
        array = np.array(array.tolist())
    return array if array.dtype.kind in "biufc" else None


def _kind(array: Any) -> str:
    """What an array holds that is no number, and what to do about it."""
    if array.dtype.kind in "mM":
        return "it holds dates or times; give what the model counts in, such as days since the first"
    example = next((each for each in array.flat if not isinstance(each, Number)), None)
    if example is None or type(example).__name__ in ("NAType", "NaTType", "NoneType"):
        return "it has missing values; drop these rows, or fill them and hide them with obs_mask"
    kind = type(example).__name__.rstrip("_")
    return (
        f"it holds {kind} such as {str(example)[:30]!r}; give groups by their numbers, as pandas.factorize(x)[0] does"
    )


def _dtype(array: Any) -> Any:
    """A dtype that torch has, for an array's."""
    if array.dtype.kind == "b":
        return np.bool_
    if array.dtype.kind in "iu":
        return np.int64
    if array.dtype.kind == "c":
        return np.complex128 if array.dtype.itemsize > 8 else np.complex64
    return array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.float64
