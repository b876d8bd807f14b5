"""Tensors in files: what is read of them is in memory, and the system takes that back where it needs it."""

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor


def mapped(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor in a temporary file, whose values are to be written.

    The file is in the folder of :func:`tempfile.gettempdir`, which the environment variable ``TMPDIR`` names. It is
    nameless, where the system can do that: it goes with the tensor, or with the process, however that ends.

    :raises OSError: if there is no room for it.

    Example::

        >>> rows = mapped((3, 2), torch.float32)
        >>> rows[1] = torch.tensor([1.0, 2.0])
        >>> rows[torch.tensor([1, 1])].sum()
        tensor(6.)
    """
    numel = torch.Size(shape).numel()
    size = max(1, numel * dtype.itemsize)
    file, path = tempfile.mkstemp(prefix="pyro_nflows_", suffix=".rows")
    try:
        try:
            _reserve(file, size, path)
        finally:
            os.close(file)
        flat = torch.from_file(path, shared=True, size=numel, dtype=dtype)
    except BaseException:
        os.unlink(path)
        raise
    try:
        os.unlink(path)
    except OSError:  # Windows keeps a file that is open
        weakref.finalize(flat.untyped_storage(), _removed, path)
    return flat.view(tuple(shape))


def _reserve(file: int, size: int, path: str) -> None:
    """Room on the disk, so that no write finds it full: that would end the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
            return
        if shutil.disk_usage(os.path.dirname(path)).free < size:
            raise OSError("No space left on device")
        os.truncate(file, size)
    except OSError as error:
        raise OSError(
            f"there is no room for {size / 1e9:.2g} GB of rows in {os.path.dirname(path)!r} ({error}); set the "
            "environment variable TMPDIR to a folder on a larger disk"
        ) from error


def _removed(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
