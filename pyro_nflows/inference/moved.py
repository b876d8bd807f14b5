r"""A guide whose blocks move mass to the posterior, one after the other (:class:`~pyro_nflows.AutoJKO`)."""

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..engine import Trainer
from ..flows.jko import Blocks
from ..flows.whitened import Whitened
from ..layers.base import Layer
from ..numerics import LogDensity, quasi_normal, standard_normal_log_prob
from ..system.memory import is_out_of_memory
from .elbo import ELBO
from .mass import Mass
from .plan import Plan
from .transport import Mover, Steps

#: Points on which a block is trained, and on which it is decided whether it is taken.
NUM_TRAINED, NUM_HELD_OUT = 20_000, 5000


def can_move(trainer: Trainer, layer: Whitened, plan: Plan) -> bool:
    """Whether a flow is one of fresh blocks, and the model one that they can be trained on one by one."""
    flow = layer.flow
    if not isinstance(flow, Blocks) or flow.inverted or trainer.leaves or trainer.all_rows is not None:
        return False
    if plan.optim is not None:  # blocks are trained by Adam
        return False
    return type(plan.objective) is ELBO and not any(part.annealing for part in plan.schedule.rounds) and flow.is_fresh()


def move(trainer: Trainer, layer: Whitened, plan: Plan) -> None:
    """Train a flow's blocks in whitened coordinates, up to one that moves nothing.

    :param trainer: has the model.
    :param layer: its flow is trained, its affine end stays.
    :param plan: its number of steps, if it has one, is that of all blocks.
    """
    flow, history = layer.flow, trainer.history
    if not isinstance(flow, Blocks):
        raise TypeError(f"move: expected a flow of blocks, got {type(flow).__name__}")
    blocks, end = flow.in_order(), copy.deepcopy(layer.end).requires_grad_(False)
    steps = _steps(plan, len(blocks))

    def show(number: int, step: int, elbo: float) -> None:
        trainer.watch.show(f"block {number}", step, steps.num_steps, elbo)

    mover = Mover(
        functools.partial(_whitened, trainer.log_joint, end),
        steps,
        data=trainer.data,
        is_over=trainer.is_over,
        show=show,
        journal=trainer.journal,
        progress=trainer.progress,
    )
    mass, held_out = (_start(layer, num) for num in (NUM_TRAINED, NUM_HELD_OUT))
    trainer.progress.end_phase(then="weighing draws")
    try:
        mover.move(blocks, mass, held_out, flow.step_size)
    except (KeyboardInterrupt, MemoryError, RuntimeError) as error:
        lacking = is_out_of_memory(error)
        if not (lacking or isinstance(error, KeyboardInterrupt)):
            raise
        trainer.interrupt()
        history.out_of_memory |= lacking
    found = mover.movement
    for elbos in found.elbos:
        history.elbos.append(elbos.cpu())
        history.rounds.append(history.num_steps)
    with torch.no_grad():
        history.path, history.bounds = [(layer.end(cloud)[0],) for cloud in found.clouds], found.bounds
    if mover.runner is not None:
        history.note(mover.runner)
        mover.runner.cancel()


def _steps(plan: Plan, num_blocks: int) -> Steps:
    """Of each block."""
    given, steps = plan.objective.num_particles, Steps(engine=plan.engine)
    num_steps, batch_size = steps.num_steps, given if given > 1 else steps.batch_size
    if not plan.schedule.is_default:
        num_steps = max(1, sum(part.num_steps for part in plan.schedule.rounds) // num_blocks)
    return Steps(num_steps, batch_size, engine=plan.engine)


def _start(layer: Layer, num: int) -> Mass:
    """Points of the base: the mass in whitened coordinates before anything has moved it."""
    like, dim = next(layer.parameters()), layer.input_dim
    seed = int(torch.randint(2**31, ()))
    few = dim <= torch.quasirandom.SobolEngine.MAXDIM
    x = (quasi_normal(num, dim, seed)[torch.randperm(num)] if few else torch.randn(num, dim)).to(like)
    return Mass(x, standard_normal_log_prob(x))


def _whitened(log_joint: Callable[[Tensor], Tensor] | LogDensity, end: Layer, x: Tensor) -> Tensor:
    """The log joint in whitened coordinates."""
    z, log_weight = end(x)
    return log_joint(z) + log_weight
