"""Shapes and places of tensors, as torch has them, by plain Python.

Torch's own functions of these names import a library of symbolic algebra at their first call, which takes a third of a
second: as long as some fits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """The shape to which tensors of these shapes are broadcast.

    :raises RuntimeError: if they cannot be.

    Example::

        >>> broadcast_shapes((5, 1, 3), (4, 1), ())
        torch.Size([5, 4, 3])
        >>> broadcast_shapes((2,), (3,))
        Traceback (most recent call last):
        ...
        RuntimeError: shapes (2,) and (3,) cannot be broadcast to a single shape
    """
    if torch.compiler.is_compiling():  # sizes may be symbols
        return torch.broadcast_shapes(*shapes)
    sizes = [1] * max((len(shape) for shape in shapes), default=0)
    for shape in shapes:
        for i, size in enumerate(shape, len(sizes) - len(shape)):
            if sizes[i] == 1:
                sizes[i] = size
            elif size not in (1, sizes[i]):
                text = [str(tuple(each)) for each in shapes]
                raise RuntimeError(
                    f"shapes {', '.join(text[:-1])} and {text[-1]} cannot be broadcast to a single shape"
                )
    return torch.Size(sizes)


def unravel_index(index: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The places in each dimension of a tensor of this shape, of elements that are numbered row by row.

    Example::

        >>> unravel_index(torch.tensor([0, 4, 11]), (3, 4))
        (tensor([0, 1, 2]), tensor([0, 0, 3]))
    """
    return tuple(index // math.prod(shape[i + 1 :]) % size for i, size in enumerate(shape))
