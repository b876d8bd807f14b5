r"""Mass moved by blocks of a flow, one after the other: steps of the JKO scheme (:func:`~pyro_nflows.flows.jko`).

The mass is a cloud of points with their log densities. A block :math:`T` is trained on it with

.. math:: \min_T\; \mathrm E_x \Bigl[ \log q(x) - \log w_T(x) - \log p(T(x))
    + \tfrac{1}{2h} \lVert T(x) - x \rVert^2 \Bigr],

and the cloud moves on. Whether a block is taken is decided on points that it was not trained on: their divergence has
to be lower than it was, beyond its noise; else the block goes back to the identity, and the mass has arrived.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..engine import Engine, Inputs, Journal, Program, Runner, prepare
from ..engine.progress import MEASURE, Progress
from ..engine.threads import fastest_threads, restored_threads
from ..layers.base import Layer
from ..nets.mlp import start_wide
from ..numerics import LogDensity, finite_rows
from ..objectives.base import Gradient, Objective
from ..system.randomness import forked
from .mark import put
from .mass import EXACT, InexactBlockWarning, Mass, inexactness, is_better, mean

#: Steps between looks at what was reached.
PART = 50
#: A step of the scheme that is no short one: it takes a Gaussian to another of unit covariance.
FULL = 1.0
#: A step of the scheme is at most so many times as long as the last one.
GROWTH = 2.0
#: Points whose way is kept.
NUM_TRACKED = 500


@dataclass(frozen=True)
class Steps:
    """How a block is trained.

    :param num_steps: of Adam.
    :param batch_size: points a step.
    :param lr: the first step size of Adam; it falls to zero along a cosine.
    :param engine: what runs the steps; None for the fastest.
    """

    num_steps: int = 1000
    batch_size: int = 512
    lr: float = 1e-2
    engine: Engine | None = None


@dataclass
class Movement:
    """What became of the mass, block by block.

    :param clouds: some points at the start and after each block.
    :param bounds: the mean log ratio at the start and after each block, on points that no block was trained on.
    :param distances: by each block, the root of the mean squared distance.
    :param step_sizes: :math:`h` of each block.
    :param elbos: of every step of training.
    :param arrived: whether a further block would have moved nothing.
    """

    clouds: list[Tensor]
    bounds: list[float]
    distances: list[float] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)
    elbos: list[Tensor] = field(default_factory=list)
    arrived: bool = False

    def next_step_size(self, first: float) -> float:
        """:math:`h` for the next block, so that it moves the mass about as far as the first one."""
        if not self.distances:
            return first
        shorter = self.distances[0] / max(self.distances[-1], 1e-12)
        return self.step_sizes[-1] * min(GROWTH, max(1.0, shorter))


class Transport(Program):
    r"""The step that trains a block on a cloud.

    Its rows are points with their log density and the block's noise; its share is :math:`1 / 2h`.

    :param target: ``(K, D) -> (K,)``.
    :param block: moves points.
    :param batch_size: points a step.
    """

    def __init__(self, target: LogDensity, block: Layer, batch_size: int):
        super().__init__(target, block, Objective(), Gradient.TOTAL, batch_size, max_norm=5.0)

    @property
    def noise_width(self) -> int:
        """A point, its log density and the block's noise."""
        return self.layer.input_dim + 1 + self.layer.noise_dim

    def loss(self, params: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The divergence and what the way costs; and the divergence alone."""
        dim = self.layer.input_dim
        x, log_q, noise = inputs.noise[:, :dim], inputs.noise[:, dim], inputs.noise[:, dim + 1 :]
        y, log_weight = self._call(params, lambda block: block(x, noise if block.noise_dim else None))
        to = y * 1.0
        if to.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(to):
            to.register_hook(finite_rows)
        gain = self.log_joint(to) + log_weight - log_q
        good = gain.detach().isfinite()
        cost = inputs.share * (y - x).square().sum(-1)
        elbo = torch.where(good, gain, 0.0).sum() / good.sum()
        return cost.mean() - elbo, -elbo.detach()


class Mover:
    """Moves mass by one block after the other.

    :param target: log density that the mass moves to, ``(K, D) -> (K,)``.
    :param steps: how blocks are trained.
    :param data: tensors that the target reads besides.
    :param is_over: asked between parts of the steps: whether to end.
    :param show: is told the block's number, the step and the bound.
    :param journal: keeps what blocks came to.
    :param progress: shows how it goes on.
    :param measure: what the bound is called there.
    """

    def __init__(
        self,
        target: LogDensity,
        steps: Steps,
        *,
        data: Sequence[Tensor] = (),
        is_over: Callable[[], bool] = lambda: False,
        show: Callable[[int, int, float], None] = lambda number, step, elbo: None,
        journal: Journal | None = None,
        progress: Progress | None = None,
        measure: str = MEASURE,
    ):
        self.target, self.steps, self.data, self.is_over, self.show = target, steps, data, is_over, show
        self.journal, self.progress = journal or Journal(), progress or Progress(False)
        self.measure = measure
        self.runner: Runner | None = None
        #: Whether the last block was not taken because its log-determinant was wrong.
        self.inexact = False
        #: What has become of the mass so far.
        self.movement = Movement([], [])

    def move(self, blocks: Sequence[Layer], mass: Mass, held_out: Mass, step_size: float) -> Movement:
        """Train blocks until one moves nothing, or there are no more; those that are not taken are the identity.

        :param blocks: in order, each the identity.
        :param mass: blocks are trained on it.
        :param held_out: decides whether a block is taken.
        :param step_size: :math:`h` of the first block.
        """
        movement = self.movement = Movement([held_out.x[:NUM_TRACKED]], [mean(held_out.log_ratio(self.target))])
        with restored_threads():
            for number, block in enumerate(blocks, 1):
                start_wide(block)
                h = movement.next_step_size(step_size)
                ahead = self._moved(block, mass, held_out, h, number)
                while (
                    ahead is None and h < FULL and not self.inexact and not self.is_over()
                ):  # it may have been too short to be seen
                    h = min(FULL, 2 * GROWTH * h)
                    ahead = self._moved(block, mass, held_out, h, number, again=True)
                if ahead is None:
                    movement.arrived = not (self.is_over() or self.inexact)
                    break
                movement.distances.append(float((ahead.x - held_out.x).square().sum(-1).mean().sqrt()))
                movement.step_sizes.append(h)
                movement.clouds.append(ahead.x[:NUM_TRACKED])
                movement.bounds.append(mean(ahead.log_ratio(self.target)))
                mass, held_out = mass.through(block), ahead
                if self.is_over():
                    break
        return movement

    def _moved(
        self, block: Layer, mass: Mass, held_out: Mass, h: float, number: int, again: bool = False
    ) -> Mass | None:
        """Held-out mass behind a block that is now trained; None, and the block as it was, if that is no better."""
        title = f"block {number}" + (" again, by a longer step" if again else "")
        with self.progress.phase(title, self.steps.num_steps, measure=self.measure) as phase:
            ahead = self._tried(block, mass, held_out, h, number)
            phase.title += "" if ahead is not None else ", not kept"
        return ahead

    def _tried(self, block: Layer, mass: Mass, held_out: Mass, h: float, number: int) -> Mass | None:
        """The same, without showing it."""
        identity = [parameter.detach().clone() for parameter in block.parameters()]
        trained: list[tuple[Any, ...]] = []

        def train() -> tuple[Any, ...] | None:
            elbos = self._train(block, mass, h, number)
            trained.append((elbos, [parameter.detach().clone() for parameter in block.parameters()]))
            return None if self.is_over() else trained[0]  # a run that is resumed may have more time for it

        elbos, params = self.journal.step(f"block {number}", train) or trained[0]
        self.movement.elbos.append(elbos)
        with torch.no_grad():
            put(list(block.parameters()), params)
            ahead = held_out.through(block)
            off = inexactness(block, held_out.x)
            self.inexact = off > EXACT
            if self.inexact:
                warnings.warn(
                    f"block {number}: its log-determinant is off by {off:.2g} nats on average, so it is not taken; "
                    "give flows.jko more num_steps, which are the solver's, or blocks that are exact",
                    InexactBlockWarning,
                    stacklevel=2,
                )
            elif is_better(held_out.log_ratio(self.target), ahead.log_ratio(self.target)):
                return ahead
            put(list(block.parameters()), identity)
        return None

    def _train(self, block: Layer, mass: Mass, h: float, number: int) -> Tensor:
        """The bounds of the steps."""
        program = Transport(self.target, block, self.steps.batch_size)
        state, elbos, done = program.init(), [mass.log_q[:0]], 0
        for inputs in self._inputs(program, mass, h):
            if self.is_over():
                break
            runner = self._runner(program, inputs)
            state, losses = runner.run(state, inputs)
            elbos.append(-losses.detach().clone())
            done += len(losses)
            self.progress.advance(len(losses), mean(elbos[-1]))
            self.show(number, done, mean(elbos[-1]))
        program.write(state)
        return torch.cat(elbos)

    def _inputs(self, program: Transport, mass: Mass, h: float) -> Iterable[Inputs]:
        """Points and step sizes of each part of the steps."""
        steps, block = self.steps, program.layer
        rows = torch.cat([mass.x, mass.log_q[:, None]], -1)
        turn = torch.arange(steps.num_steps).to(rows) / steps.num_steps * math.pi
        for rates in (0.5 * steps.lr * (1 + turn.cos())).split(PART):
            chosen = rows[torch.randint(len(rows), (len(rates), steps.batch_size), device=rows.device)]
            noise = torch.randn(*chosen.shape[:-1], block.noise_dim).to(rows)
            share = torch.full_like(rates, 0.5 / h)
            yield Inputs(torch.cat([chosen, noise], -1), rates, torch.ones_like(rates), share)

    def _runner(self, program: Transport, inputs: Inputs) -> Runner:
        """What runs the steps of every block."""
        if self.runner is None:
            few = Inputs(*(part[:3] for part in inputs))
            with forked():
                runner = self.runner = prepare(program, self.steps.engine, few, self.data)
                if runner.engine is not Engine.COMPILED:
                    runner.num_threads = fastest_threads(lambda: runner.run(program.init(), few))
            runner.expect(3 * self.steps.num_steps)
            torch.set_num_threads(runner.num_threads or torch.get_num_threads())
        return self.runner
