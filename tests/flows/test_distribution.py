"""A flow as a distribution: densities integrate to one, draws are never stale, Pyro's handlers work."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.optim import Adam

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.layers import Coupling, Indexed, LocScale, Permutation, Planar, TriangularAffine
from pyro_nflows.layers.base import Chain, Exactness, Inverse, Layer
from pyro_nflows.numerics import standard_normal_log_prob
from pyro_nflows.testing import perturbed

FLOWS = {
    "affine": lambda: TriangularAffine(2),
    "planar": lambda: flows.planar(2, 3),
    "radial": lambda: flows.radial(2, 3),
    "iaf": lambda: flows.iaf(2, 2),
    "maf": lambda: Inverse(flows.iaf(2, 2)),
    "nice": lambda: flows.nice(2, 4),
    "realnvp": lambda: flows.realnvp(2, 4),
    "spline": lambda: flows.spline(2, 2),
    "wavenet": lambda: flows.wavenet((2, 1), 2, 4, inverted=True),
    "tarflow": lambda: flows.tarflow((1, 1, 2), 2, 4, 1, 1),
}


def grid(bound=14.0, num_points=351):
    """Points of a square, and the area of a cell."""
    axis = torch.linspace(-bound, bound, num_points)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).square()


def cif_layer():
    return Chain(Indexed(Coupling(2)), LocScale(2))


def cif():
    return perturbed(cif_layer, 0.7)


def index_quadrature(flow, y, num_points=60):
    """The density of a flow with one index, summed over Gauss and Hermite's points."""
    nodes, weights = (torch.as_tensor(t) for t in _hermite(num_points))
    noise = nodes[:, None, None].expand(-1, len(y), 1)
    x, log_weight = flow.layer.inverse(y.expand(num_points, -1, -1), noise)
    terms = standard_normal_log_prob(x) - log_weight + weights.log()[:, None]
    return terms.logsumexp(0)


def _hermite(num_points):
    from numpy.polynomial.hermite_e import hermegauss

    nodes, weights = hermegauss(num_points)
    return nodes, weights / weights.sum()


# ---- densities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_densities_integrate_to_one(name):
    flow = FlowDistribution(perturbed(FLOWS[name], 0.25))
    points, area = grid()
    with torch.no_grad():
        total = flow.log_prob(points).exp().sum() * area
    assert total.item() == pytest.approx(1, abs=4e-3)


def test_a_given_base_takes_the_place_of_the_normal():
    base = dist.StudentT(4.0, torch.tensor([1.0, -1.0]), 0.5).to_event(1)
    layer = perturbed(lambda: Planar(2))
    flow = FlowDistribution(layer, base)
    y = torch.randn(7, 2)
    x, log_weight = layer.inverse(y)
    assert torch.allclose(flow.log_prob(y), base.log_prob(x) - log_weight)
    assert flow.rsample((1000,)).shape == (1000, 2)


def test_draws_follow_the_density():
    flow = FlowDistribution(perturbed(FLOWS["realnvp"], 0.25))
    points, area = grid()
    with torch.no_grad():
        expected = (flow.log_prob(points).exp()[:, None] * points.sigmoid()).sum(0) * area
        values = flow.sample((20_000,)).sigmoid()
    assert ((values.mean(0) - expected).abs() < 5 * values.std(0) / len(values) ** 0.5 + 2e-3).all()


def test_paired_draws_follow_the_density_and_have_negative_base_points():
    flow = FlowDistribution(perturbed(FLOWS["realnvp"], 0.25), paired=True)
    points, area = grid()
    with torch.no_grad():
        expected = (flow.log_prob(points).exp()[:, None] * points.sigmoid()).sum(0) * area
        pairs = flow.expand((20_001, 1)).sample().squeeze(1)
        x, _ = flow.layer.inverse(pairs)
    assert torch.allclose(x[:10_000], -x[10_000:20_000], atol=1e-4)
    assert not torch.allclose(x[-1].abs(), x[-2].abs(), atol=1e-4)
    values = (pairs[:10_000].sigmoid() + pairs[10_000:20_000].sigmoid()) / 2
    assert ((values.mean(0) - expected).abs() < 5 * values.std(0) / len(values) ** 0.5 + 2e-3).all()


