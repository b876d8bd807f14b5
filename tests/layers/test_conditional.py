"""Conditional layers: one mechanism, a row of the context for a row of the batch, the same parameters throughout."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_nflows as nf
from pyro_nflows import flows
from pyro_nflows.layers import (
    Autoregressive,
    Conditional,
    Coupling,
    Indexed,
    LocScale,
    Permutation,
    Planar,
    Radial,
    Rescaled,
    TriangularAffine,
)
from pyro_nflows.layers.base import Chain, Inverse
from pyro_nflows.testing import perturbed
from pyro_nflows.transformers import RationalQuadratic

MAKERS = {
    "Conditional(Planar)": lambda: Conditional(Planar(3), 2),
    "Conditional(Radial)": lambda: Conditional(Radial(3), 2),
    "Conditional(TriangularAffine)": lambda: Conditional(TriangularAffine(3), 2),
    "Conditional(Coupling)": lambda: Conditional(Coupling(3, RationalQuadratic(4)), 2),
    "Conditional(Autoregressive)": lambda: Conditional(Autoregressive(3), 2),
    "Conditional(Indexed)": lambda: Conditional(Indexed(Coupling(3)), 2),
    "Rescaled": lambda: Rescaled(Conditional(Planar(3), 2)),
    "Coupling": lambda: Coupling(3, flip=True, context_dim=2),
    "Coupling(1)": lambda: Coupling(1, context_dim=2),
    "Autoregressive": lambda: Autoregressive(3, context_dim=2),
    "Indexed": lambda: Indexed(Conditional(Planar(3), 2), context_dim=2),
    "Chain": lambda: Chain(Planar(3), Conditional(Planar(3), 2), Inverse(Autoregressive(3, context_dim=2))),
}
#: Shapes of the context's batch and of the point's, and of both together.
SHAPES = [((), (6,), (6,)), ((6,), (), (6,)), ((6,), (6,), (6,)), ((6,), (4, 6), (4, 6)), ((4, 1), (6,), (4, 6))]
everywhere = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@everywhere
@pytest.mark.parametrize(("context_shape", "x_shape", "shape"), SHAPES)
def test_each_row_is_mapped_at_its_own_context(make, context_shape, x_shape, shape):
    layer = perturbed(make)
    context, x = torch.randn(*context_shape, 2), torch.randn(*x_shape, layer.input_dim)
    noise = torch.randn(*x_shape, layer.noise_dim)
    y, log_weight = layer.at(context)(x, noise)
    num_rows = torch.Size(shape).numel()
    rows = [t.expand(*shape, -1).reshape(num_rows, t.shape[-1]) for t in (context, x, noise)]
    alone = [layer.at(c)(point, eps) for c, point, eps in zip(*rows)]
    assert torch.allclose(y, torch.stack([row for row, _ in alone]).reshape(*shape, -1))
    assert torch.allclose(log_weight, torch.stack([row for _, row in alone]).reshape(shape))


@everywhere
def test_path_gradients_follow_each_row_at_its_own_context(make):
    layer = perturbed(make)
    context, x, noise = torch.randn(5, 2), torch.randn(5, layer.input_dim), torch.randn(5, layer.noise_dim)
    together = layer.at(context).scored(x, noise, -x, 0 * x)
    alone = layer.at(context[2]).scored(x[2], noise[2], -x[2], 0 * x[2])
    for got, expected in zip(together, alone):
        if isinstance(got, float):
            assert got == expected == 0.0
        else:
            assert torch.allclose(got[2], expected)


@everywhere
def test_the_inverse_undoes_each_row(make):
    layer = perturbed(make)
    if layer.noise_dim:
        pytest.skip("many points lead to one")
    bound, x = layer.at(torch.randn(5, 2)), torch.randn(4, 5, layer.input_dim)
    y, log_weight = bound(x)
    back, same = bound.inverse(y)
    assert torch.allclose(back, x, atol=1e-6)
    assert torch.allclose(same, log_weight, atol=1e-6)


@everywhere
def test_the_context_moves_points_and_log_weights(make):
    layer = perturbed(make)
    x, noise = torch.randn(layer.input_dim), torch.randn(layer.noise_dim)
    (y, log_weight), (other, other_weight) = (layer.at(c)(x, noise) for c in torch.randn(2, 2))
    assert not torch.isclose(y, other).all()
    assert not torch.isclose(log_weight, other_weight)


@everywhere
def test_vmap_and_tracing_go_through_the_context(make):
    layer = perturbed(make)

    def run(context, x, noise):
        return layer.at(context)(x, noise)

    inputs = [torch.randn(5, 2), torch.randn(5, layer.input_dim), torch.randn(5, layer.noise_dim)]
    fresh = [torch.randn_like(t) for t in inputs]
    for function in (torch.func.vmap(run), make_fx(run)(*inputs)):
        for got, expected in zip(function(*fresh), run(*fresh)):
            assert torch.allclose(got, expected)


@pytest.mark.parametrize("name", ["Conditional(Coupling)", "Conditional(Indexed)", "Autoregressive", "Chain"])
def test_torch_compile_takes_a_bound_layer_whole(name):
    bound = perturbed(MAKERS[name]).at(torch.randn(5, 2))
    x, noise = torch.randn(5, 3), torch.randn(5, bound.noise_dim) if bound.noise_dim else None
    compiled = torch.compile(bound, backend="eager", fullgraph=True)
    for got, expected in zip(compiled(x, noise), bound(x, noise)):
        assert torch.allclose(got, expected)


def test_a_view_has_the_parameters_and_their_names():
    layer = MAKERS["Chain"]()
    bound = layer.at(torch.zeros(4, 2))
    assert bound.state_dict().keys() == layer.state_dict().keys()
    assert all(a is b for a, b in zip(bound.parameters(), layer.parameters()))
    assert layer.batch_shape == ()
    assert bound.batch_shape == (4,)


def test_a_layer_is_bound_to_many_contexts_at_once_and_again():
    layer = perturbed(MAKERS["Chain"])
    contexts, x = torch.randn(2, 2), torch.randn(3)
    first, second = (layer.at(context) for context in contexts)
    again = first.at(contexts[1])
    assert torch.equal(second(x)[0], again(x)[0])
    assert not torch.allclose(first(x)[0], second(x)[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_of_a_view_is_its_own(copied):
    bound, x = perturbed(MAKERS["Chain"]).at(torch.randn(5, 2)), torch.randn(5, 3)
    twin, expected = copied(bound), bound(x)[0]
    assert torch.equal(twin(x)[0], expected)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert torch.equal(bound(x)[0], expected)


def test_gradients_reach_the_context():
    context = torch.randn(5, 2, requires_grad=True)
    perturbed(MAKERS["Conditional(Planar)"]).at(context)(torch.randn(5, 3))[1].sum().backward()
    assert context.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Planar(3).at(torch.ones(2)), r"Planar takes no context; .* Conditional\(Planar\(...\), context_dim\)"),
        (
            lambda: Conditional(Planar(3), 2)(torch.ones(3)),
            r"expected a context of shape \(..., 2\), got none; use layer.at",
        ),
        (lambda: Coupling(3, context_dim=2)(torch.ones(3)), r"MLP: expected a context of shape \(..., 2\), got none"),
        (
            lambda: Conditional(Planar(3), 2).at(torch.ones(5, 3)),
            r"expected a context of shape \(..., 2\), got \(5, 3\)",
        ),
        (
            lambda: Conditional(Planar(3), 2).at(torch.ones(5, 2))(torch.ones(4, 3)),
            r"batch shape \(4,\), which does not broadcast with the context's, \(5,\)",
        ),
        (lambda: Conditional(Planar(3), 0), "Conditional: context_dim must be a positive integer, got 0"),
        (lambda: Coupling(3, context_dim=-1), "MLP: context_dim must be 0 or a positive integer, got -1"),
        (lambda: Conditional(Permutation([1, 0]), 2), "Conditional: Permutation has no parameters"),
        (lambda: Conditional(Coupling(3, context_dim=2), 2), "a part of Coupling takes a context already"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("make", [lambda: Coupling(3, context_dim=2), lambda: Conditional(Planar(3), 2)])
def test_a_context_is_a_tensor_of_the_layers_precision_or_whole_numbers(make):
    layer, x = make(), torch.randn(5, 3)
    with pytest.raises(TypeError, match=r"expected a context that is a tensor, got list; torch.as_tensor"):
        layer.at([1.0, 2.0])
    with pytest.raises(TypeError, match=r"expected a context of \w+ of the same dtype .*float32, got torch.float64"):
        make().float().at(torch.ones(5, 2))(x.float())
    labels = torch.tensor([[0, 1]]).expand(5, 2)
    assert torch.equal(layer.at(labels)(x)[0], layer.at(labels.double())(x)[0])


def test_a_distribution_has_a_row_for_each_of_the_context():
    layer = perturbed(MAKERS["Chain"])
    contexts = torch.randn(5, 2)
    flow = nf.FlowDistribution(layer.at(contexts))
    assert (flow.batch_shape, flow.event_shape) == ((5,), (3,))
    x = flow.sample((7,))
    assert x.shape == (7, 5, 3)
    alone = nf.FlowDistribution(layer.at(contexts[3])).log_prob(x[:, 3].clone())
    assert torch.allclose(flow.log_prob(x.clone())[:, 3], alone, atol=1e-7)
    assert nf.FlowDistribution(Chain(layer.at(contexts), LocScale(3))).batch_shape == (5,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Conditional(TriangularAffine(2), 1, hidden_dims=(8,)),
        lambda: flows.realnvp(2, 4, (8,), context_dim=1),
        lambda: Inverse(flows.iaf(2, 2, (8,), context_dim=1)),
    ],
    ids=["Conditional(TriangularAffine)", "realnvp", "maf"],
)
def test_a_conditional_density_is_learned_in_a_pyro_model(make):
    """Of ``y = (c, -c) + e^{c / 2} noise``: the flow's likelihood reaches the truth's on fresh data."""

    def draw(num):
        c = torch.rand(num, 1) * 2 - 1
        truth = dist.Normal(torch.cat([c, -c], -1), (c / 2).exp()).to_event(1)
        y = truth.sample()
        return c, y, truth.log_prob(y).mean()

    flow = make().double()

    def model(c, y):
        pyro.module("flow", flow)
        with pyro.plate("rows", len(c)):
            pyro.sample("y", nf.FlowDistribution(flow.at(c)), obs=y)

    svi = SVI(model, lambda c, y: None, ClippedAdam({"lr": 3e-2, "lrd": 0.99}), pyro.infer.Trace_ELBO())
    for _ in range(300):
        svi.step(*draw(256)[:2])
    c, y, best = draw(20_000)
    with torch.no_grad():
        assert nf.FlowDistribution(flow.at(c)).log_prob(y).mean() > best - 0.02


def test_a_conditional_flow_is_a_prior_for_a_guide():
    """``z | c`` has a conditional flow as its prior, and ``c`` is a latent of the same model."""
    prior = Conditional(LocScale(1), 1, hidden_dims=()).requires_grad_(False)
    prior.net.head.fill_(0.0)[0] = 1.0  # loc = c

    def model():
        c = pyro.sample("c", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        z = pyro.sample("z", nf.FlowDistribution(prior.at(c)))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=torch.tensor([3.0]))

    vi = nf.VI(nf.AutoFlow(model), num_steps=200, seed=0, engine="traced", progress_bar=False)
    vi.run()
    draws = vi.get_samples(4000)
    assert draws["c"].mean().item() == pytest.approx(1.0, abs=0.06)
    assert draws["z"].mean().item() == pytest.approx(2.0, abs=0.06)
