"""A continuously indexed flow started from data: the index matters, and the density is still right."""

import math

import pytest
import torch

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.layers import ActNorm, Coupling, Indexed, LocScale
from pyro_nflows.layers.base import Chain
from pyro_nflows.numerics import standard_normal_log_prob


@pytest.mark.parametrize(("dim", "index_dim"), [(1, 1), (2, 2), (3, 1), (2, 3)])
def test_the_density_is_the_inner_layers_and_the_reverse_model_exact(dim: int, index_dim: int) -> None:
    layer = Indexed(LocScale(dim), index_dim, hidden_dims=(32, 32), skip=True)
    x = layer.initialize(torch.randn(5000, dim))
    assert x.shape == (5000, dim)
    y = torch.randn(2000, dim)
    error = FlowDistribution(layer).log_prob(y).detach() - standard_normal_log_prob(y)
    assert error.abs().max() < 1e-9


def test_the_index_carries_a_fifth_of_each_coordinates_variance() -> None:
    layer = Indexed(LocScale(2), 2, hidden_dims=(32, 32), skip=True)
    layer.initialize(torch.randn(5000, 2))
    noise = torch.randn(20_000, 2)
    y, _ = layer(torch.randn(20_000, 2), noise)
    explained = torch.corrcoef(torch.cat([y, noise], -1).T)[:2, 2:].diagonal().square()
    assert explained.tolist() == pytest.approx([0.2, 0.2], abs=0.025)  # five standard errors


def test_a_flow_starts_from_data_of_any_scale() -> None:
    data = 3 + 5 * torch.randn(4000, 2)
    flow = Chain(*flows.cif(2, lambda dim: flows.maf(dim, 3), 2, (32, 32), skip=True), ActNorm(2))
    flow.initialize(data)
    truth = standard_normal_log_prob((data - 3) / 5) - 2 * math.log(5)
    found = FlowDistribution(flow).log_prob(data).detach()
    assert (found - truth).mean().item() == pytest.approx(0, abs=0.05)


def test_with_a_context_the_start_is_the_same() -> None:
    layer = Indexed(Coupling(2), 2, hidden_dims=(32, 32), context_dim=3, skip=True)
    view = layer.at(torch.randn(2000, 3))
    view.initialize(torch.randn(2000, 2))
    y = torch.randn(2000, 2)
    error = FlowDistribution(view).log_prob(y).detach() - standard_normal_log_prob(y)
    assert error.abs().max() < 1e-9


def test_networks_are_widened_once_and_trained_ones_are_left_alone() -> None:
    layer, data = Coupling(2), torch.randn(100, 2)
    before = layer.net.hidden[0].weight.clone()
    layer.initialize(data)
    assert torch.allclose(layer.net.hidden[0].weight, 5 / 3**0.5 * before)
    layer.initialize(data)
    assert torch.allclose(layer.net.hidden[0].weight, 5 / 3**0.5 * before)
    trained = Coupling(2)
    with torch.no_grad():
        trained.net.head.add_(1.0)
    before = trained.net.hidden[0].weight.clone()
    trained.initialize(data)
    assert torch.equal(trained.net.hidden[0].weight, before)


@pytest.mark.parametrize("bound", [0.01, 0.1, 0.2])
def test_a_small_bound_leaves_the_index_as_much_as_it_allows(bound: float) -> None:
    layer = Indexed(LocScale(2), 2, hidden_dims=(32, 32), bound=bound, skip=True)
    layer.initialize(torch.randn(5000, 2))
    y = torch.randn(2000, 2)
    error = FlowDistribution(layer).log_prob(y).detach() - standard_normal_log_prob(y)
    assert error.abs().max() < 1e-9
    z = torch.zeros(1000, 2)
    spread = layer(z, torch.randn(1000, 2))[0].var(0)
    share = min(0.2, 1 - math.exp(-1.8 * bound))
    assert spread.tolist() == pytest.approx([share] * 2, rel=5 * (2 / 1000) ** 0.5)


def test_a_bound_that_is_not_positive_is_an_error() -> None:
    with pytest.raises(ValueError, match="bound must be a positive number, got 0"):
        Indexed(LocScale(2), bound=0.0)


def test_without_linear_parts_the_index_starts_idle_and_says_so() -> None:
    layer, x = Indexed(LocScale(2), 2), torch.randn(50, 2)
    with pytest.warns(UserWarning, match="make it with skip=True"):
        layer.initialize(torch.randn(100, 2))
    assert torch.allclose(layer(x, torch.randn(50, 2))[0], layer(x, torch.randn(50, 2))[0])
