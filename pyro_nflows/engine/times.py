"""What a round has time for, where time is limited: a step at all, a recording of it, a look which threads are fastest.

A recording that alone takes as long as the whole round is of no use: a few steps by the model's own Python are better.
And where not even a few of these would end in time, training is over.
"""

import time
from collections.abc import Sequence

from torch import Tensor

from ..layers.base import Layer
from .backends import prepare
from .budget import Budget
from .cost import GRADIENT, DrawCosts
from .optimised import Choice, optimised
from .program import Inputs, Program
from .round import Round
from .runners import Engine, Runner
from .shared import Shared
from .team import Team
from .threads import fastest_threads

#: Steps that a round has to have time for.
FEWEST = 3
#: A recording that is compared with the model's own Python takes about so many steps of that, and the share of a
#: round's time that it may take.
RECORDING, SHARE = 20, 0.4
#: Steps by which the number of threads is chosen, and the share of a round's time that these may take.
TRIALS, SHARE_OF_TRIALS = 24, 0.05


class Times:
    """What there is time for.

    :param costs: what draws of layers take.

    Example::

        >>> from pyro_nflows.layers import LocScale
        >>> times = Times(DrawCosts(lambda z: -z.square().sum(-1)))
        >>> times.has_step(LocScale(2), 64, 1)  # without a limit
        True
        >>> times.budget = Budget(1e-9)
        >>> times.has_step(LocScale(2), 64, 1)
        False
    """

    def __init__(self, costs: DrawCosts):
        self.costs, self.budget = costs, Budget()

    def has_step(self, layer: Layer, num_particles: int, num_layers: int) -> bool:
        """Whether a few steps of so many layers will end in training's time."""
        if not self.budget.is_limited:
            return True
        seconds = FEWEST * num_layers * self._step(layer, num_particles)
        return time.perf_counter() + seconds < min(self.budget.until, self.budget.deadline)

    def ask(self, layers: Sequence[Layer], plan: Round) -> None:
        """End training where a round has no time for its first steps; of a piece of work, end that.

        :raises OutOfTime: in a piece of work.
        """
        if self.budget.is_over or self.has_step(layers[0], plan.num_particles, len(layers)):
            return
        self.budget.refuse()
        self.budget.give_up()

    def prepared(
        self,
        program: Program,
        engine: Engine | None,
        plan: Round,
        example: Inputs,
        data: Sequence[Tensor],
        optim: Choice | None = None,
        team: Team | None = None,
    ) -> Runner:
        """A runner of a round's steps: by the engine asked for, or the fastest that there is time to get ready.

        :param program: the step.
        :param engine: that was asked for, or None.
        :param plan: the round.
        :param example: inputs of some steps.
        :param data: see :func:`~pyro_nflows.engine.backends.prepare`.
        :param optim: in the place of Adam.
        :param team: processes that share steps.
        """
        step = left = 0.0
        if self.budget.is_limited:
            step = self._step(program.layer, plan.num_particles)
            left = min(self.budget.after(plan.share), self.budget.deadline) - time.perf_counter()
            if RECORDING * step > SHARE * left:
                engine = Engine.EAGER
        shared = None if team is None or optim is not None else team.prepare(program, engine)
        if shared is not None:
            runner: Runner = shared
        elif optim is not None:
            runner = optimised(program, optim, engine, example, data)
        else:
            runner = prepare(program, engine, example, data, waits=not self.budget.is_limited)
        has_time = TRIALS * step <= SHARE_OF_TRIALS * left
        if has_time and runner.engine is not Engine.COMPILED and not isinstance(runner, Shared):
            runner.num_threads = fastest_threads(lambda: runner.run(program.init(), example))
        return runner

    def _step(self, layer: Layer, num_particles: int) -> float:
        """Seconds of a step of one layer."""
        return GRADIENT * self.costs.at(layer, self.budget.seconds).of(num_particles)
