"""No step of training waits for a GPU: what brings a number to Python is in a list, with the reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pyro_nflows import ELBO, IWAE, flows
from pyro_nflows.engine import Inputs, Program
from pyro_nflows.engine.runners import Eager
from pyro_nflows.inference.elbo import Gradient
from pyro_nflows.layers import TriangularAffine
from pyro_nflows.layers.base import Chain
from tests import pretend_device

PACKAGE = Path(__file__).parent.parent / "pyro_nflows"
#: What a step consists of; ``engine/native`` is for the processor alone.
PARTS = ["engine/*.py", "objectives/*.py", "layers/*.py", "transformers.py"]
#: Methods that bring numbers of a tensor to Python, and functions that do so with a tensor.
METHODS, FUNCTIONS = {"cpu", "numpy", "item", "tolist"}, {"float", "int", "bool"}

PYTHON = "a number or a name that Python has already"
BLOCK = "once a block of steps"
ROUND = "once a round or less"
MADE = "when a layer is made"
RECORDED = "when a step is recorded or compared, once"
OWN_OPTIMISER = "the user's own optimiser is Python, step by step"
PROCESSES = "several processes share a step, on processors"
REASONS = {
    "engine/backends.py:_is_close": RECORDED,
    "engine/cost.py:Cost.is_known": PYTHON,
    "engine/cost.py:Cost.rows_in": PYTHON,
    "engine/course.py:Course._is_astray": BLOCK,
    "engine/course.py:Course.look": BLOCK,
    "engine/course.py:_noise": BLOCK,
    "engine/course.py:look_at": BLOCK,
    "engine/density_gradient.py:DensityGradient._curved": ROUND,
    "engine/given.py:schedule_of": PYTHON,
    "engine/gradient_times.py:GradientTimes.num_at_once": PYTHON,
    "engine/history.py:History.__repr__": ROUND,
    "engine/history.py:History.add": ROUND,
    "engine/lazy.py:_parts": PYTHON,
    "engine/look.py:Watch.show": PYTHON,
    "engine/minibatch_steps.py:MinibatchSteps._switch.differs": RECORDED,
    "engine/optimised.py:Optimised._begin": OWN_OPTIMISER,
    "engine/optimised.py:Optimised.run": OWN_OPTIMISER,
    "engine/pace.py:Pace.parts": PYTHON,
    "engine/pace.py:portions": PYTHON,
    "engine/part_of_steps.py:PartOfSteps._move": PROCESSES,
    "engine/part_of_steps.py:PartOfSteps.run": PROCESSES,
    "engine/part_of_steps.py:_same": RECORDED,
    "engine/progress.py:Progress._count": PYTHON,
    "engine/progress.py:_has_bar": PYTHON,
    "engine/recurrences.py:_difference": RECORDED,
    "engine/replayed.py:_differs": RECORDED,
    "engine/rounding.py:Rounding._is_needed": ROUND,
    "engine/row_ratios.py:RowRatios._example": RECORDED,
    "engine/resting.py:is_settled": BLOCK,
    "engine/resting.py:tail_of": PYTHON,
    "engine/team.py:Team.draws": PROCESSES,
    "engine/trainer.py:Trainer._resume": PYTHON,
    "engine/trainer.py:Trainer._steps": BLOCK,
    "engine/trainer.py:_stream": ROUND,
    "layers/activation.py:FlowifiedActivation.__init__": MADE,
    "layers/annealed.py:Hamiltonian.__init__": MADE,
    "layers/low_rank_affine.py:LowRankAffine.fan_in": PYTHON,
    "layers/lu_linear.py:LULinear.__init__": MADE,
    "layers/permutation.py:Permutation.__init__": MADE,
    "layers/plate_affine.py:_is_ordered": MADE,
    "layers/plate_shear.py:PlateShear._moved": PYTHON,
    "layers/row_coupling.py:RowCoupling.forward": PYTHON,
    "layers/row_coupling.py:RowCoupling.inverse": PYTHON,
    "layers/row_coupling.py:RowCoupling.transport": PYTHON,
    "layers/shapes.py:expanded": MADE,
    "layers/sparse_affine.py:Blocks.fan_in": PYTHON,
    "objectives/covering.py:Covering.weighs": ROUND,
    "objectives/draws.py:even_noise": ROUND,
}


def numbers_in(path: Path) -> Iterator[str]:
    """Functions in which numbers may go from a tensor to Python."""

    def visit(node: ast.AST, name: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inside = name
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inside = f"{name}.{child.name}".lstrip(".")
            if isinstance(child, ast.Call) and brings_a_number(child):
                yield f"{path.relative_to(PACKAGE).as_posix()}:{name}"
            yield from visit(child, inside)

    return visit(ast.parse(path.read_text(encoding="utf-8")), "")


def brings_a_number(call: ast.Call) -> bool:
    called = call.func
    if isinstance(called, ast.Attribute):
        return called.attr in METHODS
    of_something = bool(call.args) and not isinstance(call.args[0], ast.Constant)
    return isinstance(called, ast.Name) and called.id in FUNCTIONS and of_something


@pytest.mark.parametrize("part", PARTS)
def test_what_brings_numbers_to_python_is_listed_with_the_reason(part: str) -> None:
    found = {name for path in PACKAGE.glob(part) for name in numbers_in(path)}
    # A CUDA graph is made once and compared once, by the module that makes it.
    assert {name for name in found - REASONS.keys() if not name.startswith("engine/graphs.py")} == set()


def test_no_reason_is_for_what_is_no_more() -> None:
    assert (
        REASONS.keys() - {name for part in PARTS for path in PACKAGE.glob(part) for name in numbers_in(path)} == set()
    )


def target(z: torch.Tensor) -> torch.Tensor:
    return -0.5 * (z - 1).square().sum(-1)


@pytest.mark.skipif(not pretend_device.POSSIBLE, reason="this torch takes no backend written in Python")
@pytest.mark.parametrize(
    ("objective", "gradient"), [(ELBO(), "path"), (ELBO(), "total"), (IWAE(), "dreg")], ids=["path", "total", "dreg"]
)
def test_a_step_asks_the_device_for_nothing(objective: ELBO, gradient: str) -> None:
    waits = []
    with pretend_device.pretended():
        layer = Chain(
            flows.spline(3, 2, (4,)), flows.cif(3, lambda dim: flows.realnvp(dim, 2, (4,))), TriangularAffine(3)
        )
        runner = Eager(program := Program(target, layer, objective, Gradient(gradient), 4))
        for num in (1, 3):
            noise = torch.randn(num, program.num_particles, program.noise_width)
            given = Inputs(noise, torch.full((num,), 1e-2), torch.ones(num), torch.zeros(num))
            with pretend_device.transfers() as counted:
                runner.run(program.init(), given)
            waits.append(sum(counted.values()))
    assert waits[0] == waits[1]
