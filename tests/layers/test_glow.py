"""Glow's layers and Sylvester's: what each is in other words, where data start it, and what it refuses."""

import pytest
import torch
from torch.nn.functional import conv2d, pixel_unshuffle

import pyro_nflows as nf
from pyro_nflows import flows
from pyro_nflows.layers import (
    ActNorm,
    Conditional,
    Coupling,
    Householder,
    Indexed,
    LULinear,
    Planar,
    Split,
    Squeeze,
    Sylvester,
)
from pyro_nflows.layers.base import Chain
from pyro_nflows.testing import perturbed


def assert_normal(x):
    deviation, mean = torch.std_mean(x, 0)
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-8)
    assert torch.allclose(deviation, torch.ones_like(deviation), atol=1e-8)


def test_actnorm_starts_from_data():
    layer, y = ActNorm(3), torch.tensor([5.0, -2.0, 0.0]) + torch.tensor([3.0, 0.1, 1.0]) * torch.randn(200, 3)
    assert_normal(layer.initialize(y))
    assert_normal(layer.inverse(y)[0])


def test_actnorm_of_images_has_one_scale_for_each_channel():
    layer, y = ActNorm((2, 4, 4)), torch.randn(50, 32) * torch.tensor([3.0, 0.2]).repeat_interleave(16) + 1
    x = layer.initialize(y)
    assert layer.loc.shape == (2,)
    assert_normal(x.unflatten(-1, (2, 16)).movedim(1, -1).reshape(-1, 2))


def test_a_channel_that_does_not_vary_is_only_shifted():
    layer, y = ActNorm(2), torch.randn(50, 2)
    y[:, 0] = 7.0
    layer.initialize(y)
    assert layer.loc[0] == 7.0
    assert layer.log_scale[0] == 0.0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: Chain(layer, Planar(3)),
        lambda layer: Chain(Planar(3), Chain(layer)),
        lambda layer: Split(layer, 5),
        lambda layer: Indexed(layer, skip=True),
        lambda layer: Conditional(layer, 2).at(torch.randn(50, 2)),
    ],
    ids=["Chain", "Chain of Chain", "Split", "Indexed", "Conditional"],
)
def test_whatever_holds_an_actnorm_starts_it(wrap):
    layer = ActNorm(3)
    flow, y = wrap(layer), 5 + 3 * torch.randn(50, 5)
    x = flow.initialize(y[:, : flow.output_dim])
    assert x.shape == (50, flow.input_dim)
    assert not torch.allclose(layer.loc, torch.zeros(3))
    assert_normal(layer.inverse(y[:, :3])[0])


def test_a_flow_starts_each_actnorm_from_what_reaches_it():
    flow = perturbed(lambda: flows.glow(3, 4))
    y = 3 * torch.randn(200, 3) - 7
    flow.initialize(y)
    for layer in reversed(list(flow)):
        y = layer.inverse(y)[0]
        if isinstance(layer, ActNorm):
            assert_normal(y)


def test_starting_from_data_touches_no_generator_and_no_gradient():
    flow, before = flows.glow(3, 2), torch.get_rng_state()
    x = flow.initialize(torch.ones(2, 3) * torch.tensor([[1.0], [2.0]]))
    assert torch.equal(torch.get_rng_state(), before)
    assert not x.requires_grad


def test_lu_linear_of_an_image_is_a_1x1_convolution():
    layer = perturbed(lambda: LULinear((3, 4, 5), [2, 0, 1]))
    lower, upper = layer.lower_upper()
    weight = (lower @ upper)[[2, 0, 1]]
    x = torch.randn(7, 60)
    y, log_weight = layer(x)
    assert torch.allclose(y, conv2d(x.reshape(7, 3, 4, 5), weight[..., None, None]).flatten(1))
    assert torch.allclose(log_weight, 20 * torch.linalg.slogdet(weight).logabsdet.expand(7))


@pytest.mark.parametrize(("dim", "num"), [(2, 2), (5, 2), (5, 8)])
def test_householder_is_orthogonal_and_the_product_of_its_reflections(dim, num):
    layer = perturbed(lambda: Householder(dim, num))
    rotation = layer(torch.eye(dim))[0].T
    expected = torch.eye(dim)
    for v in layer.vectors:
        expected = expected @ (torch.eye(dim) - 2 * torch.outer(v, v) / v.dot(v))
    assert torch.allclose(rotation, expected)
    assert torch.allclose(rotation @ rotation.T, torch.eye(dim))


