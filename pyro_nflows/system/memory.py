"""Out of memory: how to tell it from other errors, and what to say of it."""

import torch

#: What torch's own errors have in their text where they have no type.
_TEXTS = "can't allocate memory", "not enough memory"


class OutOfMemory(MemoryError):
    """There was not enough memory; the message says what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, Python's or torch's, says that there is not enough memory.

    Example::

        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
        True
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("singular matrix"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)
