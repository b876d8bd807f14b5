"""A computation from position to position, and who runs it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Positions whose results are put together at once: memory that is never many small pieces stays near the processor.
BLOCK = 32


class Recurrence(NamedTuple):
    r"""A state that each position changes, :math:`(s_t, y_t) \mapsto (s_{t+1}, x_t)`, by a pure function.

    :param owner: the module whose parameters and buffers it reads.
    :param key: what else it depends on; with an owner, equal keys stand for equal functions.
    :param prepare: computes of the owner's tensors what is the same at all positions.
    :param start: the state before the first position, for rows ``(..., D)`` of what is given.
    :param step: what is prepared, a state and what the position is given, to the next state and the results.
    :param is_steady: whether the state has the same shapes at all positions.
    """

    owner: nn.Module
    key: Any
    prepare: Callable[[], list[Tensor]]
    start: Callable[[Tensor], list[Tensor]]
    step: Callable[[list[Tensor], list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]
    is_steady: bool

    def run(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The results of all positions, each ``(..., T, n)``.

        :param given: what each position is given, ``(..., T, n)``; of the first, the leading dimensions are the rows.
        """
        prepared, state = self.prepare(), self.start(given[0][..., 0, :])
        blocks = []
        for first in range(0, given[0].shape[-2], BLOCK):
            results = []
            for each in zip(*(part[..., first : first + BLOCK, :].unbind(-2) for part in given)):
                state, made = self.step(prepared, state, list(each))
                results.append(made)
            blocks.append([torch.stack(parts, -2) for parts in zip(*results)])
        return [torch.cat(parts, -2) for parts in zip(*blocks)]


#: Runs recurrences; :mod:`pyro_nflows.engine` puts its compiled loop here, which this package does not know.
_runners: list[Callable[[Recurrence, Sequence[Tensor]], list[Tensor]]] = [Recurrence.run]


def run(recurrence: Recurrence, given: Sequence[Tensor]) -> list[Tensor]:
    """:meth:`Recurrence.run`, by compiled code where there is some."""
    return _runners[-1](recurrence, given)


def run_by(runner: Callable[[Recurrence, Sequence[Tensor]], list[Tensor]]) -> None:
    """Have all recurrences run by this."""
    _runners.append(runner)
