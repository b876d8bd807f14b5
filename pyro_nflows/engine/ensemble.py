"""Fits that go side by side: they share code, and each has a state, random numbers, and maybe data of its own."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from torch import Tensor

from ..system.cores import num_cores
from ..system.randomness import generators, random_state, set_random_state
from .backends import Best
from .journal import Random
from .program import Inputs, Program, State
from .runners import Compiled, Runner
from .threads import threads_asked

#: Tensors that a member's recording reads in place of the runner's; None for the runner's own.
Data = Sequence[Tensor] | None


class Ensemble:
    """Members that run the same code: on threads, where it is compiled, since that needs no lock of Python's.

    :param runner: what runs one of them.
    :param programs: the members'.
    :param data: the members'.
    """

    def __init__(self, runner: Runner, programs: Sequence[Program], data: Sequence[Data]):
        self.runner, self.programs, self.data = runner, programs, data
        self._base: Runner | None = None
        self._members: list[Runner] = []

    def run(
        self, states: Sequence[State], inputs: Sequence[Inputs], which: Sequence[int] | None = None
    ) -> list[tuple[State, Tensor]]:
        """A block of steps for each member, or for some of them.

        :param which: their places among the members; all by default.
        """
        base = self.runner
        if isinstance(base, Best):
            base.switch(states[0])
            base = base.runner
        everyone = self._of(base)
        members = everyone if which is None else [everyone[i] for i in which]
        if not isinstance(base, Compiled) or len(members) == 1 or base.is_random:
            for member in members:
                if isinstance(member, Compiled):
                    member.memory.most = None
            return [member.run(state, given) for member, state, given in zip(members, states, inputs)]
        return _side_by_side(cast(list[Compiled], members), states, inputs)

    def _of(self, base: Runner) -> list[Runner]:
        """A runner for each, made anew only when the code has changed."""
        if base is not self._base:
            pairs = zip(self.programs, self.data)
            alone = len(self.programs) == 1 and self.data[0] is None
            self._base, self._members = base, [base] if alone else [base.bound(*pair) for pair in pairs]
        return self._members


def _side_by_side(
    members: Sequence[Compiled], states: Sequence[State], inputs: Sequence[Inputs]
) -> list[tuple[State, Tensor]]:
    """Each on a thread, and on its part of torch's; an interrupt, which only this thread is told of, ends them all."""
    num = min(len(members), num_cores())
    for member in members:
        member.memory.halted, member.memory.most = False, max(1, threads_asked() // num)
    with ThreadPoolExecutor(num) as pool:
        try:
            return list(pool.map(lambda member, state, given: member.run(state, given), members, states, inputs))
        except BaseException:
            for member in members:
                member.memory.halted = True
            raise


class Stream:
    """Random numbers of a member's own: within it, they are those that torch gives, on the processor and on GPUs.

    So what a member draws does not depend on how others fare.

    Example::

        >>> stream = Stream(0)
        >>> with stream:
        ...     first = torch.rand(1)
        >>> with Stream(0), torch.no_grad():
        ...     torch.rand(1) == first
        tensor([True])
    """

    def __init__(self, seed: int):
        self.seed, self.state = seed, cast(Random | None, None)

    def __enter__(self) -> "Stream":
        self._outside = random_state()
        if self.state is None:
            for generator in generators():
                generator.manual_seed(self.seed)
        else:
            set_random_state(self.state)
        return self

    def __exit__(self, *_: object) -> None:
        self.state = random_state()
        set_random_state(self._outside)
