"""Tensors that compiled code reads and never writes; those made of data differ from one member of an ensemble to
another."""

from collections.abc import Callable, Mapping

from torch import Tensor

#: A constant as it is made of the recording's own constants, by number.
Origin = Callable[[Mapping[int, Tensor]], Tensor]


def once(tensor: Tensor) -> Tensor:
    """A contiguous tensor without its repetitions."""
    return tensor[tuple(slice(None) if stride else slice(0, 1) for stride in tensor.stride())].contiguous()


def whole(flat: Tensor, meta: Tensor) -> Tensor:
    """The tensor that lies in memory as ``meta`` says."""
    return flat.reshape(-1).as_strided(meta.shape, meta.stride(), int(meta.storage_offset()))