# ---- auxiliary variables ----------------------------------------------------------------------------------------


def test_the_indexed_density_integrates_to_one():
    flow = FlowDistribution(perturbed(cif_layer, 0.4))
    points, area = grid(num_points=141)
    with torch.no_grad():
        total = index_quadrature(flow, points, 30).exp().sum() * area
    assert total.item() == pytest.approx(1, abs=4e-3)


@torch.no_grad()
def test_estimates_of_an_indexed_density_rise_to_it():
    flow = FlowDistribution(cif())
    y = flow.sample((4,))
    expected = index_quadrature(flow, y)
    means, errors = [], []
    for num_samples in (1, 4, 32):
        values = flow.log_prob(y.clone().expand(3000, -1, -1), num_samples)
        means.append(values.mean(0))
        errors.append(values.std(0) / len(values) ** 0.5)
    for i in range(2):
        assert (means[i + 1] > means[i] - 5 * (errors[i] + errors[i + 1])).all()
    assert (means[2] < expected + 5 * errors[2]).all()
    assert (means[2] - means[0]).mean() > 0.01
    assert torch.allclose(means[2], expected, atol=0.1)


@torch.no_grad()
def test_one_estimate_of_an_indexed_density_is_unbiased():
    flow = FlowDistribution(cif())
    y = flow.sample((4,))
    values = (flow.log_prob(y.clone().expand(20_000, -1, -1)) - index_quadrature(flow, y)).exp()
    assert ((values.mean(0) - 1).abs() < 5 * values.std(0) / len(values) ** 0.5).all()


@torch.no_grad()
def test_the_density_of_a_draw_is_too_high_on_average():
    flow = FlowDistribution(cif())
    y = flow.sample((5000,))
    excess = flow.log_prob(y) - index_quadrature(flow, y)
    assert excess.mean() > 5 * excess.std() / len(excess) ** 0.5
    inverse = (-excess).exp()
    assert abs(inverse.mean() - 1) < 5 * inverse.std() / len(inverse) ** 0.5


@torch.no_grad()
def test_more_samples_ask_for_the_estimate_of_a_draw_too():
    flow = FlowDistribution(cif())
    y = flow.sample((3,))
    own = flow.log_prob(y)
    assert torch.equal(flow.log_prob(y), own)
    assert torch.allclose(flow.log_prob(y, 20_000), index_quadrature(flow, y), atol=0.05)


# ---- the memory of a draw ---------------------------------------------------------------------------------------


class OneWay(Layer):
    """No inverse."""

    def __init__(self, input_dim):
        super().__init__(input_dim)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, noise=None):
        return self.scale * x, self.input_dim * self.scale.log().expand(x.shape[:-1])


def test_the_density_of_a_draw_needs_no_inverse():
    flow = FlowDistribution(OneWay(2))
    y = flow.rsample((5,))
    assert torch.allclose(flow.log_prob(y), standard_normal_log_prob(y))
    with pytest.raises(NotImplementedError, match="OneWay has no inverse"):
        flow.log_prob(y.clone())


@pytest.mark.parametrize("name", FLOWS)
def test_a_draw_has_the_density_and_the_gradient_of_any_point(name):
    layer = perturbed(FLOWS[name])
    flow = FlowDistribution(layer)
    y = flow.rsample((20,))
    parameters = list(layer.parameters())
    both = flow.log_prob(y), FlowDistribution(layer).log_prob(y)
    assert torch.allclose(*both, atol=1e-7)
    grads = (torch.autograd.grad(v.sum(), parameters, retain_graph=True, materialize_grads=True) for v in both)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads))


@pytest.mark.parametrize("name", FLOWS)
def test_a_draw_is_forgotten_after_a_step_of_an_optimizer(name):
    layer = perturbed(FLOWS[name])
    flow, optimizer = FlowDistribution(layer), torch.optim.Adam(layer.parameters(), 0.1)
    y = flow.rsample((20,))
    (-flow.log_prob(y)).mean().backward()
    optimizer.step()
    y.detach_()
    assert torch.allclose(flow.log_prob(y), FlowDistribution(layer).log_prob(y.clone()), atol=1e-7)


