"""Which plates of a model are subsampled, and which sites are within which of them."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..system.exclusive import validation
from .log_joint import LogJoint

#: A group of sites: the subsampled plates that these are within.
Group = frozenset[str]


class Plate(NamedTuple):
    """A subsampled plate: how many rows it has, and how many one run of the model takes."""

    size: int
    taken: int

    @property
    def num_chunks(self) -> int:
        """How many runs it takes to see all rows."""
        return -(-self.size // self.taken)

    def chunk(self, number: int) -> tuple[Tensor, Tensor]:
        """The rows of a chunk, and which of them are not filled up.

        Example::

            >>> Plate(5, 3).chunk(1)
            (tensor([3, 4, 0]), tensor([ True,  True, False]))
        """
        rows = torch.arange(number * self.taken, (number + 1) * self.taken)
        return rows % self.size, rows < self.size


def subsampled_plates(joint: LogJoint) -> dict[str, Plate]:
    """The plates of which one run of a model has some rows only."""
    return plates_of(trace_of(joint))


def start_of(joint: LogJoint) -> Tensor:
    """Where the model is run to see what it is."""
    return joint.latents.init_loc() if joint.start is None else joint.start


@torch.no_grad()
def trace_of(joint: LogJoint) -> Any:
    """A trace of the model there."""
    with validation(False):
        return joint.at(start_of(joint), joint.latents.filled)[0]


def _sites(trace: Any) -> Iterator[Any]:
    return (site for site in trace.nodes.values() if site["type"] == "sample")


def _subsampled(site: Any) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.full_size not in (None, frame.size)]


def subsampled_frames(trace: Any) -> list[Any]:
    """Pyro's frames of subsampled plates, those of one site after those of another."""
    return [frame for site in _sites(trace) for frame in _subsampled(site)]


def plates_of(trace: Any) -> dict[str, Plate]:
    """The subsampled plates of a trace."""
    return {frame.name: Plate(int(frame.full_size), int(frame.size)) for frame in subsampled_frames(trace)}


def groups_of(trace: Any, among: Collection[str] | None = None) -> tuple[Group, ...]:
    """Which of the subsampled plates sites are within; outside of them all is the first.

    :param among: those that are looked at; by default all.
    """
    groups = [
        frozenset(f.name for f in _subsampled(site) if among is None or f.name in among) for site in _sites(trace)
    ]
    return tuple(dict.fromkeys([Group(), *groups]))
