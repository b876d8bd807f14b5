"""Element-wise maps: monotone, invertible, and with the slope that they say."""

import pytest
import torch

from pyro_nflows.transformers import Affine, RationalQuadratic, Shift, SinhArcsinh

pytestmark = pytest.mark.on_devices

TRANSFORMERS = [
    Shift(),
    Affine(),
    Affine(0.1),
    SinhArcsinh(),
    SinhArcsinh(0.5),
    RationalQuadratic(),
    RationalQuadratic(1, 2.0),
    RationalQuadratic(2, 1.0, 0.1),
    RationalQuadratic(30, 10.0),
]
SPLINES = TRANSFORMERS[5:]
every = pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
every_spline = pytest.mark.parametrize("transformer", SPLINES, ids=str)


def points(transformer, num_points=2000, size=2.0):
    x = torch.linspace(-12, 12, num_points)
    return x, (size * torch.randn(transformer.num_params)).expand(num_points, -1)


@every
def test_parameters_of_zero_are_the_identity(transformer):
    x, params = points(transformer)
    for function in (transformer.forward, transformer.inverse):
        y, log_slope = function(x, 0 * params)
        assert torch.allclose(y, x)
        assert torch.allclose(log_slope, torch.zeros_like(x), atol=1e-12)


@every
@pytest.mark.parametrize("size", [0.3, 3.0, 30.0])
def test_a_map_is_increasing_and_its_inverse_undoes_it(transformer, size):
    x, params = points(transformer, size=size)
    y, log_slope = transformer.forward(x, params)
    again, same = transformer.inverse(y, params)
    assert (y.diff() > 0).all()
    assert torch.allclose(again, x, atol=1e-7)
    assert torch.allclose(same, log_slope, atol=1e-5)


@every
def test_the_slope_is_autograds(transformer):
    x, params = points(transformer)
    x.requires_grad_()
    y, log_slope = transformer.forward(x, params)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(log_slope, slope.log(), atol=1e-10)


@every
def test_the_inverse_has_the_derivative_of_an_inverse(transformer):
    y, params = points(transformer)
    y.requires_grad_()
    x, log_slope = transformer.inverse(y, params)
    (slope,) = torch.autograd.grad(x.sum(), y)
    assert torch.allclose(slope, (-log_slope).exp(), rtol=1e-6)


@every
def test_single_precision_is_nearly_as_good(transformer):
    x, params = points(transformer, size=1.0)
    y, log_slope = transformer.forward(x.float(), params.float())
    expected, expected_slope = transformer.forward(x, params)
    again, _ = transformer.inverse(y, params.float())
    assert y.dtype is log_slope.dtype is again.dtype is torch.float32
    assert torch.allclose(y.double(), expected, atol=1e-4)
    assert torch.allclose(log_slope.double(), expected_slope, atol=1e-2)
    assert torch.allclose(again, x.float(), atol=1e-3)


@every
def test_extreme_parameters_stay_finite(transformer):
    x, params = points(transformer, size=1e4)
    params = params.clone().requires_grad_()
    y, log_slope = transformer.forward(x, params)
    (grad,) = torch.autograd.grad((y + log_slope).sum(), params)
    assert all(t.isfinite().all() for t in (y, log_slope, grad))


def test_an_affine_map_stretches_no_further_than_its_bound():
    _, log_slope = Affine(0.5).forward(torch.zeros(2), torch.tensor([[0.0, 1e6], [0.0, -1e6]]))
    assert log_slope.tolist() == [0.5, -0.5]


@every_spline
def test_a_spline_is_the_identity_outside_and_maps_its_box_to_itself(transformer):
    x, params = points(transformer)
    y, log_slope = transformer.forward(x, params)
    outside = x.abs() >= transformer.bound
    assert torch.equal(y[outside], x[outside])
    assert not log_slope[outside].any()
    assert (y[~outside].abs() <= transformer.bound).all()


@every_spline
def test_a_spline_and_its_slope_are_continuous(transformer):
    x, params = points(transformer, num_points=200_001, size=1.0)
    y, log_slope = transformer.forward(x, params)
    step = x[1] - x[0]
    assert y.diff().max() < 100 * step
    assert log_slope.diff().abs().max() < 0.1


@every_spline
def test_spline_bins_are_no_smaller_than_they_may_be(transformer):
    params = torch.zeros(transformer.num_params)
    params[0] = params[transformer.num_bins] = 1e3
    sizes, corners = transformer._knots(params[: transformer.num_bins])
    least = 2 * transformer.bound * transformer.min_size
    assert sizes.min() >= least - 1e-12
    assert sizes.sum() == pytest.approx(2 * transformer.bound)
    assert corners[0] == -transformer.bound


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affine(0.0), "Affine: bound must be a positive number, got 0.0"),
        (lambda: SinhArcsinh(0.0), "SinhArcsinh: bound must be a positive number, got 0.0"),
        (lambda: RationalQuadratic(0), "RationalQuadratic: num_bins must be a positive integer, got 0"),
        (lambda: RationalQuadratic(8, -1.0), "RationalQuadratic: bound must be a positive number, got -1.0"),
        (lambda: RationalQuadratic(8, 5.0, 0.2), "min_size must be between 0 and 1 / num_bins = 0.125, got 0.2"),
    ],
)
def test_a_wrong_setting_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def knots(transformer, params):
    """Where a map is put together from parts, in the middle of rows of parameters."""
    if not isinstance(transformer, RationalQuadratic):
        return torch.tensor([0.0, -0.0])
    inner = transformer._knots(params[: transformer.num_bins])[1]
    return torch.cat([torch.tensor([0.0, -0.0, -transformer.bound, transformer.bound]), inner])


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_derivatives_are_right_at_zero_and_at_knots(transformer, dtype, direction):
    """There, autograd takes the derivative of an absolute value or of a sign to be zero, and a cut one to be none."""
    params = torch.randn(transformer.num_params).to(dtype)
    function = getattr(transformer, direction)
    x = knots(transformer, params).to(dtype)
    if direction == "inverse":
        x = transformer.forward(x, params.expand(len(x), -1))[0].detach()
        x = torch.cat([x, x.new_tensor([0.0, -0.0])])
    x.requires_grad_()
    many = params.expand(len(x), -1).clone().requires_grad_()
    y, log_slope = function(x, many)
    slope, by_params = torch.autograd.grad(y.sum(), [x, many], create_graph=True)
    sign = 1 if direction == "forward" else -1
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(slope, (sign * log_slope).exp(), rtol=tolerance, atol=tolerance)
    if log_slope.requires_grad:
        found = torch.autograd.grad(log_slope.sum(), [x, many], allow_unused=True, materialize_grads=True)
        assert all(gradient.isfinite().all() for gradient in [by_params, *found])


def test_a_sinh_arsinh_map_has_its_curvature_at_zero_and_its_slope_far_out():
    params = torch.tensor([[0.4, 0.3]])
    smooth = lambda x: SinhArcsinh().forward(x, params)[1].sum()  # noqa: E731
    middle, beside = (torch.func.grad(smooth)(torch.tensor([x])) for x in (0.0, 1e-9))
    torch.testing.assert_close(middle, beside)
    assert abs(middle) > 0.1
    for x in (1e12, -1e12):
        log_slope = SinhArcsinh().forward(torch.tensor([x], dtype=torch.float32), params.float())[1]
        torch.testing.assert_close(
            log_slope.double(), SinhArcsinh().forward(torch.tensor([x]), params)[1], rtol=1e-4, atol=0
        )
