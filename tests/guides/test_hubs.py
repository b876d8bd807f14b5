"""Guides of models whose latents are all tied to a few: these first, then the others given them."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.engine import Engine, Trainer
from pyro_nflows.inference.turned import turn
from pyro_nflows.layers import SparseShear
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.modes.gaussians import gaussian_of
from tests.registry import hub_elimination

T = 70
WALK = torch.arange(T)
DATA = 0.3 * torch.randn(T, generator=torch.Generator().manual_seed(0)).cumsum(0)
DATA = DATA + 0.5 * torch.randn(T, generator=torch.Generator().manual_seed(1))


def local_level(y):
    """A random walk, seen with noise; both standard deviations are unknown."""
    state, noise = pyro.sample("scales", dist.Normal(torch.tensor([-1.0, -0.5]), 0.5).to_event(1)).exp().unbind(-1)
    h = pyro.sample("h", dist.ImproperUniform(dist.constraints.real_vector, (), (len(y),)))
    pyro.sample("first", dist.Normal(0.0, 1.0), obs=h[..., 0])
    pyro.sample("steps", dist.Normal(h[..., :-1], state[..., None]).to_event(1), obs=h[..., 1:])
    pyro.sample("y", dist.Normal(h, noise[..., None]).to_event(1), obs=y)


def chain(y):
    """The same, latent by latent."""
    state, noise = pyro.sample("scales", dist.Normal(torch.tensor([-1.0, -0.5]), 0.5).to_event(1)).exp().unbind(-1)
    h = pyro.sample("h_0", dist.Normal(0.0, 1.0))
    for t in range(1, len(y)):
        pyro.sample(f"y_{t - 1}", dist.Normal(h, noise), obs=y[t - 1])
        h = pyro.sample(f"h_{t}", dist.Normal(h, state))
    pyro.sample("last", dist.Normal(h, noise), obs=y[-1])


def summed(z, state):
    return torch.cat([z[..., :1], state[..., None] * z[..., 1:]], -1).cumsum(-1)


def noncentered(y):
    """The same, by standard normal steps, given before their scales."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    state, noise = pyro.sample("scales", dist.Normal(torch.tensor([-1.0, -0.5]), 0.5).to_event(1)).exp().unbind(-1)
    h = summed(z, state)
    pyro.sample("y", dist.Normal(h, noise[..., None]).to_event(1), obs=y)


def exact(y, num=80):
    """By quadrature over both scales: the log evidence, and means and standard deviations of scales and states."""
    points = torch.linspace(-4.0, 4.0, num)
    grid = torch.cartesian_prod(-1.0 + 0.5 * points, -0.5 + 0.5 * points)
    state, noise = grid.exp().square().unbind(-1)
    prior = 1.0 + state[:, None, None] * torch.minimum(WALK[:, None], WALK)
    noisy = torch.distributions.MultivariateNormal(torch.zeros(T), prior + noise[:, None, None] * torch.eye(T))
    log_prior = torch.distributions.Normal(torch.tensor([-1.0, -0.5]), 0.5).log_prob(grid).sum(-1)
    log_joint = noisy.log_prob(y) + log_prior + 2 * math.log(0.5 * float(points[1] - points[0]))
    weight = log_joint.softmax(0)
    solved = torch.cholesky_solve(torch.cat([y[:, None].expand(len(grid), T, 1), prior], -1), noisy.scale_tril)
    means = (prior @ solved)[..., 0]
    variances = prior.diagonal(dim1=-2, dim2=-1) - (prior * solved[..., 1:].mT).sum(-1)
    values, spread = torch.cat([grid, means], 1), torch.cat([torch.zeros_like(grid), variances], 1)
    mean = weight @ values
    return log_joint.logsumexp(0), mean, (weight @ (spread + (values - mean).square())).sqrt()


def turned(latent_dim):
    """Given both scales."""
    return flows.on_turned(latent_dim, (T, T + 1))


def guide_of(model):
    pyro.clear_param_store()
    guide = AutoFlow(model, turned) if model is noncentered else AutoFlow(model)
    guide(DATA)
    return guide


def trainer_of(model):
    guide = guide_of(model)
    return Trainer(LogJoint(BoundModel(model, (DATA,), {}), guide.latents), [], Engine.EAGER, False)


