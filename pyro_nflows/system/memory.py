"""Out of memory: how much there is left, how to tell that it gave out from other errors, and what to say of it."""

import contextlib
import errno
import math
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

if sys.platform != "win32":
    import resource

#: What torch's own errors have in their text where they have no type.
_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "Storage size calculation overflowed",
    "bad_alloc",
    "ALLOC_FAILED",
)
_OVERFLOW = "Overflow when unpacking long"
#: How torch says what it asked for at once: ``you tried to allocate 80000 bytes``, ``Tried to allocate 74.51 GiB``.
_AT_ONCE = re.compile(r"ried to allocate ([\d.]+) (bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
#: Bytes that no machine has; where nobody says how many are left, what takes more is refused all the same.
NOBODY_HAS = 2**60
#: What takes less is not compared with what is left: to find that out takes some tens of microseconds.
SMALL = 2**28
CPU = torch.device("cpu")


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
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, TypeError | ValueError):  # a size beyond 64 bits
        return _OVERFLOW in str(error)
    return isinstance(error, RuntimeError) and any(text in str(error) for text in (*_TEXTS, _OVERFLOW))


@contextlib.contextmanager
def enough(who: str, asked: str, num_bytes: int, remedy: str, device: torch.device = CPU) -> Iterator[None]:
    """Refuse what cannot fit into memory before anything is done, and say so where memory gives out all the same.

    A system that promises more memory than there is ends the process that uses it, so an error must come before.
    What the failed attempt held is let go, even while its traceback is shown.

    :param who: is asked; messages begin with it.
    :param asked: what for, such as ``"500 draws"``.
    :param num_bytes: that it takes at least.
    :param remedy: what to do, without a full stop.
    :param device: where.
    :raises OutOfMemory: with all of that. One that comes from within is passed on as it is.

    Example::

        >>> with enough("get_samples", "10 draws", 2**70, "ask for fewer"):
        ...     pass
        Traceback (most recent call last):
        pyro_nflows.system.memory.OutOfMemory: get_samples: there is not enough memory for 10 draws: they take at ...
    """
    left = bytes_left(device) if num_bytes > SMALL else num_bytes
    if num_bytes > left:
        there = "" if left == NOBODY_HAS else f", and {in_words(left)} are left"
        raise OutOfMemory(f"{_lacking(who, asked)}: they take at least {in_words(num_bytes)}{there}; {remedy}")
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise explained(error, _lacking(who, asked), remedy) from error


def enough_for(
    who: str, what: str, shape: Sequence[int], width: int, like: Tensor
) -> contextlib.AbstractContextManager[None]:
    """The same of points in a tensor.

    :param what: they are, such as ``"draws"``.
    :param shape: of how many; in a trace of TorchScript, where sizes are tensors, nothing is compared with them.
    :param width: numbers that each takes at least.
    :param like: a tensor of their type, where they are to be.

    Example::

        >>> with enough_for("FlowDistribution.sample", "draws", (2**60, 3), 4, torch.zeros(())):
        ...     pass
        Traceback (most recent call last):
        pyro_nflows.system.memory.OutOfMemory: FlowDistribution.sample: there is not enough memory for ...
    """
    if torch._C._get_tracing_state() is not None:
        return contextlib.nullcontext()
    num = math.prod(shape)
    num_bytes = num * width * like.dtype.itemsize
    return enough(who, f"{num:,} {what}", num_bytes, "ask for fewer at a time", like.device)


def explained(error: BaseException, lacking: str, remedy: str) -> OutOfMemory:
    """What to say where memory gave out; what the failed attempt held is let go.

    :param error: that says so.
    :param lacking: that there is not enough memory, and what for.
    :param remedy: what to do.

    Example::

        >>> explained(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "no memory", "ask for fewer")
        OutOfMemory('no memory: 2.15 GB were asked for at once; ask for fewer')
    """
    traceback.clear_frames(error.__traceback__)
    found = _AT_ONCE.search(str(error))
    at_once = "" if found is None else f": {in_words(float(found[1]) * _UNITS[found[2]])} were asked for at once"
    return OutOfMemory(f"{lacking}{at_once}; {remedy}")


def _lacking(who: str, asked: str) -> str:
    return f"{who}: there is not enough memory for {asked}"


def in_words(num_bytes: float) -> str:
    """So many bytes, rounded.

    Example::

        >>> in_words(31_999_279_968), in_words(8.1e15), in_words(512)
        ('32 GB', '8,100 TB', '512 bytes')
    """
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= size:
            number = num_bytes / size
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


# ---- how much is left -----------------------------------------------------------------------------------------


def bytes_left(device: torch.device = CPU) -> int:
    """Memory that is left on a device; on the CPU, what the machine, a container and a limit of the process leave.

    Example::

        >>> 0 < bytes_left() <= NOBODY_HAS
        True
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return NOBODY_HAS
    return max(0, min(_of_machine(), _of_container(), _of_process()))


def _of_machine() -> int:
    """What Linux could give without harm, its swap space included; elsewhere, all that the machine has."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
        return 1024 * (known["MemAvailable"] + known["SwapFree"])
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return NOBODY_HAS


def _of_container(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """What control groups leave, of either version: this process's own and those that it is in."""
    least = NOBODY_HAS
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = root / "memory" if controllers else root
            group = top / name.lstrip("/")
            parts = [part for part in (group, *group.parents) if part.is_relative_to(top)]
            least = min([least, *(_of_group(part, *(_FIRST if controllers else _SECOND)) for part in parts)])
    return least


#: Files of a control group, by their version: the limit, what is used, and of that what is cached and can be dropped.
_FIRST = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file"
_SECOND = "memory.max", "memory.current", "inactive_file", "active_file"


def _of_group(folder: Path, limit: str, usage: str, *cached: str) -> int:
    with contextlib.suppress(OSError, ValueError, KeyError):
        most, used = (int((folder / name).read_text()) for name in (limit, usage))  # "max" where there is no limit
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return most - used + sum(int(stat[name]) for name in cached)
    return NOBODY_HAS


def _of_process() -> int:
    """What a limit of the address space leaves, as ``ulimit -v`` sets it."""
    if sys.platform == "win32":
        return NOBODY_HAS
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return NOBODY_HAS
    with contextlib.suppress(OSError, ValueError, IndexError):
        return most - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return most
