"""The law of an index: a density, the same in both directions, that can have several modes."""

import pytest
import torch

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.flows import num_params
from pyro_nflows.nets.index_law import IndexLaw
from pyro_nflows.transformers import RationalQuadratic, Transformer


def wild(index_dim: int, transformer: Transformer | None) -> IndexLaw:
    law = IndexLaw(2, index_dim, (8,), transformer)
    with torch.no_grad():
        for p in law.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return law


@pytest.mark.parametrize("transformer", [None, RationalQuadratic(4, 3.0)])
def test_a_draw_is_found_again_with_its_noise_and_its_density(transformer: Transformer | None) -> None:
    law, x, eps = wild(3, transformer), torch.randn(50, 2), torch.randn(50, 3)
    u, log_prob = law.draw(x, eps)
    again, same = law.noise(x, u)
    assert torch.allclose(again, eps, atol=1e-7)
    assert torch.allclose(same, log_prob, atol=1e-6)
    assert torch.allclose(law.log_prob(x, u), log_prob, atol=1e-6)


@pytest.mark.parametrize("transformer", [None, RationalQuadratic(4, 3.0)])
def test_the_density_integrates_to_one(transformer: Transformer | None) -> None:
    law, x = wild(1, transformer), torch.randn(2)
    u = torch.linspace(-40, 40, 80_001)
    with torch.no_grad():
        mass = torch.trapezoid(law.log_prob(x.expand(len(u), -1), u[:, None]).exp(), u)
    assert mass.item() == pytest.approx(1, abs=1e-3)


def test_without_a_transformer_it_is_a_gaussian() -> None:
    law, x, u = wild(2, None), torch.randn(20, 2), torch.randn(20, 2)
    loc, log_scale, _ = law._params(x)
    expected = torch.distributions.Normal(loc, log_scale.exp()).log_prob(u).sum(-1)
    assert torch.allclose(law.log_prob(x, u), expected)


def test_a_spline_can_have_two_modes() -> None:
    """Steep in the middle, the spline keeps the index away from zero."""
    law = IndexLaw(2, 1, (8,), RationalQuadratic(3, 3.0))
    with torch.no_grad():
        law.net.bias[2:5] = torch.tensor([1.0, -3.0, 1.0])  # a narrow bin in the middle ...
        law.net.bias[5:8] = torch.tensor([-1.0, 1.0, -1.0])  # ... that becomes a wide one
    middle, side = law.log_prob(torch.zeros(2, 2), torch.tensor([[0.0], [2.7]])).tolist()
    assert side > middle + 1


def test_shared_reverse_models_are_one_and_train_as_one() -> None:
    torch.manual_seed(0)
    built = [flows.cif(2, lambda dim: flows.realnvp(dim, 3), shared=s, skip=True) for s in (False, True)]
    one = num_params(built[0][0].reverse)
    assert num_params(built[0]) - num_params(built[1]) == 2 * one
    flow, data = built[1], torch.randn(500, 2)
    assert len({id(layer.reverse) for layer in flow}) == 1
    flow.initialize(data)
    before = flow[0].reverse.net.bias.clone()
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (-FlowDistribution(flow).log_prob(data + 1).mean()).backward()
        optimizer.step()
    assert not torch.equal(flow[2].reverse.net.bias, before)
    assert torch.equal(flow[2].reverse.net.bias, flow[0].reverse.net.bias)
