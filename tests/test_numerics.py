"""Stable where they should be, exact where they can be."""

import pytest
import torch
from torch.distributions import Normal
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_nflows.numerics import (
    above_minus_one,
    monotone_root,
    normal_log_prob,
    positive,
    soft_bound,
    standard_normal_log_prob,
)
from pyro_nflows.system import gradients
from pyro_nflows.system.gradients import pullback, pulled
from pyro_nflows.system.recorder import Recorder

pytestmark = pytest.mark.on_devices

EXTREMES = torch.tensor([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4], dtype=torch.float64)


def test_normal_densities_are_those_of_torch():
    x, loc, log_scale = torch.randn(5, 3), torch.randn(3), torch.randn(5, 3)
    assert torch.allclose(standard_normal_log_prob(x), Normal(0.0, 1.0).log_prob(x).sum(-1))
    assert torch.allclose(normal_log_prob(x, loc, log_scale), Normal(loc, log_scale.exp()).log_prob(x).sum(-1))


def test_a_normal_density_over_no_coordinates_is_one():
    assert standard_normal_log_prob(torch.empty(4, 0)).tolist() == [0.0] * 4


def test_soft_bound_is_bounded_odd_and_the_identity_near_zero():
    x = EXTREMES.clone().requires_grad_()
    y = soft_bound(x, 2.0)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.abs().max() <= 2
    assert torch.equal(y, -soft_bound(-x, 2.0))
    assert (y[3], grad[3]) == (0, 1)


@pytest.mark.parametrize(("function", "least", "at_zero"), [(positive, 0.0, 1.0), (above_minus_one, -1.0, 0.0)])
def test_one_sided_maps_are_monotone_and_finite_to_the_extremes(function, least, at_zero):
    x = EXTREMES.clone().requires_grad_()
    y = function(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert grad.isfinite().all()
    assert (y.diff() >= 0).all()
    assert y.min() >= least
    assert y[3].item() == pytest.approx(at_zero, abs=1e-15)


def test_above_minus_one_is_zero_at_zero_in_every_precision():
    for dtype in (torch.float32, torch.float64):
        assert above_minus_one(torch.zeros((), dtype=dtype)) == 0


def test_pullback_is_autograd():
    a, b, up = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True), torch.randn(4)
    value, pull = pullback(lambda a, b: a.sin() * b, a, b)
    expected = torch.autograd.grad((a.sin() * b) @ up, [a, b])
    assert torch.allclose(value, a.sin() * b)
    assert all(torch.allclose(x, y) for x, y in zip(pull(up), expected))


FUNCTIONS = {
    "linear": lambda a: (2 * a - 1, torch.full_like(a, 2.0)),
    "flat at the root": lambda a: (a**3, 3 * a**2),
    "steep": lambda a: (torch.expm1(10 * a) - 5, 10 * torch.exp(10 * a)),
    "a step": lambda a: (torch.tanh(200 * (a - 0.3)), 200 / torch.cosh(200 * (a - 0.3)) ** 2),
    "Newton would run away": lambda a: (torch.atan(5 * (a + 2)), 5 / (1 + 25 * (a + 2) ** 2)),
    "a nearly flat hinge": lambda a: (a - 0.9999 * torch.tanh(a) - 0.1, 1 - 0.9999 / torch.cosh(a) ** 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_root_is_a_root(name):
    function = FUNCTIONS[name]
    root = monotone_root(function, torch.full((), -3.0), torch.full((), 4.0))
    assert abs(function(root)[0]) < 1e-9


def test_a_root_may_lie_at_the_end_of_its_bracket():
    for end in (-1.0, 2.0):
        root = monotone_root(lambda a, end=end: (a - end, torch.ones_like(a)), torch.tensor(-1.0), torch.tensor(2.0))
        assert root == pytest.approx(end, abs=1e-12)


def root_of(theta: torch.Tensor) -> torch.Tensor:
    """The root of a^3 + a = theta."""
    bound = 1 + theta.abs()
    return monotone_root(lambda a: (a**3 + a - theta, 3 * a**2 + 1), -bound, bound)


def test_the_derivative_of_a_root_is_the_implicit_one():
    theta = torch.linspace(-30, 30, 7, requires_grad=True)
    root = root_of(theta)
    (grad,) = torch.autograd.grad(root.sum(), theta)
    assert torch.allclose(grad, 1 / (3 * root**2 + 1), atol=1e-9)


def test_roots_are_elementwise_and_keep_the_precision():
    theta = torch.linspace(-30, 30, 12).reshape(3, 4)
    expected = torch.stack([root_of(t) for t in theta.flatten()]).reshape(3, 4)
    assert torch.allclose(root_of(theta), expected)
    assert root_of(theta.float()).dtype is torch.float32
    assert torch.allclose(root_of(theta.float()).double(), expected, atol=1e-5)


def test_roots_run_under_vmap_and_trace():
    theta = torch.linspace(-2, 2, 5)
    assert torch.allclose(torch.func.vmap(root_of)(theta), root_of(theta))
    assert torch.allclose(make_fx(root_of)(theta)(10 * theta), root_of(10 * theta))
    slope = torch.func.vmap(torch.func.grad(root_of))(theta)
    assert torch.allclose(slope, 1 / (3 * root_of(theta) ** 2 + 1))


@pytest.mark.parametrize("is_there", [True, False])
def test_rows_times_a_jacobian_are_torchs(monkeypatch, is_there):
    """Also by a torch whose way of running a graph is another one."""
    if not is_there:
        monkeypatch.setattr(gradients, "_engine_run_backward", None)
    x, matrix = torch.randn(3, requires_grad=True), torch.randn(4, 3)
    rows = torch.randn(5, 4)
    found = pulled((matrix @ x).sin(), x, rows)
    jacobian = torch.autograd.functional.jacobian(lambda x: (matrix @ x).sin(), x)
    assert torch.allclose(found, rows @ jacobian, atol=1e-6)


def test_rows_times_a_jacobian_are_computed_at_once():
    """As many operations for fifty rows as for five: one after the other, a Hessian of a long loop takes minutes."""

    def num_operations(num_rows: int) -> int:
        x, rows = torch.randn(50, requires_grad=True), torch.randn(num_rows, 50)
        (gradient,) = torch.autograd.grad(x.exp().cumsum(0).log().sum(), x, create_graph=True)
        with Recorder([x, rows], [], pure=True) as recorder:
            pulled(gradient, x, rows)
        return len(recorder.calls)

    assert 0 < num_operations(50) == num_operations(5)
