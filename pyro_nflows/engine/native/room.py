"""Memory for long vectors, in large pages where there are such: they are sooner found, and sooner first written."""

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

#: Bytes of a large page, and those from which on a tensor has some.
PAGE, LARGE = 2**21, 2**23


def room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros in memory of their own.

    Example::

        >>> room((2, 3), torch.float32).sum(), room((LARGE,), torch.uint8).sum()
        (tensor(0.), tensor(0))
    """
    size = math.prod(shape) * dtype.itemsize
    if size >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError, ValueError):  # torch says it better where there is no memory
            pages = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):
                pages.madvise(mmap.MADV_HUGEPAGE)
            memory = torch.frombuffer(pages, dtype=torch.uint8)
            start = -memory.data_ptr() % PAGE
            return memory[start : start + size].view(dtype).view(*shape)
    return torch.zeros(tuple(shape), dtype=dtype, device="cpu")


def copied(tensor: Tensor) -> Tensor:
    """A copy in memory of its own.

    Example::

        >>> copied(torch.ones(2))
        tensor([1., 1.])
    """
    return room(tensor.shape, tensor.dtype).copy_(tensor)
