"""The contract: what a layer takes, what it gives, and what it says when it cannot."""

import pytest
import torch

from pyro_nflows.layers import (
    Autoregressive,
    Coupling,
    Elementwise,
    Indexed,
    LocScale,
    Permutation,
    Planar,
    Radial,
    TriangularAffine,
)
from pyro_nflows.layers.base import Chain, Exactness, Inverse, Layer
from pyro_nflows.testing import perturbed


class OneWay(Layer):
    """No inverse, and no path gradient of its own."""

    def forward(self, x, noise=None):
        return 2 * x, torch.full(x.shape[:-1], 2.0).log() * self.input_dim


def indexed(dim=2, index_dim=1):
    return perturbed(lambda: Indexed(Coupling(dim), index_dim))


@pytest.mark.parametrize("make", [Autoregressive, Coupling, LocScale, Planar, Radial, TriangularAffine])
@pytest.mark.parametrize("size", [0, -1, 2.0, "2"])
def test_a_dimension_is_a_positive_integer(make, size):
    with pytest.raises(ValueError, match=f"{make.__name__}: input_dim must be a positive integer, got {size!r}"):
        make(size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Planar(3)(torch.ones(5, 2)), r"Planar.forward: expected x of shape \(..., 3\), got \(5, 2\)"),
        (lambda: Planar(3).inverse(torch.ones(5, 2)), r"Planar.inverse: expected y of shape \(..., 3\), got \(5, 2\)"),
        (lambda: Planar(3)(torch.tensor(1.0)), r"expected x of shape \(..., 3\), got \(\)"),
        (
            lambda: indexed(2)(torch.ones(5, 2)),
            r"Indexed.forward: expected noise of shape \(5, 1\), got NoneType; "
            r"pass torch.randn\(\*x.shape\[:-1\], 1\)",
        ),
        (lambda: indexed(2)(torch.ones(5, 2), torch.ones(5, 3)), r"expected noise of shape \(5, 1\), got \(5, 3\)"),
        (lambda: indexed(2)(torch.ones(5, 2), torch.ones(4, 1)), r"expected noise of shape \(5, 1\), got \(4, 1\)"),
        (lambda: indexed(2)(torch.ones(5, 2), [1.0]), r"expected noise of shape \(5, 1\), got list"),
        (lambda: Indexed(Planar(2), 0), "Indexed: index_dim must be a positive integer, got 0"),
        (lambda: LocScale(2, init_scale=0.0), "LocScale: init_scale must be a positive number, got 0.0"),
        (
            lambda: TriangularAffine(2, init_scale=-1.0),
            "TriangularAffine: init_scale must be a positive number, got -1",
        ),
        (lambda: Permutation([0, 2]), "Permutation: expected a permutation of 0, ..., D - 1"),
        (lambda: Chain(), "Chain: expected at least one layer, got none"),
        (lambda: Chain(Planar(2), Radial(3)), "Planar gives 2 dimensions, but the next layer, Radial, takes 3"),
        (lambda: Inverse(OneWay(2)), "Inverse: OneWay has no inverse"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Own(Layer):
    """A user's layer that gives whatever it is told to give."""

    def __init__(self, gives):
        super().__init__(3)
        self.gives = gives

    def forward(self, x, noise=None):
        return self.gives(x)

    def inverse(self, y, noise=None):
        return self.gives(y)


@pytest.mark.parametrize("run", [lambda layer, x: layer(x), lambda layer, x: layer.inverse(x)])
@pytest.mark.parametrize(
    ("gives", "error", "message"),
    [
        (lambda x: 2 * x, TypeError, r"tensors of shapes \(5, 3\) and \(5,\), got \(5, 3\); return both"),
        (lambda x: None, TypeError, "got NoneType; return both"),
        (lambda x: (x[:, :2], x.sum(-1)), ValueError, r"got \(5, 2\) and \(5,\); . has a coordinate for each of the"),
        (lambda x: (x, x.sum(-1, keepdim=True)), ValueError, r"and \(5, 1\); log_weight is one number a row: sum"),
        (lambda x: (x, 0 * x), ValueError, r"got \(5, 3\) and \(5, 3\); log_weight is one number a row"),
        (lambda x: (x, torch.tensor(0.0)), ValueError, r"got \(5, 3\) and \(\); log_weight is one number a row"),
        (lambda x: (x, 0.0), ValueError, r"got \(5, 3\) and float; log_weight is one number a row"),
    ],
)
def test_what_a_layer_of_ones_own_gives_is_compared_with_the_contract(run, gives, error, message):
    """A log-weight of shape (5, 1) was broadcast to 5 x 5 densities, silently."""
    for layer in (Own(gives), Chain(Own(gives), Permutation([2, 0, 1]))):
        with pytest.raises(error, match=rf"^Own\.(forward|inverse): expected the pair .*{message}"):
            run(layer, torch.ones(5, 3))


@pytest.mark.parametrize("make", [Autoregressive, Coupling, Planar, lambda dim: Chain(Coupling(dim), Planar(dim))])
def test_another_precision_or_device_is_named(make):
    layer = make(3)
    message = r"\.forward: expected x of the same dtype as the layer's parameters, torch.float64, got torch.float32"
    with pytest.raises(TypeError, match=message):
        layer(torch.ones(5, 3, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"expected x on the device of the layer's parameters, cpu, got meta"):
        layer(torch.ones(5, 3, device="meta"))


def test_noise_of_another_precision_is_named():
    """What torch promotes by itself is no mistake."""
    noise = torch.ones(5, 1)
    with pytest.raises(TypeError, match=r"expected noise of the same dtype .* torch.float32, got torch.float64"):
        indexed(2).float()(torch.ones(5, 2, dtype=torch.float32), noise)
    assert indexed(2)(torch.ones(5, 2), noise.float())[0].dtype is torch.float64


class Squares:
    """A user's element-wise map, with mistakes in it."""

    num_params = 1

    def __init__(self, gives):
        self.gives = gives

    def forward(self, x, params):
        return self.gives(x, params)

    def inverse(self, y, params):
        return y, 0 * y


@pytest.mark.parametrize("make", [Autoregressive, Coupling, Elementwise])
@pytest.mark.parametrize(
    ("gives", "error", "got"),
    [
        (lambda x, params: x, TypeError, r"\(2,\)"),
        (lambda x, params: (x, params), ValueError, r"\(2,\), \(2, 1\)"),
        (lambda x, params: (x, params.sum()), ValueError, r"\(2,\), \(\)"),
    ],
)
def test_a_transformer_of_ones_own_is_tried_when_it_is_given(make, gives, error, got):
    with pytest.raises(error, match=rf"expected Squares.forward\(x, params\) to give a pair.*; got {got}$"):
        make(3, Squares(gives))


def test_a_missing_inverse_names_the_alternative():
    layer = OneWay(2)
    assert not layer.has_inverse
    with pytest.raises(NotImplementedError, match=r"OneWay has no inverse.*\(Coupling, Autoregressive\)"):
        layer.inverse(torch.ones(2))
    assert not Chain(Planar(2), layer).has_inverse
    assert not Indexed(layer).has_inverse


def test_a_layer_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Layer does not define forward\(x, noise\)"):
        Layer(2)(torch.ones(2))


def test_grades_are_ordered_and_a_chain_is_as_good_as_its_worst_layer():
    assert Exactness.UNBIASED < Exactness.PROPER < Exactness.EXACT
    assert Chain(Planar(2), LocScale(2)).exactness is Exactness.EXACT
    assert Chain(Planar(2), indexed()).exactness is Exactness.PROPER
    assert Inverse(indexed()).exactness is Exactness.PROPER
    unbiased = Planar(2)
    unbiased.exactness = Exactness.UNBIASED
    assert Chain(indexed(), unbiased).exactness is Exactness.UNBIASED
    assert Indexed(unbiased).exactness is Exactness.UNBIASED


def test_a_chain_hands_each_layer_its_share_of_the_noise():
    first, second = indexed(2, 1), indexed(2, 3)
    chain = Chain(first, Planar(2), second)
    assert (chain.noise_dim, chain.inverse_noise_dim) == (4, 4)
    x, noise = torch.randn(5, 2), torch.randn(5, 4)
    a, weight_a = first(x, noise[:, :1])
    b, weight_b = chain[1](a)
    c, weight_c = second(b, noise[:, 1:])
    y, log_weight = chain(x, noise)
    assert torch.equal(y, c)
    assert torch.allclose(log_weight, weight_a + weight_b + weight_c)
    back, back_weight = chain.inverse(y, noise)
    b, weight_b = second.inverse(y, noise[:, 1:])
    a, weight_a = first.inverse(chain[1].inverse(b)[0], noise[:, :1])
    assert torch.equal(back, a)
    assert torch.allclose(back_weight, weight_a + weight_b + chain[1].inverse(b)[1])


def test_an_inverse_draws_its_own_noise_unless_it_is_given():
    layer, y = indexed(), torch.randn(5, 2)
    assert not torch.equal(layer.inverse(y)[0], layer.inverse(y)[0])
    noise = torch.randn(5, 1)
    assert torch.equal(layer.inverse(y, noise)[0], layer.inverse(y, noise)[0])


def test_the_inverse_of_an_inverse_is_the_layer():
    layer, x = perturbed(lambda: Radial(2)), torch.randn(5, 2)
    assert all(torch.equal(a, b) for a, b in zip(Inverse(Inverse(layer))(x), layer(x)))


def test_transport_is_refused_where_there_is_none():
    x = torch.randn(5, 2)
    for layer in (indexed(), Chain(Planar(2), indexed()), Inverse(indexed())):
        with pytest.raises(
            NotImplementedError, match=f"{type(layer).__name__} has no path gradient; use gradient='total'"
        ):
            layer.transport(x, x, x)


def test_transport_needs_no_inverse():
    x, score = torch.randn(2, 5, 2), torch.randn(2, 5, 2)
    assert torch.allclose(OneWay(2).transport(x, 2 * x, score), score / 2)


def test_affine_layers_start_where_they_are_told():
    for make in (LocScale, TriangularAffine):
        layer = make(3, torch.arange(3.0), 0.5)
        y, log_weight = layer(torch.ones(3))
        assert torch.allclose(y, torch.arange(3.0) + 0.5)
        assert torch.allclose(log_weight, 3 * torch.tensor(0.5).log())


def test_a_triangular_layer_is_the_matrix_that_it_says():
    layer, x = perturbed(lambda: TriangularAffine(3)), torch.randn(5, 3)
    matrix = layer.scale_tril()
    assert not matrix.triu(1).any()
    assert torch.allclose(layer(x)[0], layer.loc + x @ matrix.T)
    assert torch.allclose(layer(x)[1], torch.linalg.slogdet(matrix).logabsdet.expand(5))


def test_an_autoregressive_layer_is_triangular():
    for reverse in (False, True):
        layer = perturbed(lambda reverse=reverse: Autoregressive(4, reverse=reverse))
        jacobian = torch.func.jacrev(lambda x, layer=layer: layer(x)[0])(torch.randn(4))
        assert not (jacobian.tril(-1) if reverse else jacobian.triu(1)).any()
        assert (jacobian != 0).sum() == 10


def test_a_coupling_leaves_one_half_alone():
    for flip in (False, True):
        layer, x = perturbed(lambda flip=flip: Coupling(5, flip=flip)), torch.randn(7, 5)
        moved = layer(x)[0] != x
        assert moved.all(0).tolist() == [flip, flip, not flip, not flip, not flip]


@pytest.mark.parametrize("gap", [1e-3, 1e-6])
def test_planar_inverts_where_it_nearly_folds(gap):
    layer = Planar(2)
    with torch.no_grad():
        layer.w.copy_(torch.tensor([3.0, -2.0]))
        layer.u.copy_(torch.log(torch.tensor(gap)) * layer.w / layer.w.square().sum())
        x = torch.linspace(-0.5, 0.5, 101)[:, None] * layer.w
        y, log_weight = layer(x)
        again, same = layer.inverse(y)
    assert log_weight.min() < -3
    assert torch.allclose(layer(again)[0], y, atol=1e-9)
    assert torch.allclose(same, layer(again)[1], atol=1e-4)


def test_radial_inverts_at_its_centre():
    layer = perturbed(lambda: Radial(3))
    x, log_weight = layer.inverse(layer.center.detach())
    assert torch.equal(x, layer.center)
    assert torch.allclose(log_weight, layer(layer.center)[1])


def test_index_weights_are_those_of_the_two_gaussians():
    """By torch's own densities, at the index that the noise gives."""
    layer = indexed(2, 2)
    x, eps = torch.randn(5, 2), torch.randn(5, 2)
    loc, log_scale, _ = layer.index._params(x)
    q = torch.distributions.Normal(loc, log_scale.exp())
    u = loc + log_scale.exp() * eps
    shift, stretch = layer._affine(u)
    x_prime = stretch.exp() * (x + shift)
    loc, log_scale, _ = layer.reverse._params(x_prime)
    r = torch.distributions.Normal(loc, log_scale.exp())
    y, inner = layer.inner(x_prime)
    expected = inner + stretch.sum(-1) + r.log_prob(u).sum(-1) - q.log_prob(u).sum(-1)
    got, log_weight = layer(x, eps)
    assert torch.allclose(got, y)
    assert torch.allclose(log_weight, expected)
    again, same = layer.inverse(y, (u - loc) / log_scale.exp())
    assert torch.allclose(again, x)
    assert torch.allclose(same, expected)