@pytest.mark.parametrize("model", [local_level, chain])
def test_states_are_drawn_given_their_scales_however_they_are_written(model):
    guide = guide_of(model)
    flow = guide.plain_layer().flow
    assert isinstance(flow, flows.GivenHubs)
    assert any(isinstance(layer, SparseShear) for layer in flow)
    assert f"joint over {T + 2} latents, all others given scales, end sparse" in repr(guide)


def test_scales_come_first_in_a_flow_given_them():
    guide = guide_of(noncentered)
    flow = guide.plain_layer().flow
    assert isinstance(flow, flows.TurnedHubs)
    assert flow.hubs == (T, T + 1)
    assert f"joint over {T + 2} latents, all others given scales, end full" in repr(guide)


def test_a_flow_of_ones_own_is_of_all_latents():
    pyro.clear_param_store()
    guide = AutoFlow(local_level, flows.realnvp)
    guide(DATA)
    assert not isinstance(guide.plain_layer().flow, flows.GivenHubs)


def test_a_flow_is_turned_to_hubs_and_to_where_the_curvature_depends_on_them():
    """In the directions that are found, the curvature of the others given the hubs is nearly diagonal."""
    layer, trainer = guide_of(noncentered).plain_layer(), trainer_of(noncentered)
    gaussian_of(layer).laplace(trainer.density, torch.zeros(T + 2)).place(layer)
    x = torch.randn(500, T + 2)
    covariance = layer.end.scale_tril() @ layer.end.scale_tril().T
    turn(trainer, layer)
    matrix = layer.end.scale_tril() @ layer.flow.turn(torch.eye(T + 2))[0].T
    torch.testing.assert_close(matrix @ matrix.T, covariance)
    assert matrix[T:, 2:].abs().max() < 1e-10 * matrix[T:].abs().max()
    moved = [matrix.T @ trainer.density.hessian(layer.end.loc + sign * matrix[:, 0]) @ matrix for sign in (1.0, -1.0)]
    change = (moved[0] - moved[1])[2:, 2:]
    apart = change - change.diagonal().diag()
    assert apart.norm() < 0.3 * change.norm()
    assert change[:16, :16].norm() > 0.9 * change.norm()
    assert torch.isfinite(layer(x)[0]).all()


@pytest.mark.parametrize("model", [local_level, noncentered])
def test_a_state_goes_into_a_fresh_guide_and_through_a_pickle(model):
    guide = guide_of(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(3, T + 2)
    loaded = AutoFlow(model, turned) if model is noncentered else AutoFlow(model)
    loaded.load_state_dict(guide.state_dict())
    pickled = pickle.loads(pickle.dumps(guide))
    pyro.clear_param_store()
    loaded(DATA)
    for other in (loaded, pickled):
        torch.testing.assert_close(other.plain_layer()(x), guide.plain_layer()(x))
        assert type(other.plain_layer().flow) is type(guide.plain_layer().flow)


def test_a_pattern_without_hubs_is_refused():
    with pytest.raises(ValueError, match="expected hubs and other latents, got 0 of 3"):
        flows.on_hubs(type(hub_elimination(4)).of(hub_elimination(4).pattern.without_hubs()))


def test_hubs_without_others_are_refused():
    with pytest.raises(ValueError, match="on_turned: expected hubs and other latents, got 0 of 3"):
        flows.on_turned(3, ())


@pytest.mark.slow
@pytest.mark.parametrize("model", [local_level, noncentered])
def test_a_local_level_model_is_what_quadrature_says(model):
    num_steps = None if model is noncentered else 600
    vi = VI(AutoFlow(model), seed=0, num_steps=num_steps, progress_bar=False).run(DATA)
    evidence, mean, sd = exact(DATA)
    found = vi.diagnostics()
    assert found["outcome"].is_trusted
    assert found["iwae"] == pytest.approx(float(evidence), abs=0.02)
    draws = vi.get_samples(8000)
    h = draws["h"] if "h" in draws else summed(draws["z"], draws["scales"][:, 0].exp())
    z = torch.cat([draws["scales"], h], 1)
    assert float(((z.mean(0) - mean) / sd).abs().max()) < 0.06
    torch.testing.assert_close(z.std(0) / sd, torch.ones_like(sd), atol=0.06, rtol=0.0)
