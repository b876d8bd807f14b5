"""Round trips and Lipschitz constants: exact for affine layers, and they tell a torn flow from a whole one."""

import pytest
import torch

from pyro_nflows import flows
from pyro_nflows.diagnostics.invertibility import lipschitz, round_trip_errors
from pyro_nflows.layers import Coupling, Indexed, LocScale, Planar, Residual, TriangularAffine
from pyro_nflows.layers.base import Chain, Layer
from pyro_nflows.testing import perturbed


def test_an_affine_layers_constants_are_its_singular_values() -> None:
    layer = TriangularAffine(3).double()
    torch.manual_seed(0)
    with torch.no_grad():
        layer.lower.copy_(torch.randn(3, 3))
        layer.log_scale.copy_(torch.randn(3))
    values = torch.linalg.svdvals(layer.scale_tril().detach())
    found = lipschitz(layer, torch.randn(5, 3, dtype=torch.float64))
    assert found.forward == pytest.approx(float(values[0]))
    assert found.inverse == pytest.approx(1 / float(values[-1]))


def test_a_continuously_indexed_flows_constants_are_those_at_the_indices_it_drew() -> None:
    layer = perturbed(lambda: Indexed(LocScale(2, init_scale=3.0)), 0.5)
    x, noise = torch.randn(5, 2), torch.randn(5, layer.noise_dim)
    eps = noise[:, :1]
    loc, log_scale = layer.index(x).chunk(2, -1)
    log_stretch = layer.shift_scale(loc + (4 * torch.tanh(log_scale / 4)).exp() * eps)[:, 2:]
    stretch = (2 * torch.tanh(log_stretch / 2) + layer.inner.log_scale).exp()
    for flow in (layer, Chain(LocScale(2), layer), Indexed(layer)):
        more = torch.zeros(5, flow.noise_dim - 1)  # of a fresh outer index, which does nothing
        found = lipschitz(flow, x, torch.cat([more, noise], -1))
        assert found.forward == pytest.approx(float(stretch.detach().max()))
        assert found.inverse == pytest.approx(float(1 / stretch.detach().min()))


def test_a_round_trip_is_exact_up_to_rounding_and_an_exploding_inverse_is_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 4)
    assert (round_trip_errors(flows.spline(4), x) < 1e-4).all()
    steep = Chain(LocScale(4, init_scale=1e-6), LocScale(4, init_loc=1e3), LocScale(4, init_scale=1e6))
    assert (round_trip_errors(steep.double(), x.double()) < 1e-4).all()
    assert (round_trip_errors(steep.float(), x.float()) > 0.1).any()


def test_a_continuously_indexed_trip_goes_back_with_its_own_indices() -> None:
    flow = perturbed(
        lambda: Chain(Indexed(Coupling(3), 2), LocScale(3), Indexed(Chain(Coupling(3), Indexed(Coupling(3))), 1)), 0.5
    )
    x, noise = torch.randn(50, 3), torch.randn(50, flow.noise_dim)
    assert (round_trip_errors(flow, x, noise) < 1e-10).all()
    other, _ = flow.inverse(flow(x, noise)[0], torch.randn(50, flow.inverse_noise_dim))
    assert ((other - x).abs().amax(-1) > 1e-3).all()


def test_what_cannot_come_back_is_refused() -> None:
    class OneWay(Planar):
        has_inverse = False  # type: ignore[assignment]

    with pytest.raises(ValueError, match="OneWay has none"):
        round_trip_errors(OneWay(2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"Indexed.forward: expected noise of shape \(1, 1\), got NoneType"):
        round_trip_errors(Indexed(Planar(2)), torch.zeros(1, 2))
    roulette = Residual(2, log_det="roulette")
    with pytest.raises(ValueError, match="Residual has auxiliary variables that are not continuous indices"):
        round_trip_errors(roulette, torch.zeros(1, 2), torch.zeros(1, roulette.noise_dim))


def test_a_layer_between_dimensions_has_a_jacobian_of_that_shape() -> None:
    class Doubled(Layer):
        def __init__(self) -> None:
            super().__init__(2, 4)

        def forward(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([x, 2 * x], -1), x.sum(-1)

    jacobian, slope = Doubled().jacobian(torch.randn(3, 2))
    assert jacobian.equal(torch.cat([torch.eye(2), 2 * torch.eye(2)]).expand(3, 4, 2))
    assert slope.equal(torch.ones(3, 2))
