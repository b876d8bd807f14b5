"""Curvature of a log density: by derivatives and, where there are none, by differences of its gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_nflows.engine import DensityGradient

PRECISION = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 4.0]], dtype=torch.float64)
POINT = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)


class _Once(torch.autograd.Function):
    """A Gaussian that can be derived once."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return -0.5 * ((z @ PRECISION) * z).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return -grad[:, None] * (z @ PRECISION)


def test_a_density_that_can_be_derived_once_has_a_curvature() -> None:
    density = DensityGradient(_Once.apply)
    torch.testing.assert_close(density.hessian(POINT), -PRECISION, rtol=1e-6, atol=1e-6)
    rows = torch.tensor([[1.0, -1.0, 1.0], [0.0, 0.0, 300.0]], dtype=torch.float64)
    torch.testing.assert_close(density.products(POINT, rows), -rows @ PRECISION, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
def test_second_derivatives_that_are_not_numbers_are_differences(dtype: torch.dtype, tolerance: float) -> None:
    def two_modes(z: Tensor) -> Tensor:
        far = torch.logaddexp(-0.5 * ((z[:, 0] - 4) / 0.3).square(), -0.5 * ((z[:, 0] + 4) / 0.3).square())
        return far - 0.5 * z[:, 1].square()

    curvature = DensityGradient(two_modes).hessian(torch.tensor([3.9, 0.5], dtype=dtype))
    expected = -torch.tensor([1 / 0.09, 1.0], dtype=dtype).diag()
    torch.testing.assert_close(curvature, expected, rtol=tolerance, atol=tolerance)


def test_where_the_gradient_is_no_number_nothing_is_made_up() -> None:
    def edge(z: Tensor) -> Tensor:
        return z.sqrt().sum(-1)

    assert not DensityGradient(edge).hessian(torch.tensor([-1.0, 2.0], dtype=torch.float64)).isfinite().all()
