"""Solving with triangles that a batch has in common is what torch's own solver gives."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.autograd import forward_ad, gradcheck

from pyro_nflows import AutoFlow
from pyro_nflows.engine.tape import Tape
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.triangles import SharedSolve, solve_triangular

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


def given(*shape: int) -> torch.Tensor:
    """Well-conditioned matrices, whose other half is not read."""
    return 3 * torch.eye(shape[-1], dtype=torch.float64) + torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("unitriangular", [False, True])
@pytest.mark.parametrize("upper", [False, True])
def test_the_derivatives_of_the_shared_solve_are_right_both_ways(upper: bool, unitriangular: bool) -> None:
    torch.manual_seed(0)
    for shapes in [((4, 4), (4, 2)), ((1, 4, 4), (3, 4, 2)), ((3, 4, 4), (4, 1))]:
        parts = [part.requires_grad_() for part in (given(*shapes[0]), torch.randn(*shapes[1], dtype=torch.float64))]

        def solved(triangle: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return SharedSolve.apply(triangle, b, upper, unitriangular)

        assert gradcheck(solved, parts)
        assert torch.autograd.gradgradcheck(solved, parts)
        theirs = torch.linalg.solve_triangular(*parts, upper=upper, unitriangular=unitriangular)
        torch.testing.assert_close(solved(*parts), theirs)


@pytest.mark.parametrize(
    ("dims", "shapes"),
    [
        ((None, 0), ((4, 4), (5, 4, 2))),
        ((None, 1), ((1, 4, 4), (1, 5, 4, 1))),
        ((0, 0), ((5, 4, 4), (5, 4, 2))),
        ((0, None), ((5, 4, 4), (4, 2))),
        ((1, 0), ((4, 5, 4), (5, 3, 4, 1))),
    ],
)
def test_under_vmap_the_shared_solve_is_torchs_row_by_row(dims, shapes) -> None:
    torch.manual_seed(0)
    triangle, b = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    eye = 3 * torch.eye(4, dtype=torch.float64)

    def ours(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return SharedSolve.apply(a + eye, b, False, False)

    def theirs(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve_triangular(a + eye, b, upper=False)

    torch.testing.assert_close(torch.vmap(ours, dims)(triangle, b), torch.vmap(theirs, dims)(triangle, b))

    def slopes(solve: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.func.grad(lambda *parts: torch.vmap(solve, dims)(*parts).sin().sum(), (0, 1))(triangle, b)

    torch.testing.assert_close(slopes(ours), slopes(theirs))
    twice = torch.stack([b, 2 * b])
    nested = [torch.vmap(torch.vmap(f, dims), (None, 0))(triangle, twice) for f in (ours, theirs)]
    torch.testing.assert_close(*nested)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")  # torch's own, forward
@pytest.mark.parametrize("moving", [(True, True), (True, False), (False, True)])
def test_the_shared_solve_follows_ways_forward(moving: tuple[bool, bool]) -> None:
    """Against differences."""
    torch.manual_seed(0)
    parts = given(4, 4), torch.randn(4, 2, dtype=torch.float64)
    ways = [torch.randn_like(part) * moves for part, moves in zip(parts, moving)]

    def solved(step: float) -> torch.Tensor:
        return SharedSolve.apply(*(part + step * way for part, way in zip(parts, ways)), True, False)

    expected = (solved(1e-6) - solved(-1e-6)) / 2e-6
    with forward_ad.dual_level():
        both = [forward_ad.make_dual(p, way) if moves else p for p, way, moves in zip(parts, ways, moving)]
        found = forward_ad.unpack_dual(SharedSolve.apply(*both, True, False)).tangent
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_density_of_many_draws_solves_once_with_the_covariance_they_share() -> None:
    """In ``LogJoint``, whose draws go through ``torch.vmap``."""

    def model(tril: torch.Tensor) -> None:
        pyro.sample("x", dist.MultivariateNormal(tril.new_zeros(6), scale_tril=tril))

    torch.manual_seed(0)
    guide, tril = AutoFlow(model), given(6, 6).tril()
    guide.set_up((tril,), {})
    joint = LogJoint(BoundModel(model, (tril,)), guide.latents)
    z = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    expected = torch.distributions.MultivariateNormal(tril.new_zeros(6), scale_tril=tril).log_prob(z)
    torch.testing.assert_close(joint(z), expected)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), z)[0] for value in (joint(z), expected)))
