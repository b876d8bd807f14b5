"""Minibatches of rows that are gone through by one process, or by all that share a fit."""

import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor, nn

from ..checks import first_line
from ..system.randomness import forked
from ..system.ranks import ALONE, Ranks
from ..system.signals import uninterrupted

T = TypeVar("T")

#: Minibatches of each process before it is asked for what has come of them.
AT_A_TIME = 4


class RowTeam:
    """Who goes through minibatches of rows.

    What a piece of work gives depends on what it is given alone, random numbers included, and not on who does it.

    :param ranks: the processes.
    :param leaves: the model's own parameters, which the others are told.

    Example::

        >>> list(RowTeam().over("here", lambda here, number: here + number, 10, [(1,), (2,)]))
        [11, 12]
    """

    def __init__(self, ranks: Ranks = ALONE, leaves: Sequence[Tensor] = ()):
        self.ranks, self.leaves = ranks, leaves

    def tell(self, layer: nn.Module, num: int = 0) -> None:
        """Say what the layer and the model's own parameters are now.

        :param layer: over all rows.
        :param num: draws times rows that are to come.
        """
        if self.ranks.has_peers:
            leaves = [leaf.detach().cpu() for leaf in self.leaves]
            with uninterrupted():
                self.ranks.tell("rows_are", pickle.dumps((layer.state_dict(), leaves, num // self.ranks.size)))

    def over(
        self,
        name: str,
        work: Callable[..., T],
        here: Any,
        given: Iterable[tuple[Any, ...]],
        until: float = math.inf,
    ) -> Iterator[T]:
        """What each piece of work gives, in order.

        :param name: under which a fit has what the work is done with.
        :param work: a function of a module or a class, of that and of what it is given.
        :param here: that, on this process.
        :param given: a tuple for each piece.
        :param until: when no further pieces are begun, by ``time.perf_counter``; some are done in any case.
        :raises RuntimeError: if another process fails.
        """
        if not self.ranks.has_peers:
            for number, piece in enumerate(given):
                if number and time.perf_counter() > until:
                    return
                with forked():  # what comes after it has the same random numbers, whoever has done it
                    found = work(here, *piece)
                yield found
            return
        ranks, pieces = self.ranks, iter(given)
        while group := list(islice(pieces, AT_A_TIME * ranks.size)):
            shares = [group[ranks.share(len(group), rank)] for rank in range(ranks.size)]
            with uninterrupted():
                ranks.tell("rows", pickle.dumps((name, work, shares)))
                parts = ranks.gather(results(work, here, shares[0]))
            for rank, (_, reason) in enumerate(parts):
                if reason:
                    raise RuntimeError(f"VI.run: rank {rank} cannot go through its rows ({reason})")
            for done, _ in parts:
                yield from done
            if time.perf_counter() > until:
                return


def results(work: Callable[..., Any], here: Any, share: Iterable[tuple[Any, ...]]) -> tuple[list[Any], str]:
    """What some pieces of work give, and why one of them could not be done, if that is so."""
    try:
        with forked():
            return [work(here, *piece) for piece in share], ""
    except Exception as error:
        return [], f"{type(error).__name__}: {first_line(error)}"
