"""Before any training, a flow of hubs is put where the curvature of the others given them says."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.worth import effective
from pyro_nflows.flows import default
from pyro_nflows.inference.given_hubs import given_hubs, put_given_hubs
from pyro_nflows.inference.hub_flow import fit_flow, fit_flows
from pyro_nflows.inference.hub_layers import Parts
from pyro_nflows.inference.hub_marginal import Coordinates, Points, hub_marginal, points_of
from pyro_nflows.layers import Coupling, TriangularAffine
from pyro_nflows.layers.base import Chain
from pyro_nflows.numerics import standard_normal_log_prob
from tests.guides.test_hubs import DATA, T, chain, exact, local_level
from tests.modes.test_conditional_modes import modes


def test_points_are_of_the_density_that_they_are_weighed_by():
    loc, root = torch.tensor([1.0, -2.0]).double(), torch.tensor([[0.5, 0.0], [0.3, 0.2]]).double()
    points, log_density = points_of(loc, root, 4096, 0)
    target = torch.distributions.MultivariateNormal(loc, scale_tril=root)
    weight = (target.log_prob(points) - log_density(points)).exp()
    assert torch.allclose(weight.mean(), torch.ones(()).double(), atol=0.01)
    assert torch.allclose(weight @ points / len(points), loc, atol=0.01)


def test_the_posterior_of_the_hubs_is_found_from_afar():
    finder = modes()
    found = hub_marginal(finder, torch.tensor([2.0, 2.0]).double(), 0.05 * torch.eye(2).double())
    assert found is not None
    _, mean, sd = posterior_of_hubs()
    assert bool(((found.loc - mean).abs() < 0.1 * sd).all())
    assert bool((((found.root @ found.root.T).diagonal().sqrt() / sd - 1).abs() < 0.1).all())


def test_a_gaussian_posterior_far_away_is_found_at_once():
    finder = modes(lambda z: -0.5 * (z - 20.0).square().sum(1) - (z[:, 9:12].sum(1) - 60.0).square())
    found = hub_marginal(finder, torch.zeros(2).double(), torch.eye(2).double())
    assert found is not None
    assert len(found.points.hubs) < 1600  # by moments alone each step is of a width or two
    assert bool(((found.loc - 20.0).abs() < 0.2).all())


def test_a_posterior_that_is_nowhere_is_not_found():
    finder = modes(lambda z: z.sum(1) * torch.nan)
    assert hub_marginal(finder, torch.zeros(2).double(), torch.eye(2).double()) is None


def test_a_flow_is_fitted_to_weighed_points():
    torch.manual_seed(0)
    flow = Chain(TriangularAffine(2), Coupling(2))
    points, log_density = points_of(torch.zeros(2).double(), torch.eye(2).double(), 1024, 0)
    log_p = standard_normal_log_prob((points - 0.5) / 0.6)
    fit_flow(flow, points, log_p, log_p - log_density(points))
    y, log_weight = flow(torch.randn(2000, 2))
    log_ratio = standard_normal_log_prob((y - 0.5) / 0.6) - standard_normal_log_prob(flow.inverse(y)[0]) + log_weight
    assert effective(log_ratio.detach()) > 0.99


def test_tails_that_fall_like_an_exponential_function_are_fitted_too():
    """By likelihood the same flow has an ESS of .99 and weights of up to twice or three times the median."""
    torch.manual_seed(0)
    points, log_density = points_of(torch.zeros(2).double(), torch.eye(2).double(), 1024, 0)

    def log_p(x):
        return -0.5 * x[:, 0].square() - 2 * torch.nn.functional.softplus(x[:, 1]) + x[:, 1] - 0.1 * x[:, 1].square()

    flow = on_hubs_flow(2)
    fit_flow(flow, points, log_p(points), log_p(points) - log_density(points))
    u = torch.randn(4000, 2)
    with torch.no_grad():
        y, log_weight = flow(u)
    log_ratio = log_p(y.double()) - (standard_normal_log_prob(u) - log_weight).double()
    assert effective(log_ratio) > 0.999
    assert log_ratio.max() - log_ratio.median() < 0.3


def test_a_flow_has_little_mass_where_there_are_no_points():
    """By the variance of the log ratio alone, a whole normal is as good for points of its upper half as that half."""
    torch.manual_seed(0)
    points = torch.linspace(0.0025, 3.9975, 800)[:, None].double()
    log_p = standard_normal_log_prob(points)
    flow = on_hubs_flow(1)
    fit_flow(flow, points, log_p, log_p + math.log(4.0))
    with torch.no_grad():
        assert (flow(torch.randn(4000, 1))[0] < 0).float().mean() < 0.1


def on_hubs_flow(dim: int) -> Chain:
    """As :func:`~pyro_nflows.flows.on_hubs` has it."""
    return Chain(TriangularAffine(dim), default(dim))


def posterior_of_hubs():
    """The posterior of a walk's two standard deviations on a grid, and its mean and standard deviation."""
    finder = modes()
    axis = torch.linspace(-3.0, 3.0, 61).double()
    grid = torch.cartesian_prod(axis, axis)
    weight = finder.at(grid).log_marginal.softmax(0)
    mean = weight @ grid
    return finder, mean, (weight @ (grid - mean).square()).sqrt()


