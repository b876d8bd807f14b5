"""Arguments checked, and errors told in one line."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch

#: A dimension, or the shape ``(C, H, W)`` of an image, whose coordinates are in that order.
Size = int | tuple[int, int, int]


def counted(num: int, what: str) -> str:
    """So many of something, in words.

    Example::

        >>> counted(1, "latent"), counted(2000, "data set")
        ('1 latent', '2,000 data sets')
    """
    return f"{num:,} {what}{'s' * (num != 1)}"


def check_sizes(name: str, **sizes: int) -> None:
    """Raise a ValueError that names the first size which is not a positive integer.

    Example::

        >>> check_sizes("Planar", input_dim=0)
        Traceback (most recent call last):
        ValueError: Planar: input_dim must be a positive integer, got 0
    """
    for key, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: {key} must be a positive integer, got {size!r}")


def names_in(who: str, what: str, value: Any) -> list[str]:
    """One name or several as a list.

    :param who: is asked; the message begins with it.
    :param what: the argument.
    :raises TypeError: if it is neither a name nor a sequence of names.

    Example::

        >>> names_in("summary", "var_names", "mu"), names_in("summary", "var_names", ("mu", "tau"))
        (['mu'], ['mu', 'tau'])
        >>> names_in("summary", "var_names", 3)
        Traceback (most recent call last):
        TypeError: summary: var_names must be the name of a site or a list of names, got 3
    """
    names = [value] if isinstance(value, str) else value
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise TypeError(f"{who}: {what} must be the name of a site or a list of names, got {value!r}")
    found = list(names)
    if not all(isinstance(name, str) for name in found):
        raise TypeError(f"{who}: {what} must be the name of a site or a list of names, got {value!r}")
    return found


def numbers_in(who: str, what: str, value: Any) -> torch.Tensor:
    """Numbers as a tensor.

    :raises TypeError: if they are none.

    Example::

        >>> numbers_in("AutoFlow.quantiles", "levels", "half")
        Traceback (most recent call last):
        TypeError: AutoFlow.quantiles: levels must be a number or a list of numbers, got 'half'
    """
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{who}: {what} must be a number or a list of numbers, got {value!r}") from None


def row_numbers(who: str, what: str, value: Any, num_rows: int) -> torch.Tensor:
    """Which of some rows, by their numbers or by True and False for each, as a tensor.

    :raises TypeError: if it is neither.
    :raises ValueError: if there is no such row, or it is of another shape.

    Example::

        >>> row_numbers("constrained", "index", [0, 5], 3)
        Traceback (most recent call last):
        ValueError: constrained: index must be of rows from 0 to 2, got 5
    """
    index = numbers_in(who, what, value)
    if index.is_floating_point() or index.is_complex():
        raise TypeError(f"{who}: {what} must be numbers of rows, integers, got {index.dtype}")
    if index.dim() != 1 or (index.dtype is torch.bool and len(index) != num_rows):
        raise ValueError(f"{who}: {what} must be numbers of rows, of shape (num_rows,), got shape {tuple(index.shape)}")
    odd = index[(index < -num_rows) | (index >= num_rows)] if index.dtype is not torch.bool else index[:0]
    if len(odd):
        raise ValueError(f"{who}: {what} must be of rows from 0 to {num_rows - 1}, got {int(odd[0])}")
    return index


def check_seed(who: str, seed: Any) -> None:
    """Raise a TypeError if a seed is neither an integer nor None.

    Example::

        >>> check_seed("predict", 1.5)
        Traceback (most recent call last):
        TypeError: predict: seed must be an integer or None, got 1.5
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"{who}: seed must be an integer or None, got {seed!r}")


def check_share(who: str, **shares: Any) -> None:
    """Raise a ValueError that names the first number which is not between 0 and 1.

    Example::

        >>> check_share("summary", prob=90)
        Traceback (most recent call last):
        ValueError: summary: prob must be between 0 and 1, got 90
    """
    for key, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise ValueError(f"{who}: {key} must be between 0 and 1, got {share!r}")


def is_number(value: Any) -> bool:
    """Whether it is one number, in a tensor of no dimension perhaps; True and False are none.

    Example::

        >>> [is_number(value) for value in (1, 2.5, torch.tensor(3.0), True, "4", None, torch.ones(1))]
        [True, True, True, False, False, False, False]
    """
    in_tensor = isinstance(value, torch.Tensor) and value.shape == () and value.dtype is not torch.bool
    return in_tensor or (isinstance(value, Real) and not isinstance(value, bool))


