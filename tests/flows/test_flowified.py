"""Flowification: the network inside the flow, the densities that it has, and what cannot be made a flow."""

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import nn

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.flows import flowify
from pyro_nflows.layers import FlowifiedActivation, FlowifiedConv, FlowifiedLinear
from pyro_nflows.layers.base import Chain, Exactness, Inverse
from pyro_nflows.nets.rotation import Rotation
from pyro_nflows.nets.tiling import Tiling
from pyro_nflows.numerics import standard_normal_log_prob
from pyro_nflows.testing import perturbed


def without_noise(layer, x):
    return layer(x, torch.zeros(*x.shape[:-1], layer.noise_dim))[0]


# ---- the network inside -----------------------------------------------------------------------------------------


def test_a_rotation_is_orthogonal_and_nearly_the_exponential():
    rotation = Rotation(4)
    with torch.no_grad():
        rotation.skew.copy_(0.01 * torch.randn(4, 4))
    matrix = rotation()
    assert torch.allclose(matrix @ matrix.T, torch.eye(4))
    assert torch.allclose(matrix, torch.linalg.matrix_exp(rotation.skew - rotation.skew.T), atol=2e-5)


@pytest.mark.parametrize(("a", "b"), [(3, 3), (2, 5), (5, 2), (1, 4), (4, 1)])
def test_without_noise_it_is_the_dense_layer_of_its_weight(a, b):
    layer, x = perturbed(lambda: FlowifiedLinear(a, b)), torch.randn(7, a)
    assert torch.allclose(without_noise(layer, x), x @ layer.weight().T + layer.bias)
    assert torch.linalg.matrix_rank(layer.weight()) == min(a, b)


@pytest.mark.parametrize(("a", "b"), [(3, 3), (2, 5), (5, 2)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_it_takes_any_weight_of_full_rank(a, b, sign):
    layer, weight, bias = perturbed(lambda: FlowifiedLinear(a, b)), torch.randn(b, a), torch.randn(b)
    weight[0] *= sign
    layer.assign(weight, bias)
    assert torch.allclose(layer.weight(), weight)
    assert torch.allclose(layer.bias, bias)


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(2, 2, 0), (3, 1, 1), (3, 2, 1), (1, 1, 0), (4, 3, 2)])
def test_without_noise_it_is_the_convolution(kernel_size, stride, padding):
    conv = nn.Conv2d(2, 3, kernel_size, stride, padding)
    layer = FlowifiedConv((2, 6, 4), 3, kernel_size, stride, padding)
    layer.linear.assign(conv.weight.flatten(1), conv.bias)
    x = torch.randn(5, 2, 6, 4)
    expected = conv(x)
    assert layer.output_shape == expected.shape[1:]
    assert torch.allclose(without_noise(layer, x.flatten(1)), expected.flatten(1))


@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 1, 0), (3, 2, 1), (2, 2, 0)])
def test_tiles_are_a_bijection_of_pixels_and_noise(sizes):
    tiling = Tiling("Tiling", (1, 4, 3 if sizes[1] == 1 else 4), *sizes, noise_scale=0.5)
    num_pixels = len(tiling.owner) - tiling.noise_dim
    x, noise = torch.randn(num_pixels), torch.randn(tiling.noise_dim)
    tiles = tiling.spread(x, noise)
    assert all(torch.allclose(a, b) for a, b in zip(tiling.gather(tiles), (x, noise)))
    jacobian = torch.func.jacrev(lambda t: tiling.spread(t[:num_pixels], t[num_pixels:]).flatten())
    assert torch.allclose(
        torch.linalg.slogdet(jacobian(torch.cat([x, noise])))[1], tiling.log_det(x), atol=1e-6 * num_pixels
    )


def test_copies_of_a_pixel_differ_by_noise_orthogonal_to_their_mean():
    tiling = Tiling("Tiling", (1, 3, 3), 2, 1)
    tiles = tiling.spread(torch.arange(9.0), torch.randn(7)).flatten()
    means = torch.zeros(9).index_add(0, tiling.owner, tiles) / tiling.owner.bincount()
    assert torch.allclose(means, torch.arange(9.0))
    assert tiles[tiling.owner == 4].std() > 0.01


