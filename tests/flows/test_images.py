"""Flows of images: their levels, and indices that are images."""

import pytest
import torch
from torch import Tensor

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.flows import num_params
from pyro_nflows.layers import Coupling, Indexed, LocScale, Residual
from pyro_nflows.layers.base import Chain, Exactness
from pyro_nflows.testing import perturbed


def small_residual(shape: tuple[int, int, int], log_det: str = "exact") -> Chain:
    return flows.residual_image(shape, 2, 1, (3, 3), 0.6, log_det, num_terms=30, inverted=True)


def test_a_residual_flow_of_images_is_told_its_exact_twins_density_on_average() -> None:
    exact = perturbed(lambda: small_residual((1, 4, 4)))
    estimated = small_residual((1, 4, 4), "roulette")
    estimated.load_state_dict(exact.state_dict())
    assert (exact.exactness, estimated.exactness) == (Exactness.EXACT, Exactness.UNBIASED)
    y = torch.randn(16)
    with torch.no_grad():
        values = FlowDistribution(estimated).log_prob(y.expand(2000, -1))
        expected = FlowDistribution(exact).log_prob(y)
    assert abs(values.mean() - expected) < 5 * values.std() / len(values) ** 0.5


def test_28_by_28_has_two_levels_and_no_more() -> None:
    flow = flows.residual_image((1, 28, 28), 2, 1, (2,))
    assert [part.shape for part in flow.modules() if isinstance(part, Residual)] == [(16, 7, 7), (4, 14, 14)]
    with pytest.raises(ValueError, match="even height and width"):
        flows.residual_image((1, 28, 28), 3, 1, (2,))


def test_indices_of_images_have_as_many_parameters_whatever_the_image() -> None:
    built = [flows.cif_image((2, side, side), lambda s: flows.glow_image(s, 1, 2, (4,))) for side in (4, 12)]
    assert num_params(built[0]) == num_params(built[1])
    assert built[1].noise_dim == 9 * built[0].noise_dim


def test_every_layer_of_images_is_indexed_at_every_level() -> None:
    flow = flows.cif_image((1, 8, 8), lambda shape: flows.glow_image(shape, 2, 2, (4,)), 2)
    layers = [part for part in flow.modules() if isinstance(part, Indexed)]
    assert len(layers) == sum(isinstance(part, Coupling) for part in flow.modules()) == 5
    assert sorted(layer.index_dim for layer in layers) == [8, 8, 32, 32, 32]


def test_an_index_that_is_an_image_starts_where_it_matters_and_does_no_harm() -> None:
    """On standard normal data the start is exact: the density is that of the inner layer, whatever the index."""
    layer = Indexed(LocScale(18), 2, hidden_dims=(4,), skip=True, shape=(2, 3, 3))
    y = torch.randn(500, 18)
    layer.initialize(y)
    plain = FlowDistribution(LocScale(18)).log_prob(y)
    assert torch.allclose(FlowDistribution(layer).log_prob(y), plain, atol=1e-6)
    u = torch.zeros(18).index_fill(0, torch.tensor([4]), 1.0)
    moved = layer._affine(u)[0] - layer._affine(torch.zeros(18))[0]
    assert moved.nonzero().flatten().tolist() == [4]  # the same pixel of the same channel


def test_wide_linear_parts_start_as_narrow_ones_do() -> None:
    """With so many coordinates that the linear parts go through a few features."""
    layer = Indexed(LocScale(800), 20, hidden_dims=(2,), skip=True)
    y = torch.randn(50, 800)
    layer.initialize(y)
    plain = FlowDistribution(LocScale(800)).log_prob(y)
    assert torch.allclose(FlowDistribution(layer).log_prob(y), plain, atol=1e-6)


def test_an_index_is_learnt_where_images_are_of_two_kinds() -> None:
    torch.manual_seed(0)
    flow = flows.cif_image((1, 4, 4), lambda s: flows.residual_image(s, 1, 1, (4,), log_det="exact", inverted=True))

    def images(number: int) -> Tensor:
        return 3 * torch.randint(2, (number, 1)).double() + 0.3 * torch.randn(number, 16)

    flow.initialize(images(200))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    start = FlowDistribution(flow).log_prob(images(300)).mean()
    for _ in range(15):
        optimizer.zero_grad()
        (-FlowDistribution(flow).log_prob(images(64)).mean()).backward()
        optimizer.step()
    assert FlowDistribution(flow).log_prob(images(300)).mean() > start + 1


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected a flow with couplings or residual layers of images, got Chain"):
        flows.cif_image((1, 2, 2), lambda shape: flows.realnvp(4))
    with pytest.raises(ValueError, match=r"image of 4 coordinates, as the inner layer takes, got \(1, 2, 3\)"):
        Indexed(Coupling((2, 1, 2)), shape=(1, 2, 3))
