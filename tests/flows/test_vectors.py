"""Ready flows: compositions that mix every coordinate and start at the identity."""

import pytest
import torch

from pyro_nflows import flows
from pyro_nflows.flows.whitened import Whitened
from pyro_nflows.layers import Coupling, Indexed, LocScale, Mixture, Permutation, Planar, TriangularAffine
from pyro_nflows.layers.base import Exactness
from pyro_nflows.testing import perturbed
from pyro_nflows.transformers import RationalQuadratic

FLOWS = {
    name: getattr(flows, name)
    for name in (
        "planar",
        "radial",
        "iaf",
        "maf",
        "couplings",
        "realnvp",
        "residual",
        "nice",
        "spline",
        "spline_autoregressive",
        "glow",
        "flowified",
        "default",
        "cif",
    )
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("latent_dim", [1, 2, 7])
def test_a_flow_is_a_layer_of_that_size_at_the_identity(name, latent_dim):
    layer = FLOWS[name](latent_dim)
    x, noise = torch.randn(20, latent_dim), torch.randn(20, layer.noise_dim)
    y, log_weight = layer(x, noise)
    assert torch.allclose(y, x, atol=1e-8)
    assert torch.allclose(log_weight, torch.zeros(20), atol=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_every_output_depends_on_every_input(name):
    layer = perturbed(lambda: FLOWS[name](7), 0.3)
    noise = torch.randn(layer.noise_dim)
    jacobian = torch.func.jacrev(lambda x: layer(x, noise)[0])(torch.randn(7))
    assert (jacobian != 0).all()


def test_shuffles_are_the_same_each_time_and_undone_at_the_end():
    a, b = flows.couplings(6, 6), flows.couplings(6, 6)
    shuffles = [[layer.permutation for layer in flow if isinstance(layer, Permutation)] for flow in (a, b)]
    assert len(shuffles[0]) == 3
    assert all(torch.equal(p, q) for p, q in zip(*shuffles))
    order = torch.arange(6)
    for shuffle in shuffles[0]:
        order = order[shuffle]
    assert torch.equal(order, torch.arange(6))


def test_making_a_flow_shuffles_without_the_global_generator():
    before = torch.get_rng_state()
    flows.couplings(6, 6, hidden_dims=())
    assert torch.equal(torch.get_rng_state(), before)


def test_options_reach_the_layers():
    flow = flows.spline(3, 2, (7,), num_bins=5, bound=2.0)
    couplings = [layer for layer in flow if isinstance(layer, Coupling)]
    assert len(couplings) == 2
    assert all(layer.transformer == RationalQuadratic(5, 2.0) for layer in couplings)
    assert all(layer.net.hidden[0].out_features == 7 for layer in couplings)


def test_an_inverted_spline_is_the_spline_backwards():
    flow = perturbed(lambda: flows.spline(5, 4), 0.3)
    inverted = flows.spline(5, 4, inverted=True)
    for layer, back in zip(flow, reversed(list(inverted)), strict=True):
        back.layer.load_state_dict(layer.state_dict())
    x = torch.randn(20, 5)
    (y, log_weight), (found, weight_back) = flow(x), inverted.inverse(x)
    assert torch.allclose(found, y)
    assert torch.allclose(weight_back, -log_weight)


def test_nice_scales_at_the_end_only():
    flow = flows.nice(4, 4)
    *front, end = flow
    assert isinstance(end, LocScale)
    x = torch.randn(5, 4)
    for layer in front:
        assert not layer(x)[1].any()


def test_cif_indexes_all_layers_but_permutations_and_scalings():
    flow = flows.cif(4, lambda dim: flows.nice(dim, 4), index_dim=2)
    assert flow.exactness is Exactness.PROPER
    assert {type(layer) for layer in flow} == {Indexed, Permutation, LocScale}
    assert flow.noise_dim == 2 * sum(isinstance(layer, Indexed) for layer in flow) == 8


@pytest.mark.parametrize("name", ["planar", "radial", "iaf", "couplings", "realnvp", "nice", "spline"])
def test_a_flow_has_at_least_one_layer(name):
    with pytest.raises(ValueError, match="num_layers must be a positive integer, got 0"):
        FLOWS[name](3, 0)


@pytest.mark.parametrize("step", [1, 4])
def test_a_widened_baseline_is_the_narrowest_with_no_fewer_parameters(step):
    target = flows.num_params(flows.cif(3, hidden_dims=(7, 5)))

    def build(width):
        return flows.maf(3, 6, (width, width))

    flow = flows.widened(build, target, step)
    width = flow[0].layer.net.head.shape[-1]
    assert width % step == 0
    assert flows.num_params(flow) >= target > flows.num_params(build(width - step))


def test_parameters_are_those_that_train():
    flow = flows.realnvp(3, 2)
    total = flows.num_params(flow)
    flow[0].requires_grad_(False)
    assert flows.num_params(flow) == total - sum(p.numel() for p in flow[0].parameters())


def test_a_baseline_that_cannot_grow_is_refused():
    with pytest.raises(ValueError, match="expected build\\(width\\) to reach 10 parameters, got 4 at width 4096"):
        flows.widened(lambda width: LocScale(2), 10, 64)


def test_a_whitened_flow_knows_its_parts():
    plain, end = Whitened(Planar(3), LocScale(3)), TriangularAffine(3)
    on_a_mixture = Whitened(flows.on_modes(3, flows.realnvp, 2, 3), end)
    assert (plain.flow, plain.end) == (plain[0], plain[1])
    assert (plain.is_full_rank, on_a_mixture.is_full_rank) == (False, True)
    assert plain.base is None
    assert isinstance(on_a_mixture.base, Mixture)
    names = {name for name, _ in on_a_mixture.named_parameters() if name.startswith(Whitened.END)}
    assert names == {f"{Whitened.END}.{name}" for name, _ in end.named_parameters()}
