r"""The processes of ``torch.distributed`` in which one fit runs: the first leads, the others do what it says.

The first process, rank 0, runs as it would alone: it alone decides, by what it measures and by its clock, so that the
others cannot come to another decision, and wait for ever. What takes long it shares: it tells the others what to do,
and all of them do it together.
"""

import contextlib
import pickle
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: Whether the processes of a run are left to themselves.
_apart: ContextVar[bool] = ContextVar("_apart", default=False)
#: The latest default group of torch's, with ours over the same processes.
_groups: list[tuple[Any, Any]] = []


class RankError(ConnectionError):
    """Another process of a fit has ended, or said why it cannot go on."""


class Ranks:
    """This process among those that fit together.

    :param rank: its number; 0 leads.
    :param size: how many there are.
    :param group: by which they are connected.

    Example::

        >>> ranks = Ranks()
        >>> ranks.has_peers, ranks.follows, ranks.share(10)
        (False, False, slice(0, 10, None))
        >>> [Ranks(i, 3).share(10) for i in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None):
        self.rank, self.size, self._group = rank, size, group
        self._has_left = False

    @property
    def has_peers(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @property
    def follows(self) -> bool:
        """Whether another one leads."""
        return self.rank > 0

    def share(self, num: int, rank: int | None = None) -> slice:
        """Which of so many things are this process's, or another one's."""
        rank = self.rank if rank is None else rank
        return slice(num * rank // self.size, num * (rank + 1) // self.size)

    def tell(self, name: str, *content: Any) -> None:
        """Say to all others what is to be done."""
        with self._explained():
            dist.broadcast_object_list([pickle.dumps((name, content))], src=0, group=self._group)

    def hear(self) -> tuple[str, tuple[Any, ...]]:
        """What is to be done, once it is said."""
        heard: list[Any] = [None]
        with self._explained():
            dist.broadcast_object_list(heard, src=0, group=self._group)
        name, content = pickle.loads(heard[0])
        return name, content

    def gather(self, mine: Any) -> list[Any]:
        """What each process has, for all of them."""
        found: list[Any] = [None] * self.size
        with self._explained():
            dist.all_gather_object(found, pickle.dumps(mine), group=self._group)
        return [pickle.loads(each) for each in found]

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; two of them tell each other, which takes a third of the time."""
        with self._explained():
            if self.size != 2 or tensor.device.type != "cpu":
                dist.all_reduce(tensor, group=self._group)
                return tensor
            theirs, other = torch.empty_like(tensor), 1 - self.rank
            sent = dist.isend(tensor, other, group=self._group)
            dist.recv(theirs, other, group=self._group)
            if sent is not None:
                sent.wait()
        return tensor.add_(theirs)

    def broadcast(self, *tensors: Tensor) -> None:
        """Give tensors of rank 0 to all others, which have some of the same shapes that are overwritten."""
        with self._explained():
            for tensor in tensors:
                dist.broadcast(tensor, src=0, group=self._group)

    def hand_out(self, common: Tensor, parts: Sequence[Tensor]) -> None:
        """Give all others a tensor, and each a part of its own."""
        with self._explained():
            dist.broadcast(common.contiguous(), src=0, group=self._group)
            for rank in range(1, self.size):
                if parts[rank].numel():
                    dist.send(parts[rank].contiguous(), dst=rank, group=self._group)

    def take(self, common: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """What is handed out, into tensors of the right shapes."""
        with self._explained():
            dist.broadcast(common, src=0, group=self._group)
            if part.numel():
                dist.recv(part, src=0, group=self._group)
        return common, part

    def leave(self) -> None:
        """Close the connections, so that the others, if they wait, are told at once."""
        group, self._group, self._has_left = self._group, None, True
        _groups[:] = [each for each in _groups if each[1] is not group]
        with contextlib.suppress(Exception):
            dist.destroy_process_group(group)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Within it an error of the connections is told in words."""
        if self._has_left:
            raise RankError(f"rank {self.rank} of {self.size}: the connections to the other processes are closed")
        try:
            yield
        except (RuntimeError, ValueError) as error:  # torch's have no type of their own
            first = re.sub(r"^\[[^\]]*\] ", "", str(error).split("\n")[0]).split(". ")[0]
            self.leave()
            raise RankError(
                f"rank {self.rank} of {self.size}: another process of this fit has ended, or has not answered within "
                "the time limit of its process group, so the fit cannot go on. Its own output says why; start all "
                f"processes again, and with checkpoint= the fit goes on from the last one ({first})"
            ) from error


#: A process by itself.
ALONE = Ranks()


@contextlib.contextmanager
def each_for_itself() -> Iterator[None]:
    """Within it, each process of ``torch.distributed`` runs its own fits, as if there were no others.

    Example::

        >>> with each_for_itself():
        ...     ranks_here().has_peers
        False
    """
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def ranks_here() -> Ranks:
    """This process among those of ``torch.distributed``, if that is initialised; all of them have to ask."""
    if _apart.get() or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    world = dist.group.WORLD
    if not _groups or _groups[0][0] is not world:
        _groups[:] = [(world, dist.new_group(backend="gloo", timeout=_time_limit(world)))]
    return Ranks(dist.get_rank(), dist.get_world_size(), _groups[0][1])


def _time_limit(group: Any) -> timedelta | None:
    """The one that the processes were given when they were connected; None for torch's own."""
    with contextlib.suppress(Exception):
        found = group._get_backend(torch.device("cpu")).options._timeout
        return found if isinstance(found, timedelta) else None
    return None


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Within it Ctrl-C is left to the process that leads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
