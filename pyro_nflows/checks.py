"""Arguments checked, and errors told in one line."""

from collections.abc import Sequence
from typing import Any

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


def check_widths(name: str, hidden_dims: Sequence[int]) -> None:
    """Raise a ValueError if the widths of hidden layers are not a sequence of positive integers.

    Example::

        >>> check_widths("MLP", 32)
        Traceback (most recent call last):
        ValueError: MLP: hidden_dims must be a sequence of positive integers, such as (32, 32), got 32
    """
    widths = hidden_dims if isinstance(hidden_dims, Sequence) else [None]
    if not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(
            f"{name}: hidden_dims must be a sequence of positive integers, such as (32, 32), got {hidden_dims!r}"
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
