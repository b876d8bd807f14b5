"""Where a run's posteriors go, and what goes back if there is none."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine import Trainer
from ..guides import AutoFlow
from ..model.log_joint import LogJoint
from .mark import put
from .posterior import Posterior

#: Takes what is known of a fit, in place of what was known before.
Keep = Callable[[Posterior], None]


class Kept:
    """Passes posteriors on to where they are kept, and remembers the last.

    :param keep: where to.
    """

    def __init__(self, keep: Keep):
        self.keep = keep
        self.posterior: Posterior | None = None

    def __call__(self, posterior: Posterior) -> None:
        self.keep(posterior)
        self.posterior = posterior


class Ready(NamedTuple):
    """What fitting needs: a trainer on the model, the model itself, starting points, and where posteriors go."""

    trainer: Trainer
    joint: LogJoint
    locs: list[Tensor]
    keep: Kept


@contextlib.contextmanager
def unless_kept(guide: AutoFlow, leaves: Sequence[Tensor], keep: Keep) -> Iterator[Kept]:
    """Within it, the model's own parameters and the guide's coordinates may change.

    They go back to what they were if no posterior is kept.
    """
    before, kept, coordinates = [leaf.detach().clone() for leaf in leaves], Kept(keep), guide.coordinates
    try:
        yield kept
    finally:
        if kept.posterior is None:
            guide.restore(coordinates)
            with torch.no_grad():
                put(leaves, before)
