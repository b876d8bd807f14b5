"""Which affine end a joint guide has."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import AutoFlow, AutoRealNVP
from pyro_nflows.guides import ends
from pyro_nflows.layers import LocScale, LowRankAffine, SparseAffine, TriangularAffine
from pyro_nflows.layers import LocScale as Trivial

T = 70


def walk(y=torch.zeros(T)):
    """A random walk as textbooks write it."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (len(y),)))
    pyro.sample("steps", dist.Normal(z[..., :-1], scale[..., None]).to_event(1), obs=z[..., 1:])
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def chain(y=torch.zeros(T)):
    """The same, latent by latent."""
    scale, z = pyro.sample("scale", dist.LogNormal(0.0, 0.3)), torch.tensor(0.0)
    for t, value in enumerate(y):
        z = pyro.sample(f"z_{t}", dist.Normal(z, scale))
        pyro.sample(f"y_{t}", dist.Normal(z, 1.0), obs=value)


def non_centered(y=torch.zeros(T)):
    """The same, by steps."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    e = pyro.sample("e", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(scale[..., None] * e.cumsum(-1), 1.0).to_event(1), obs=y)


def autoregression(y=torch.zeros(200)):
    """A chain that has no memory where a guide begins: there its steps are tied to as few others as its states."""
    a, scale = pyro.sample("a", dist.Normal(0.0, 0.5)), pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    z = torch.tensor(0.0)
    for t, value in enumerate(y):
        z = pyro.sample(f"z_{t}", dist.Normal(a * z, scale))
        pyro.sample(f"y_{t}", dist.Normal(z, 1.0), obs=value)


def end_of(model, **options):
    pyro.clear_param_store()
    guide = AutoFlow(model, Trivial, **options)
    guide()
    return guide.plain_layer().end, guide


@pytest.mark.parametrize("model", [walk, chain, autoregression])
def test_a_random_walk_has_a_sparse_end_however_it_is_written(model):
    end, guide = end_of(model)
    assert isinstance(end, SparseAffine)
    assert end.elimination.pattern.hubs.tolist() == ([0, 1] if model is autoregression else [0])
    assert "end sparse" in repr(guide)
    assert not guide.latents.centering


def test_steps_of_a_walk_are_tied_to_all_before_them():
    end, guide = end_of(non_centered)
    assert isinstance(end, TriangularAffine)
    assert "ties most latents to most others" in repr(guide)
    with pytest.raises(ValueError, match='end="low_rank" or "full"'):
        end_of(non_centered, end="sparse")


def test_above_a_number_of_latents_a_matrix_is_too_much(monkeypatch):
    monkeypatch.setattr(ends, "MAX_FULL_RANK", T)
    assert isinstance(end_of(non_centered)[0], LowRankAffine)


@pytest.mark.parametrize(
    ("asked", "made"), [("full", TriangularAffine), ("low_rank", LowRankAffine), ("diagonal", LocScale)]
)
def test_an_end_may_be_asked_for(asked, made):
    assert isinstance(end_of(walk, end=asked)[0], made)
    assert isinstance(end_of(lambda: walk(torch.zeros(5)), end=asked)[0], made)


def test_a_small_sparse_end_may_be_asked_for():
    assert isinstance(end_of(lambda: walk(torch.zeros(5)), end="sparse")[0], SparseAffine)


def test_a_wrong_end_is_refused():
    with pytest.raises(ValueError, match='end must be "auto"'):
        AutoFlow(walk, end="banded")


def test_guides_of_other_flows_keep_a_diagonal_end():
    guide = AutoRealNVP(walk, num_layers=2, hidden_dims=(2,))
    guide()
    assert isinstance(guide.plain_layer().end, LocScale)


@pytest.mark.parametrize("asked", ["sparse", "low_rank"])
def test_a_state_goes_into_a_fresh_guide_before_and_after_its_first_call(asked):
    torch.manual_seed(0)
    _, guide = end_of(walk, end=asked)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for is_called in (False, True):
        fresh = AutoFlow(walk, Trivial, end=asked)
        pyro.clear_param_store()
        if is_called:
            fresh()
        fresh.load_state_dict(guide.state_dict())
        pyro.clear_param_store()
        fresh()
        x = torch.randn(3, T + 1)
        torch.testing.assert_close(fresh.plain_layer()(x), guide.plain_layer()(x))
