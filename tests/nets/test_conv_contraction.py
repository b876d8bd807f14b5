"""Convolutions that contract: the bound of their norm, and their Jacobian."""

import pytest
import torch
from torch.nn.functional import conv2d

from pyro_nflows.layers import Residual
from pyro_nflows.nets.conv_contraction import ConvContraction, convolution_bound
from pyro_nflows.testing import perturbed


def matrix_of(kernel: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The convolution with zeros around, as a matrix."""
    units = torch.eye(kernel.shape[1] * height * width).view(-1, kernel.shape[1], height, width)
    return conv2d(units, kernel, padding="same").flatten(1).T


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (1, 4, 3, 3), (5, 5, 1, 1), (2, 1, 5, 5)])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (8, 5)])
def test_the_bound_of_a_convolutions_norm_is_above_it(shape, size):
    kernel = torch.randn(shape)
    norm = torch.linalg.matrix_norm(matrix_of(kernel, *size), 2)
    assert convolution_bound(kernel, size) > norm * (1 - 1e-9)


def test_it_is_close_for_large_images_and_known_for_a_mean():
    kernel = torch.randn(3, 2, 3, 3)
    norm = torch.linalg.matrix_norm(matrix_of(kernel, 16, 16), 2)
    assert convolution_bound(kernel, (16, 16)) < 1.1 * norm
    mean = torch.full((1, 1, 3, 3), 1 / 9)
    assert convolution_bound(mean, (40, 40)).item() == pytest.approx(1, abs=0.01)


def test_it_has_gradients_and_is_fine_at_zero():
    kernel = torch.zeros(2, 2, 3, 3, requires_grad=True)
    convolution_bound(kernel, (3, 3)).backward()
    assert kernel.grad.isfinite().all()


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_a_contraction_of_images_contracts_whatever_its_parameters(scale):
    net = ConvContraction((2, 3, 4), (6, 5), 0.8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    jacobian = net.linearized(3 * torch.randn(50, 24)).jacobian()
    assert torch.linalg.matrix_norm(jacobian, 2).max() < 0.8


@pytest.mark.parametrize("hidden_dims", [(), (3,), (4, 3, 2)])
def test_it_knows_its_jacobian(hidden_dims):
    net = perturbed(lambda: Residual((2, 2, 3), hidden_dims=hidden_dims)).net
    x, u = torch.randn(5, 12), torch.randn(5, 12)
    jacobian = net.linearized(x).jacobian()
    for row, each in zip(x, jacobian):
        assert torch.allclose(each, torch.func.jacrev(net)(row))
    assert torch.allclose(net.linearized(x).pull(u), (u[:, None] @ jacobian)[:, 0])


@pytest.mark.parametrize("shape", [(2, 6, 5), (1, 1, 7), (3, 4, 4)])
@pytest.mark.parametrize("batch", [(), (2,), (2, 1)])
def test_the_jacobian_of_a_larger_image_is_that_of_its_unit_vectors(shape, batch):
    net = perturbed(lambda: Residual(shape, hidden_dims=(4, 3))).net
    at = net.linearized(torch.randn(*batch, net.shape[0] * net.shape[1] * net.shape[2]))
    units = torch.eye(at.value.shape[-1])
    rows = torch.stack([at.pull(unit.expand(at.value.shape)) for unit in units], -2)
    assert torch.allclose(at.jacobian(), rows)


def test_a_mistake_is_named():
    with pytest.raises(ValueError, match="ConvContraction: lipschitz must be between 0 and 1, got 1"):
        ConvContraction((1, 2, 2), (4,), 1.0)
    with pytest.raises(ValueError, match=r"Residual: expected the shape \(C, H, W\) of an image"):
        Residual((1, 2))