def test_sylvester_of_rank_one_is_planar():
    sylvester = perturbed(lambda: Sylvester(3, 1))
    q, outer, inner = sylvester._matrices()
    x = torch.randn(10, 3)
    h = torch.tanh(x @ (inner * q)[0] + sylvester.b)
    y, log_weight = sylvester(x)
    assert torch.allclose(y, x + h[:, None] * (outer * q)[0])
    assert torch.allclose(log_weight, torch.log1p((1 - h**2) * (outer * inner).squeeze()))


def test_squeeze_is_pixel_unshuffle():
    x = torch.randn(5, 3 * 4 * 6)
    expected = pixel_unshuffle(x.reshape(5, 3, 4, 6), 2).flatten(1)
    assert torch.equal(Squeeze((3, 4, 6))(x)[0], expected)


def test_an_image_coupling_moves_channels_and_looks_around():
    layer = perturbed(lambda: Coupling((4, 5, 5)))
    jacobian = torch.func.jacrev(lambda x: layer(x)[0])(torch.randn(100)).reshape(4, 25, 4, 25)
    assert torch.equal(jacobian[:2, :, :2].reshape(50, 50), torch.eye(50))
    middle, corner = 12, 0
    assert jacobian[2, middle, 0, middle] != 0
    assert jacobian[2, middle, 0, middle - 6] != 0
    assert jacobian[2, corner, 0, 24] == 0


def test_glow_for_images_has_levels():
    flow = flows.glow_image((1, 8, 8), num_levels=2, num_layers=2, hidden_dims=(4,))
    inner = flow[0]
    assert isinstance(inner, Split)
    assert (inner.first, inner.input_dim) == (32, 64)
    assert [part.output_shape for part in flow.modules() if isinstance(part, Squeeze)] == [(8, 2, 2), (4, 4, 4)]


def test_the_smaller_levels_of_an_image_decide_how_the_larger_ones_vary():
    flow = perturbed(lambda: flows.glow_image((1, 4, 4), 2, 1, (4,)))
    jacobian = torch.func.jacrev(lambda x: flow(x)[0])(torch.randn(16))
    assert (jacobian[:, :8] != 0).any(0).all()


@pytest.mark.slow
def test_glow_learns_how_pixels_hang_together():
    """Gaussian images of correlated pixels: the likelihood of fresh ones reaches the truth's."""
    factor = torch.randn(8, 8) / 8**0.5 + torch.eye(8)
    truth = torch.distributions.MultivariateNormal(
        torch.arange(8.0), scale_tril=torch.linalg.cholesky(factor @ factor.T)
    )
    flow = flows.glow_image((2, 2, 2), num_levels=1, num_layers=4, hidden_dims=(8,))
    flow.initialize(truth.sample((500,)))
    optimizer = torch.optim.Adam(flow.parameters(), 2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        (-nf.FlowDistribution(flow).log_prob(truth.sample((200,))).mean()).backward()
        optimizer.step()
        schedule.step()
    fresh = truth.sample((20_000,))
    with torch.no_grad():
        gap = truth.log_prob(fresh) - nf.FlowDistribution(flow).log_prob(fresh)
    assert gap.mean() < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ActNorm(0), "ActNorm: input_dim must be a positive integer, got 0"),
        (lambda: ActNorm((1, 2)), r"ActNorm: expected the shape \(C, H, W\) of an image, .* got \(1, 2\)"),
        (lambda: ActNorm(3).initialize(torch.ones(3)), r"expected a batch of at least two rows, got \(3,\)"),
        (lambda: LULinear(3, [0, 1]), r"LULinear: expected a permutation of 3 channels, got \[0, 1\]"),
        (lambda: LULinear((3, 0, 1)), r"LULinear: expected the shape \(C, H, W\)"),
        (lambda: Householder(3, 3), "Householder: num_reflections must be even, got 3"),
        (lambda: Sylvester(3, 4), "Sylvester: rank must be at most input_dim = 3, got 4"),
        (lambda: Sylvester(3, 0), "Sylvester: rank must be a positive integer, got 0"),
        (lambda: Squeeze((1, 3, 4)), r"Squeeze: expected an image of even height and width, got \(1, 3, 4\)"),
        (lambda: Squeeze(4), r"Squeeze: expected the shape \(C, H, W\)"),
        (lambda: Split(Planar(3), 2), "Split: expected a layer of at most 2 dimensions, .* got Planar of 3 -> 3"),
        (lambda: Coupling((1, 4, 4)), r"Coupling: expected an image of at least two channels, .*; Squeeze it first"),
        (lambda: flows.glow_image((1, 4, 4), 3), "Squeeze: expected an image of even height and width"),
        (lambda: flows.glow_image((1, 4, 4), 0), "glow_image: num_levels must be a positive integer, got 0"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
