"""In which order a tensor is looped over, and how its elements lie for that."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

Shape = tuple[int, ...]
#: An innermost loop of this length is long enough, whatever the others'.
LONG = 64
_stays = ContextVar("_stays", default=False)


@contextlib.contextmanager
def as_they_come(stays: bool = True) -> Iterator[None]:
    """Within this, dimensions are looped over as they come, however short the last one is."""
    token = _stays.set(stays)
    try:
        yield
    finally:
        _stays.reset(token)


def order_of(shape: Sequence[int]) -> list[int]:
    """The dimensions to loop over, none of one element: as they come, or the longest innermost if the last is short."""
    dims = [d for d, size in enumerate(shape) if size != 1]
    if dims and shape[dims[-1]] < LONG and not _stays.get():
        longest = max(dims, key=lambda d: (shape[d], d))
        dims.remove(longest)
        dims.append(longest)
    return dims


def in_order(values: Sequence[int], shape: Sequence[int]) -> Shape:
    """Sizes or strides, one a dimension, in the order in which a shape is looped over."""
    return tuple(values[d] for d in order_of(shape))


def packed(sizes: Sequence[int]) -> Shape:
    """Strides without gaps."""
    return tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))


def laid_out(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor without memory whose elements lie in the order in which they are looped over."""
    strides = [0] * len(shape)
    for dim, stride in zip(order_of(shape), packed(in_order(shape, shape))):
        strides[dim] = stride
    return torch.empty_strided(tuple(shape), strides, dtype=dtype, device="meta")
