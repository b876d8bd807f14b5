"""Layers at exactly zero, of the point or of a direction that they hold: derivatives are those beside it."""

import pytest
import torch

from pyro_nflows.layers import Coupling, FlowifiedActivation, Householder, Planar, Radial, RowCoupling, Sylvester
from pyro_nflows.layers.base import Layer
from pyro_nflows.transformers import SinhArcsinh
from tests.registry import PAIRS

MAKERS = {
    "sinh-arcsinh": lambda: Coupling(4, transformer=SinhArcsinh()),
    "rows": lambda: RowCoupling(PAIRS, SinhArcsinh()),
    "rectifier": lambda: FlowifiedActivation(4, smoothness=0.5, slope=0.3),
    "planar": lambda: Planar(4),
    "radial": lambda: Radial(4),
    "sylvester": lambda: Sylvester(4),
}


def moved(layer: Layer) -> Layer:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_jacobian_at_zero_is_that_beside_it(name: str, zero: float, dtype: torch.dtype) -> None:
    layer = moved(MAKERS[name]()).to(dtype)
    at = torch.full((layer.input_dim,), zero, dtype=dtype)
    beside = at + 1e-7
    found = [torch.func.jacrev(lambda x: layer(x)[0])(x) for x in (at, beside)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.linalg.slogdet(found[0])[1], layer(at)[1], rtol=1e-4, atol=1e-5)
    slopes = [torch.func.grad(lambda x: layer(x)[1])(x) for x in (at, beside)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)


def test_a_radial_layer_at_its_centre_has_the_jacobian_beside_it() -> None:
    layer = moved(Radial(3))
    at = layer.center.detach()
    found = [torch.func.jacrev(lambda x: layer(x)[0])(x) for x in (at, at + 1e-9)]
    torch.testing.assert_close(*found)
    score = layer.transport(at[None], layer(at[None])[0].detach(), torch.ones(1, 3))
    torch.testing.assert_close(score[0], torch.linalg.solve(found[0].T, torch.ones(3)))


@pytest.mark.parametrize(("kind", "held"), [(Planar, "w"), (Householder, None), (Sylvester, None)])
def test_a_direction_of_zero_is_none(kind: type[Layer], held: str | None) -> None:
    """What a direction is multiplied by is then zero, and so is its part in the map."""
    layer = kind(3)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if held in (None, name):
                parameter.zero_()
    x = torch.randn(5, 3, requires_grad=True)
    y, log_weight = layer(x)
    gradients = torch.autograd.grad(y.sum() + log_weight.sum(), [x, *layer.parameters()], allow_unused=True)
    assert all(part.isfinite().all() for part in [y, log_weight, *gradients] if part is not None)
    torch.testing.assert_close(layer.inverse(y)[0], x)
