"""What the steps of a round are given: noise, and the schedule."""

from torch import Tensor

from .course import Course
from .program import Inputs, Program
from .resting import BLOCK, cooled
from .round import Round

#: Of every step of a round: the step size, the power of ``log p``, and the objective's share.
Schedule = tuple[Tensor, Tensor, Tensor]


def part_of(inputs: Inputs, part: slice, slowed: float = 1.0) -> Inputs:
    """Some of the steps, of which each may be slowed down."""
    given = Inputs(*(rows[part] for rows in inputs))
    return given if slowed == 1 else given._replace(step_size=slowed * given.step_size)


def schedule_of(plan: Round, share: float | Tensor, like: Tensor) -> Schedule:
    """The schedule of a round, in the type and on the device of a tensor."""
    return plan.step_sizes(like), plan.powers(like), like.new_full((plan.num_steps,), float(share))


def inputs_of(program: Program, schedule: Schedule, start: int, num: int) -> Inputs:
    """Noise and schedule of some steps."""
    noise = schedule[0].new_empty(num, program.num_particles, program.noise_width)
    for block in noise.split(BLOCK):
        block.normal_()
    return Inputs(noise, *(part[start : start + num] for part in schedule))


def own_inputs(course: Course, schedule: Schedule, start: int, num: int) -> Inputs:
    """A member's inputs, by its own random numbers and with steps of its own size."""
    schedule = cooled(schedule[0], course.cools_from), *schedule[1:]
    with course.stream:
        inputs = inputs_of(course.program, schedule, start, num)
    return inputs._replace(step_size=course.factor * inputs.step_size)