def test_points_of_several_densities_are_weighed_as_draws_of_their_mixture():
    finder, mean, sd = posterior_of_hubs()
    points = Points(finder)
    for number, (loc, width) in enumerate([(mean + 3 * sd, 0.2 * sd), (mean - sd, sd), (mean + sd, 2 * sd)]):
        points.add(*points_of(loc, width.diag(), 512, number))
    weight = points.log_weight.softmax(0)
    found = weight @ points.hubs
    assert bool(((found - mean).abs() < 5 * sd / points.worth**0.5).all())
    assert points.worth > 200


def test_a_flow_is_fitted_again_to_points_of_its_own():
    torch.manual_seed(0)
    finder, mean, sd = posterior_of_hubs()
    flow, points = Chain(TriangularAffine(2), Coupling(2)), Points(finder)
    points.add(*points_of(mean + 2 * sd, sd.diag(), 192, 0))
    before = len(points.hubs)
    coordinates = Coordinates(lambda hubs: (hubs - 1.0) / 0.5, lambda x: 1.0 + 0.5 * x.double(), 2 * math.log(0.5))
    fit_flows(points, flow, coordinates)
    assert len(points.hubs) > before
    with torch.no_grad():
        made = coordinates.hubs(flow(torch.randn(4000, 2))[0])
    assert bool(((made.mean(0) - mean).abs() < 0.2 * sd).all())
    assert bool(((made.std(0) / sd - 1).abs() < 0.2).all())


@pytest.mark.parametrize("model", [local_level, chain])
def test_a_gaussian_chain_needs_next_to_no_training(model):
    pyro.clear_param_store()
    vi = VI(AutoFlow(model), seed=0, progress_bar=False)
    vi.run(DATA)
    assert vi.diagnostics()["num_steps"] <= 600  # none, unless k-hat is unlucky
    assert vi.diagnostics()["ess"] > 0.9
    log_evidence, mean, sd = exact(DATA)
    draws = vi.posterior.draws
    assert abs(draws.log_weight.double().logsumexp(0) - math.log(len(draws.z)) - log_evidence) < 0.05
    weight = draws.log_weight.double().softmax(0)
    found = weight @ draws.z.double()
    noise = 5 * sd / (effective(draws.log_weight) * len(weight)) ** 0.5
    assert len(found) == T + 2
    assert bool(((found - mean).abs() < noise + 0.02 * sd).all())


def test_a_layer_of_another_kind_is_left_alone():
    pyro.clear_param_store()
    guide = AutoFlow(lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1)))
    guide()
    layer = guide.plain_layer()
    assert Parts.of(layer) is None
    before = copy.deepcopy(layer.state_dict())
    assert put_given_hubs(None, layer, None) is None
    assert not given_hubs(None, layer)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


class Stopped(BaseException):
    """As an interrupt, which a fit would take for the wish to see what there is."""


@pytest.mark.parametrize("error", [Stopped, LookupError])
def test_what_is_stopped_on_the_way_leaves_the_layer_as_it_was(error, monkeypatch):
    seen = []

    def stopped(trainer, layer):
        seen.append((layer, copy.deepcopy(layer.state_dict())))
        with torch.no_grad():
            layer.end.loc.fill_(torch.nan)
        raise error

    monkeypatch.setattr("pyro_nflows.inference.given_hubs.given_hubs", stopped)
    pyro.clear_param_store()
    with pytest.raises(error):
        VI(AutoFlow(local_level), seed=0, progress_bar=False).run(DATA)
    ((layer, before),) = seen
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_where_there_is_no_regression_the_flow_is_trained(monkeypatch):
    def refused(*args):
        raise RuntimeError("no")

    monkeypatch.setattr("pyro_nflows.inference.given_hubs.regressed", refused)
    pyro.clear_param_store()
    vi = VI(AutoFlow(local_level), seed=0, progress_bar=False)
    vi.run(DATA)
    assert vi.diagnostics()["num_steps"] > 0
    assert vi.diagnostics()["outcome"].is_trusted
