"""Solving with triangles that a batch has in common is what torch's own solver gives."""

import pytest
import torch
from torch.autograd import gradcheck

from pyro_nflows.engine.tape import Tape
from pyro_nflows.triangles import solve_triangular

TRIANGLE = 2 * torch.eye(5, dtype=torch.float64) + 0.1 * torch.arange(25.0, dtype=torch.float64).reshape(5, 5)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        ((), (5, 2)),
        ((), (7, 5, 1)),
        ((1,), (7, 5, 3)),
        ((1, 1), (2, 7, 5, 1)),
        ((1,), (2, 7, 5, 2)),
        ((1, 7), (2, 1, 5, 1)),
        ((7, 1), (5, 1)),
        ((), (0, 5, 1)),
        ((), (3, 5, 0)),
    ],
)
def test_a_triangle_in_common_is_solved_as_torch_does(batch, shape, upper):
    b = torch.randn(shape)
    triangle = TRIANGLE.expand(*batch, 5, 5)
    ours = solve_triangular(triangle, b, upper=upper)
    expected = torch.linalg.solve_triangular(triangle, b, upper=upper)
    assert ours.shape == expected.shape
    assert ours.stride() == expected.stride() or 1 in expected.shape or not expected.numel()
    assert torch.allclose(ours, expected, rtol=1e-12)


def test_other_options_are_torchs_own():
    b = torch.randn(7, 2, 5)
    ours = solve_triangular(TRIANGLE, b, upper=True, left=False, unitriangular=True)
    expected = torch.linalg.solve_triangular(TRIANGLE, b, upper=True, left=False, unitriangular=True)
    assert torch.equal(ours, expected)


def test_its_derivatives_are_right():
    b = torch.randn(3, 5, 1).requires_grad_()
    triangle = (TRIANGLE.tril() / 5 + torch.eye(5)).requires_grad_()
    assert gradcheck(lambda a, x: solve_triangular(a[None], x, upper=False), (triangle, b))


def test_a_recording_solves_once_for_all_particles():
    """vmap gives each particle the triangle, and torch would copy it for each."""

    def solved(b):
        return [torch.func.vmap(lambda row: torch.linalg.solve_triangular(TRIANGLE, row[:, None], upper=False))(b)]

    tape, b = Tape(solved, [torch.zeros(7, 5)]), torch.randn(7, 5)
    seen = []
    (name,) = [name for name, value in tape._scope.items() if value is solve_triangular]
    tape._scope[name] = lambda *args, **kwargs: seen.append(args) or solve_triangular(*args, **kwargs)
    assert torch.allclose(tape.run([b])[0], solved(b)[0])
    assert len(seen) == 1