def test_a_draw_is_forgotten_when_a_parameter_is_replaced():
    layer = LocScale(2)
    flow = FlowDistribution(layer)
    y = flow.rsample((5,)).detach()
    layer.loc = torch.nn.Parameter(torch.ones(2))
    assert torch.allclose(flow.log_prob(y), standard_normal_log_prob(y - 1))


def test_a_draw_without_gradients_still_trains_the_flow():
    layer = perturbed(lambda: Planar(2))
    flow = FlowDistribution(layer)
    y = flow.sample((50,))
    (grad,) = torch.autograd.grad(flow.log_prob(y).sum(), layer.u)
    (expected,) = torch.autograd.grad(flow.log_prob(y.clone()).sum(), layer.u)
    assert torch.allclose(grad, expected)
    assert grad.any()


def test_the_draws_of_another_object_are_not_remembered():
    layer = cif()
    a, b = FlowDistribution(layer), FlowDistribution(layer)
    y = a.rsample((5,))
    first, second = b.log_prob(y), b.log_prob(y)
    assert not torch.allclose(first, second)  # fresh indices each time
    assert torch.equal(a.log_prob(y), a.log_prob(y))


# ---- shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [*FLOWS.values(), cif], ids=[*FLOWS, "cif"])
def test_shapes(make):
    flow = FlowDistribution(make())
    assert (flow.batch_shape, flow.event_shape) == ((), (2,))
    wide = flow.expand([4, 3])
    assert (wide.batch_shape, wide.event_shape) == ((4, 3), (2,))
    y = wide.rsample((5,))
    assert y.shape == (5, 4, 3, 2)
    assert wide.log_prob(y).shape == wide.log_prob(y.clone()).shape == (5, 4, 3)
    assert wide.to_event(1).log_prob(y).shape == (5, 4)
    assert wide.mask(torch.zeros(4, 3, dtype=torch.bool)).log_prob(y).abs().sum() == 0


def test_a_point_is_broadcast_to_the_batch_shape():
    flow = FlowDistribution(Planar(2))
    assert flow.expand([4]).log_prob(torch.zeros(2)).shape == (4,)
    assert flow.expand([4, 1]).log_prob(torch.zeros(3, 2)).shape == (4, 3)


def test_a_batch_of_bases():
    base = dist.Normal(torch.arange(3.0)[:, None].expand(3, 2), 1.0).to_event(1)
    flow = FlowDistribution(LocScale(2), base)
    assert flow.batch_shape == (3,)
    assert flow.expand([5, 3]).rsample((7,)).shape == (7, 5, 3, 2)
    assert torch.allclose(flow.log_prob(torch.zeros(2)), base.log_prob(torch.zeros(2)))


def test_draws_have_the_precision_of_the_layer():
    assert FlowDistribution(Planar(2).float()).rsample().dtype is torch.float32
    assert FlowDistribution(Permutation([1, 0])).rsample().dtype is torch.get_default_dtype()


# ---- in models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: Planar(2), cif], ids=["planar", "cif"])
def test_a_site_in_plates(make):
    flow = FlowDistribution(make())

    def model(obs=None):
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("z", flow)
            pyro.sample("x", flow, obs=obs)

    for obs in (None, torch.zeros(2), torch.zeros(3, 2), torch.zeros(4, 3, 2)):
        trace = poutine.trace(model).get_trace(obs)
        trace.compute_log_prob()
        assert trace.nodes["z"]["value"].shape == (4, 3, 2)
        assert trace.nodes["z"]["log_prob"].shape == trace.nodes["x"]["log_prob"].shape == (4, 3)