def check_positive(who: str, **numbers: Any) -> None:
    """Raise a ValueError that names the first argument which is not a positive number.

    Example::

        >>> check_positive("LocScale", init_scale="wide")
        Traceback (most recent call last):
        ValueError: LocScale: init_scale must be a positive number, got 'wide'
    """
    for key, number in numbers.items():
        if not is_number(number) or not 0 < float(number) < math.inf:
            raise ValueError(f"{who}: {key} must be a positive number, got {number!r}")


def check_flags(who: str, **flags: Any) -> None:
    """Raise a TypeError that names the first argument which is not True, False or None.

    Example::

        >>> check_flags("get_samples", resample="no")
        Traceback (most recent call last):
        TypeError: get_samples: resample must be True or False, got 'no'
    """
    for key, flag in flags.items():
        if flag is not None and not isinstance(flag, bool):
            raise TypeError(f"{who}: {key} must be True or False, got {flag!r}")


def check_functions(who: str, **functions: Any) -> None:
    """Raise a TypeError that names the first argument which cannot be called.

    Example::

        >>> check_functions("widened", build=3)
        Traceback (most recent call last):
        TypeError: widened: expected build to be a function, got int
    """
    for key, function in functions.items():
        if not callable(function):
            raise TypeError(f"{who}: expected {key} to be a function, got {type(function).__name__}")


def check_mapping(who: str, **mappings: Any) -> None:
    """Raise a TypeError that names the first argument which is neither a dict nor None.

    Example::

        >>> check_mapping("to_arviz", coords=["A", "B"])
        Traceback (most recent call last):
        TypeError: to_arviz: coords must be a dict by name, got a list
    """
    for key, mapping in mappings.items():
        if mapping is not None and not isinstance(mapping, Mapping):
            raise TypeError(f"{who}: {key} must be a dict by name, got a {type(mapping).__name__}")


def check_widths(name: str, hidden_dims: Sequence[int], what: str = "hidden_dims") -> None:
    """Raise a ValueError if the widths of hidden layers are not a sequence of positive integers.

    :param what: the argument's name.

    Example::

        >>> check_widths("MLP", 32)
        Traceback (most recent call last):
        ValueError: MLP: hidden_dims must be a sequence of positive integers, such as (32, 32), got 32
    """
    widths = hidden_dims if isinstance(hidden_dims, Sequence) else [None]
    if not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(
            f"{name}: {what} must be a sequence of positive integers, such as (32, 32), got {hidden_dims!r}"
        )


def channels(name: str, size: Size) -> tuple[int, int]:
    """Number of channels, and of coordinates in each: for a plain dimension, each coordinate is a channel.

    :raises ValueError: if it is neither a positive integer nor three of them.

    Example::

        >>> channels("ActNorm", 6), channels("ActNorm", (3, 4, 4))
        ((6, 1), (3, 16))
        >>> channels("ActNorm", (3, 4))
        Traceback (most recent call last):
        ValueError: ActNorm: expected the shape (C, H, W) of an image, three positive integers, got (3, 4)
    """
    if not isinstance(size, tuple | list):
        check_sizes(name, input_dim=size)
        return size, 1
    num_channels, height, width = image_shape(name, size)
    return num_channels, height * width


def as_shape(who: str, shape: Any) -> torch.Size:
    """A shape, such as that of a sample.

    :raises TypeError: if it is no sequence of integers.

    Example::

        >>> as_shape("FlowDistribution.sample", 5)
        Traceback (most recent call last):
        TypeError: FlowDistribution.sample: sample_shape must be a sequence such as (100,), got 5
    """
    try:
        return torch.Size(shape)
    except TypeError:
        raise TypeError(f"{who}: sample_shape must be a sequence such as (100,), got {shape!r}") from None


def image_shape(name: str, shape: Any) -> tuple[int, int, int]:
    """The shape of an image, checked.

    :raises ValueError: if it is not three positive integers.
    """
    sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{name}: expected the shape (C, H, W) of an image, three positive integers, got {shape}")
    return sizes


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its message, or its kind where it has none.

    Example::

        >>> first_line(ValueError("no such site\\nTrace Shapes:")), first_line(KeyboardInterrupt())
        ('no such site', 'KeyboardInterrupt')
    """
    return str(error).strip().split("\n")[0] or type(error).__name__