NETWORKS = {
    "narrowing": (nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(0.3), nn.Linear(4, 2)), None),
    "widening": (nn.Sequential(nn.Linear(3, 5), nn.PReLU(), nn.Sequential(nn.Identity(), nn.Linear(5, 5))), None),
    "no bias": (nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False), nn.LeakyReLU()), None),
    "convolutions": (
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3, 2, 1), nn.PReLU(4), nn.Conv2d(4, 6, 2), nn.LeakyReLU(0.5)),
            *(nn.Flatten(), nn.Linear(54, 5)),
        ),
        (1, 8, 8),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_flow_of_a_network_runs_the_network(name):
    network, shape = NETWORKS[name]
    network = copy.deepcopy(network).double()
    flow = flowify(network, shape)
    x = torch.randn(7, *(shape or (flow.output_dim,)))
    code, _ = flow.inverse(x.flatten(1), torch.zeros(7, flow.inverse_noise_dim))
    assert torch.allclose(code, network(x).flatten(1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(flow.inverse(x.flatten(1), torch.zeros(7, flow.inverse_noise_dim))[0], code)


def test_slopes_of_leaky_rectifiers_stay_and_those_of_prelu_train():
    flow = flowify(nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.3), nn.Linear(2, 2), nn.PReLU(2, 0.2)))
    leaky, prelu = (layer for layer in flow.layer if isinstance(layer, FlowifiedActivation))
    assert torch.allclose(leaky.log_slope.exp(), torch.tensor(0.3))
    assert not list(leaky.parameters())
    assert torch.allclose(prelu.log_slope.exp(), torch.tensor(0.2))
    assert list(prelu.parameters())


# ---- densities --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_network_that_only_narrows_has_an_exact_density():
    layers = FlowifiedLinear(2), FlowifiedActivation(2, 0.5), FlowifiedLinear(2, 1)
    flow = FlowDistribution(perturbed(Inverse(Chain(*layers)), 0.3))
    axis = torch.linspace(-15, 15, 401)
    points = torch.cartesian_prod(axis, axis)
    first = flow.log_prob(points)
    assert torch.equal(flow.log_prob(points), first)
    assert first.exp().sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=4e-3)


@torch.no_grad()
def test_the_bound_of_a_wide_dense_layer_rises_to_the_gaussian_that_it_is():
    """Without activations the data are a projection of a Gaussian code."""
    linear = nn.Linear(2, 4)
    flow = flowify(nn.Sequential(linear), noise_scale=1.5)
    left, values, right = torch.linalg.svd(linear.weight)
    loc = -right.T @ ((linear.bias @ left)[:2] / values)
    truth = torch.distributions.MultivariateNormal(loc, right.T @ torch.diag(values**-2) @ right)
    x = truth.sample((5,))
    assert flow.exactness is Exactness.PROPER
    assert_rises(FlowDistribution(flow), x, truth.log_prob(x))


@torch.no_grad()
def test_the_bound_of_a_wide_network_rises_to_its_integral_over_the_noise():
    flow = perturbed(Inverse(Chain(FlowifiedLinear(1, 2), FlowifiedActivation(2, 0.5), FlowifiedLinear(2))), 0.6)
    flow.layer[0].log_scale[1] += 1  # weights of bounded variance: noise wider than what it stands for
    x = FlowDistribution(flow).sample((5,))
    noise = torch.linspace(-9, 9, 4001)[:, None, None].expand(-1, 5, 1)
    code, log_weight = flow.inverse(x.expand(4001, -1, -1), noise)
    terms = standard_normal_log_prob(code) - log_weight + standard_normal_log_prob(noise)
    assert_rises(FlowDistribution(flow), x, terms.logsumexp(0) + math.log(18 / 4000))


def assert_rises(flow, x, expected):
    """Estimates lie below the density, and rise to it with the number of samples."""
    means, errors = [], []
    for num_samples in (1, 8, 200):
        values = flow.log_prob(x.clone().expand(1000, -1, -1), num_samples)
        means.append(values.mean(0))
        errors.append(values.std(0) / len(values) ** 0.5)
    assert all((b > a).all() for a, b in zip(means, means[1:]))
    assert (means[2] < expected + 5 * errors[2]).all()
    assert torch.allclose(means[2], expected, atol=0.03)
    assert (expected - means[0]).mean() > 0.05