def test_as_a_likelihood_it_fits_a_gaussian_to_data():
    scale_tril = torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    data = torch.tensor([3.0, -1.0]) + torch.randn(500, 2) @ scale_tril.T
    layer = TriangularAffine(2)

    def model(data):
        pyro.module("flow", layer)
        with pyro.plate("data", len(data)):
            pyro.sample("x", FlowDistribution(layer), obs=data)

    svi = SVI(model, lambda data: None, Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(400):
        loss = svi.step(data)
    best = dist.MultivariateNormal(data.mean(0), data.T.cov(correction=0)).log_prob(data)
    assert loss / len(data) == pytest.approx(-best.mean().item(), abs=1e-3)
    assert torch.allclose(layer.loc, data.mean(0), atol=0.02)
    assert torch.allclose(layer.scale_tril() @ layer.scale_tril().T, data.T.cov(), rtol=0.02)


def test_as_a_likelihood_it_fits_two_gaussians():
    """Better than any one Gaussian, and nearly as good as the two that the data come from."""
    loc = torch.where(torch.rand(1000, 1) < 0.5, torch.tensor([2.0, 2.0]), torch.tensor([-2.0, -2.0]))
    tilted = torch.tensor([[0.7, 0.0], [-0.5, 0.5]])
    data = loc + torch.randn(1000, 2) @ tilted.T
    both = dist.MultivariateNormal(torch.tensor([[2.0, 2.0], [-2.0, -2.0]])[:, None], scale_tril=tilted)
    truth = both.log_prob(data).logsumexp(0).mean() - math.log(2)
    one = dist.MultivariateNormal(data.mean(0), data.T.cov()).log_prob(data).mean()
    layer = Chain(flows.spline(2, 2, (16,)), TriangularAffine(2))

    def model(data):
        pyro.module("flow", layer)
        with pyro.plate("data", len(data)):
            pyro.sample("x", FlowDistribution(layer), obs=data)

    svi = SVI(model, lambda data: None, Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(300):
        loss = svi.step(data)
    assert one + 0.3 < truth
    assert -loss / len(data) > truth - 0.1


def test_as_a_prior_it_is_the_gaussian_that_it_stands_for():
    layer = TriangularAffine(2, torch.tensor([1.0, -1.0]))
    with torch.no_grad():
        layer.lower[1, 0] = 0.8
    data = torch.randn(10, 2) + 2

    def model(data):
        z = pyro.sample("z", FlowDistribution(layer))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)

    guide = AutoDelta(model)
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(400):
        svi.step(data)
    precision = torch.linalg.inv(layer.scale_tril() @ layer.scale_tril().T)
    expected = torch.linalg.solve(precision + 10 * torch.eye(2), precision @ layer.loc + data.sum(0))
    assert torch.allclose(guide.median()["z"], expected, atol=1e-3)


# ---- copies, and mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda flow: pickle.loads(pickle.dumps(flow))])
def test_copies_after_a_draw(twin_of):
    base = dist.Normal(torch.zeros(2), 2.0).to_event(1)
    flow = FlowDistribution(perturbed(lambda: Planar(2)), base).expand([3])
    y = flow.rsample()
    twin = twin_of(flow)
    assert twin.batch_shape == (3,)
    assert torch.allclose(twin.log_prob(y), flow.log_prob(y), atol=1e-9)


def test_mistakes_are_named():
    flow = FlowDistribution(Planar(2))
    with pytest.raises(
        ValueError, match=r"expected a base_dist of event shape \(2,\), got \(\); use base_dist.to_event"
    ):
        FlowDistribution(Planar(2), dist.Normal(torch.zeros(2), 1.0))
    with pytest.raises(ValueError, match=r"expected y of shape \(..., 2\), got \(5, 3\)"):
        flow.log_prob(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="log_prob: num_samples must be a positive integer, got 0"):
        flow.log_prob(torch.zeros(2), num_samples=0)
    for moment in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match="draws of rsample"):
            getattr(flow, moment)


def test_weights_right_in_log_space_only_are_not_averaged():
    layer = perturbed(cif)
    layer.exactness = Exactness.UNBIASED
    flow = FlowDistribution(layer)
    assert flow.log_prob(torch.zeros(2)).shape == ()
    with pytest.raises(NotImplementedError, match="unbiased in log space only"):
        flow.log_prob(torch.zeros(2), num_samples=10)


def test_the_repr_says_what_it_holds():
    assert repr(FlowDistribution(Planar(2))) == "FlowDistribution(Planar, event_shape=(2,))"
