"""Guides of models whose latents are all tied to a few: these first, then the others given them."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.layers import SparseShear
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


def guide_of(model):
    pyro.clear_param_store()
    guide = AutoFlow(model)
    guide(DATA)
    return guide


@pytest.mark.parametrize("model", [local_level, chain])
def test_states_are_drawn_given_their_scales_however_they_are_written(model):
    guide = guide_of(model)
    flow = guide.plain_layer().flow
    assert isinstance(flow, flows.GivenHubs)
    assert any(isinstance(layer, SparseShear) for layer in flow)
    assert f"joint over {T + 2} latents, all others given scales, end sparse" in repr(guide)


def test_a_flow_of_ones_own_is_of_all_latents():
    pyro.clear_param_store()
    guide = AutoFlow(local_level, flows.realnvp)
    guide(DATA)
    assert not isinstance(guide.plain_layer().flow, flows.GivenHubs)


def test_a_state_goes_into_a_fresh_guide_and_through_a_pickle():
    guide = guide_of(local_level)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(3, T + 2)
    loaded = AutoFlow(local_level)
    loaded.load_state_dict(guide.state_dict())
    pickled = pickle.loads(pickle.dumps(guide))
    pyro.clear_param_store()
    loaded(DATA)
    for other in (loaded, pickled):
        torch.testing.assert_close(other.plain_layer()(x), guide.plain_layer()(x))
        assert isinstance(other.plain_layer().flow, flows.GivenHubs)


def test_a_pattern_without_hubs_is_refused():
    with pytest.raises(ValueError, match="expected hubs and other latents, got 0 of 3"):
        flows.on_hubs(type(hub_elimination(4)).of(hub_elimination(4).pattern.without_hubs()))


@pytest.mark.slow
def test_a_local_level_model_is_what_quadrature_says():
    vi = VI(AutoFlow(local_level), seed=0, num_steps=600, progress_bar=False).run(DATA)
    evidence, mean, sd = exact(DATA)
    found = vi.diagnostics()
    assert found["outcome"].is_trusted
    assert found["iwae"] == pytest.approx(float(evidence), abs=0.02)
    draws = vi.get_samples(8000)
    z = torch.cat([draws["scales"], draws["h"]], 1)
    assert float(((z.mean(0) - mean) / sd).abs().max()) < 0.06
    torch.testing.assert_close(z.std(0) / sd, torch.ones_like(sd), atol=0.06, rtol=0.0)