def test_as_a_likelihood_a_network_learns_the_density_of_another():
    layers = FlowifiedLinear(2), FlowifiedActivation(2, 0.2, trained=False), FlowifiedLinear(2)
    truth = FlowDistribution(perturbed(Inverse(Chain(*layers))))
    data, fresh = truth.sample((2000,)), truth.sample((5000,))
    network = nn.Sequential(nn.Linear(2, 3), nn.PReLU(), nn.Linear(3, 2))
    layer = flowify(network, hidden_dims=(8,), noise_scale=1.0, smoothness=0.5)

    def model(data):
        pyro.module("flow", layer)
        with pyro.plate("data", len(data), subsample_size=200) as rows:
            pyro.sample("x", FlowDistribution(layer), obs=data[rows])

    svi = SVI(model, lambda data: None, ClippedAdam({"lr": 0.03, "lrd": 0.99}), Trace_ELBO())
    for _ in range(400):
        svi.step(data)
    with torch.no_grad():
        gap = truth.log_prob(fresh) - FlowDistribution(layer).log_prob(fresh)
    gaussian = torch.distributions.MultivariateNormal(data.mean(0), data.T.cov()).log_prob(fresh)
    assert (truth.log_prob(fresh) - gaussian).mean() > 0.7
    assert gap.mean() < 0.1


def test_a_round_corner_becomes_a_sharp_one():
    x, options = torch.randn(50, 3), {"slope": 0.3, "trained": False}
    sharp, round_ = FlowifiedActivation(3, **options), FlowifiedActivation(3, smoothness=1e-4, **options)
    assert torch.allclose(round_(x)[0], sharp(x)[0], atol=1e-4)
    far = x.abs().min(-1).values > 0.05
    assert torch.allclose(round_(x)[1][far], sharp(x)[1][far], atol=1e-4)


def test_a_flow_of_whole_networks_is_as_wide_as_asked():
    flow = flows.flowified(3, num_layers=2, extra_dims=5)
    assert [layer.output_dim for layer in flow] == [8, 8, 8, 8, 3]
    assert (flow.noise_dim, flow.inverse_noise_dim) == (5, 5)
    assert isinstance(Inverse(flow), Inverse)
    assert Chain(flow, FlowifiedLinear(3)).exactness is Exactness.PROPER


# ---- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FlowifiedLinear(0), "FlowifiedLinear: input_dim must be a positive integer, got 0"),
        (lambda: FlowifiedLinear(2).assign(torch.ones(2, 2)), "expected a weight of full rank, got .* add a little"),
        (lambda: FlowifiedActivation(2, 0.0), "FlowifiedActivation: expected positive slopes, got 0.0"),
        (lambda: FlowifiedActivation(2, smoothness=-1.0), "smoothness must be 0 or a positive number, got -1.0"),
        (lambda: FlowifiedConv((1, 5, 5), 2, 2), "FlowifiedConv: tiles of 2 at stride 2 with padding 0 do not reach"),
        (lambda: FlowifiedConv((1, 4, 4), 2, 2, 3), "FlowifiedConv: tiles of 2 at stride 3"),
        (lambda: FlowifiedConv((4, 4), 2, 2), r"FlowifiedConv: expected the shape \(C, H, W\)"),
        (lambda: FlowifiedConv((1, 4, 4), 2, 2, 2, -1), "FlowifiedConv: padding must be 0 or a positive integer"),
        (lambda: FlowifiedConv((1, 4, 4), 0, 2), "FlowifiedConv: output_channels must be a positive integer, got 0"),
        (lambda: FlowifiedConv((1, 4, 4), 1, 2, noise_scale=0), "noise_scale must be a positive number, got 0"),
        (lambda: flows.flowified(2, 0), "flowified: num_layers must be a positive integer, got 0"),
        (lambda: flows.flowified(2, extra_dims=-1), "flowified: extra_dims must be 0 or a positive integer, got -1"),
        (lambda: flowify(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), "cannot make ReLU.* use nn.LeakyReLU"),
        (lambda: flowify(nn.Sequential(nn.Linear(2, 2), nn.GELU())), "cannot make GELU.* build the flow from layers"),
        (lambda: flowify(nn.Sequential(nn.Conv2d(1, 2, 2))), r"pass it: flowify\(network, \(C, H, W\)\)"),
        (lambda: flowify(nn.Sequential(nn.Linear(4, 2)), (1, 2, 2)), "put nn.Flatten"),
        (lambda: flowify(nn.Sequential(nn.Linear(4, 2), nn.Linear(3, 2))), "got data of shape 2"),
        (lambda: flowify(nn.Sequential(nn.Conv2d(1, 2, 2)), 4), r"got data of shape 4; pass flowify\(network"),
        (lambda: flowify(nn.Sequential(nn.Conv2d(1, 2, (2, 1))), (1, 2, 2)), "expected a convolution of square kernel"),
        (lambda: flowify(nn.Sequential(nn.Flatten(), nn.Identity()), 3), "flowify: expected at least one layer"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
