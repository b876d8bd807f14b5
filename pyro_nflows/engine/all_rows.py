"""The log joint over all rows of subsampled plates, its visits replayed from a recording: many are alike."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.subsampled_plates import start_of
from ..model.whole import WholeLogJoint, total
from ..system.exclusive import validation
from ..system.randomness import forked
from .tape import Tape

#: Draws that are weighed over all rows: so many at least, and so many rows looked at for all of them.
FEWEST, EVALUATIONS = 2000, 200_000_000
#: Where thousands of values are needed, one after another: runs of the model that one may take however long they are,
#: and seconds that more of them may take.
MOST_VISITS, MOST_SECONDS = 200, 0.3
#: Rows of latents go through the model in batches of these sizes, so that few recordings are needed.
SIZES = (16, 128)


class AllRows:
    """A log density over all rows, ``(K, D) -> (K,)``, without gradients.

    The model's Python runs once for each size of a batch, where it can be recorded, and otherwise at each visit.

    :param log_joint: of the model.
    :param leaves: the model's own trainable parameters: where these have changed, recordings are made anew.
    """

    def __init__(self, log_joint: WholeLogJoint, leaves: Sequence[Tensor] = ()):
        self.log_joint, self.leaves = log_joint, leaves
        self._tapes: dict[Any, Tape | None] = {}
        self._versions = self._current()

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        if self._versions != self._current():
            self._versions, self._tapes = self._current(), {}
        most = self.log_joint.num_draws
        size = next((size for size in SIZES if len(z) <= size < most), most)
        num = -(-len(z) // size) * size
        filled = torch.cat([z, z[:1].expand(num - len(z), -1)]) if num > len(z) else z
        return total(self.log_joint, filled, self._visit)[: len(z)]

    @property
    def num_judged(self) -> int:
        """How many draws are to be weighed."""
        return max(FEWEST, EVALUATIONS // self.log_joint.num_rows)

    @functools.cached_property
    def is_cheap(self) -> bool:
        """Whether ascents, which need thousands of values, can have them over all rows."""
        num = self.log_joint.num_visits
        return num <= MOST_VISITS or num * self._seconds() <= MOST_SECONDS

    @torch.no_grad()
    def _seconds(self) -> float:
        """What a visit takes, once it is recorded."""
        z, first = start_of(self.log_joint.joint)[None], next(self.log_joint.visits())
        took = list[float]()
        with forked(), validation(False):
            for _ in range(4):
                began = time.perf_counter()
                self._visit(z, *first.tensors)
                took.append(time.perf_counter() - began)
        return min(took)

    def in_one(self, z: Tensor) -> Tensor:
        """The same with gradients, in the latents' precision; recorded with all its visits, it is long."""
        return self.log_joint(z).to(z.dtype)

    def _current(self) -> list[int]:
        return [leaf._version for leaf in self.leaves]

    def _visit(self, z: Tensor, *tensors: Tensor) -> Tensor:
        key = z.shape, z.dtype, z.device
        if key not in self._tapes:
            self._tapes[key] = self._record(z, *tensors)
        tape = self._tapes[key]
        return self.log_joint.visit(z, *tensors) if tape is None else tape.run([z, *tensors])[0]

    def _record(self, z: Tensor, *tensors: Tensor) -> Tape | None:
        """A recording that is right at other latents and on other rows too, if there is one."""
        try:
            tape = Tape(lambda *inputs: [self.log_joint.visit(*inputs)], [z, *tensors])
            *_, last = self.log_joint.visits()
            other = [z + 0.01, *(tensor.to(z.device) for tensor in last.tensors)]
            same = torch.allclose(tape.run(other)[0], self.log_joint.visit(*other), 1e-3, 1e-3, equal_nan=True)
            return tape if same and not tape.is_random else None
        except Exception:  # what cannot be recorded, for whatever reason, runs as it is
            return None
