r"""Ways to run a program's step: eagerly, or recorded once and replayed without the model's Python."""

import enum
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .program import Inputs, Program, State
from .tape import Tape

Step = Callable[[State, Inputs], tuple[State, Tensor]]


class Engine(str, enum.Enum):
    """How training steps are run."""

    EAGER = "eager"
    TRACED = "traced"


class EngineWarning(UserWarning):
    """A faster engine could not run this model, so a slower one does; results are the same."""


def compile_step(program: Program, engine: Engine | None, inputs: Inputs) -> tuple[Step, Engine]:
    """The program's step on the engine asked for, or on the fastest that reproduces the eager step.

    :param program: the program.
    :param engine: an engine, or None for the fastest.
    :param inputs: example inputs, on which the traced step is checked against the eager one.
    :return: the step, and the engine it runs on.
    """
    if engine is Engine.EAGER:
        return program.step, Engine.EAGER
    try:
        step = trace(program, inputs)
        reason = _difference(program, step, inputs)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
    if reason is None:
        return step, Engine.TRACED
    warnings.warn(
        f"the traced engine cannot run this model ({reason}); using the eager engine, which is slower. "
        "Python branches on values and Python or NumPy random numbers are the usual cause",
        EngineWarning,
        stacklevel=3,
    )
    return program.step, Engine.EAGER


def trace(program: Program, inputs: Inputs) -> Step:
    """The step recorded once and replayed without Python."""
    state = program.init()

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        after, loss = program.step(State(*tensors[: len(state)]), Inputs(*tensors[len(state) :]))
        return *after, loss

    tape = Tape(flat, [*state, *inputs])

    @torch.inference_mode()
    def step(state: State, inputs: Inputs) -> tuple[State, Tensor]:
        *after, loss = tape.run([*state, *inputs])
        return State(*after), loss

    return step


def _difference(program: Program, step: Step, inputs: Inputs) -> str | None:
    """Why a traced step cannot be trusted: it differs from the eager one on other inputs."""
    state = program.init()
    fresh = inputs._replace(noise=0.5 * inputs.noise.flip(0))
    (eager_state, eager_loss), (traced_state, traced_loss) = (
        _seeded(run, state, fresh) for run in (program.step, step)
    )
    tolerance = 1e3 * torch.finfo(eager_loss.dtype).eps
    if not torch.allclose(traced_loss, eager_loss, rtol=tolerance, atol=tolerance, equal_nan=True):
        return f"its loss at fresh points is {traced_loss:.6g} rather than {eager_loss:.6g}"
    if not torch.allclose(traced_state.params, eager_state.params, rtol=1e-3, atol=1e-3, equal_nan=True):
        return "its gradient at fresh points differs from the model's"
    return None


def _seeded(run: Step, state: State, inputs: Inputs) -> tuple[State, Tensor]:
    """A few steps, and the last one's loss; the model's own random numbers, if any, are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(3):
            state, loss = run(state, inputs)
    return state, loss
