"""Rows of plates with a flow that they share: codes from tables or from an encoder, densities, and what is refused."""

import copy
import functools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import init_to_mean
from torch import nn

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.flows.rows import RowDistribution, RowFlow
from pyro_nflows.flows.whitened import Whitened
from pyro_nflows.layers import PlateAffine
from pyro_nflows.model.hierarchy import Hierarchy, Outline

NUM, DIM = 12, 2
IAF = functools.partial(flows.iaf, num_layers=2, hidden_dims=(8,))
PLANAR = functools.partial(flows.planar, num_layers=2)


def cif(latent_dim, context_dim=0):
    return flows.cif(latent_dim, functools.partial(flows.iaf, num_layers=1, hidden_dims=(8,)), context_dim=context_dim)


EACH = pytest.mark.parametrize("build", [IAF, PLANAR, cif], ids=["iaf", "planar", "cif"])


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def data(num=NUM):
    return torch.randn(num, DIM, dtype=torch.float64)


def model(y, size=6):
    """Rows that the data know as well as the prior does."""
    with pyro.plate("rows", len(y), subsample_size=min(size, len(y))) as index:
        z = pyro.sample("z", dist.Normal(y.new_zeros(DIM), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y[index])


def nested(y):
    """Each of two outer rows has inner ones; all three levels have latents."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
        with pyro.plate("inner", 4, dim=-1, subsample_size=3) as index:
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[:, index])


def perturbed(module, scale=0.3):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


class Encoder(nn.Module):
    """A user's encoder."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(DIM, 5).double()

    def forward(self, y):
        return self.net(y).tanh()


@EACH
@pytest.mark.parametrize("amortize", [False, True], ids=["table", "encoder"])
def test_a_fresh_guide_is_where_init_loc_fn_says(build, amortize):
    y = data()
    guide = AutoFlow(model, amortize=amortize and Encoder(), rows=build, init_scale=1e-4, init_loc_fn=init_to_mean)
    assert guide(y)["z"].shape == (6, DIM)
    z = guide.for_rows(y, size=NUM, num_samples=10)["z"]
    torch.testing.assert_close(z, torch.zeros(10, NUM, DIM, dtype=torch.float64), rtol=0, atol=1e-2)


@EACH
def test_densities_of_rows_weigh_draws_right(build):
    hierarchy = Hierarchy.of_outlines({"z": Outline((3, DIM), {"rows": 0})})
    layer = perturbed(Whitened(flows.on_plates(hierarchy, rows=build), PlateAffine(hierarchy)).double(), 0.03)
    rows = RowDistribution(RowFlow(layer, torch.zeros(0, dtype=torch.float64)), 0, DIM, torch.Size((3,)), 1)
    z = rows.expand((20_000, 3)).sample()
    log_q = rows.log_prob(z)  # of the same draws, also where they were drawn from an expanded one
    target = dist.Normal(layer.end.loc.view(3, DIM), 0.7 * layer.end.log_scale.exp().view(3, DIM)).to_event(1)
    ratio = (target.log_prob(z) - log_q).exp()
    error = ratio.std(0) / len(ratio) ** 0.5
    assert ((ratio.mean(0) - 1).abs() < 5 * error).all()
    assert error.max() < 0.05
    if build is not cif:
        torch.testing.assert_close(rows.log_prob(z.clone()), log_q)


@EACH
def test_rows_are_encoded_whatever_their_number(build):
    guide = AutoFlow(model, amortize=Encoder(), rows=build)
    guide(data())
    perturbed(guide)
    y = data(5)
    torch.manual_seed(1)
    z = guide.for_rows(y, size=5, num_samples=4000)["z"]
    torch.manual_seed(2)
    again = guide.for_rows(y[[4, 4]], size=2, num_samples=4000)["z"]
    error = (z[:, 4].var(0) + again[:, 0].var(0)).sqrt() / 4000**0.5
    assert ((z[:, 4].mean(0) - again[:, 0].mean(0)).abs() < 5 * error).all()
    assert all(NUM not in parameter.shape for parameter in guide.parameters())


@EACH
def test_training_moves_every_parameter_but_what_says_nothing(build):
    y = data()
    guide = AutoFlow(model, amortize=Encoder(), rows=build)
    guide(y)
    before = copy.deepcopy(guide.state_dict())
    svi = SVI(model, guide, guide.optimizer(num_steps=20), Trace_ELBO())
    losses = [svi.step(y) for _ in range(20)]
    assert torch.tensor(losses).isfinite().all()
    after = guide.state_dict()
    still = [name for name in before if before[name].dtype.is_floating_point and before[name].equal(after[name])]
    assert [name for name in still if before[name].numel() and ("net" in name or "flows" in name)] == []


@pytest.mark.slow
def test_amortised_rows_reach_the_exact_posterior():
    y = data(60)
    guide = AutoFlow(model, amortize=True, rows=IAF)
    svi = SVI(
        model, guide, guide.optimizer(num_steps=600), Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
    )
    for _ in range(600):
        svi.step(y, size=20)
    z = guide.for_rows(y, size=60, num_samples=4000)["z"]
    assert (z.mean(0) - y / 2).square().mean().sqrt() < 0.05
    assert (z.std(0) - 0.5**0.5).square().mean().sqrt() < 0.05


@EACH
def test_nested_plates_and_latents_outside_of_them(build):
    y = torch.randn(2, 4, dtype=torch.float64)
    guide = AutoFlow(nested, rows=build, centering=None)
    values = guide(y)
    assert values["z"].shape == (2, 3)
    assert values["a"].shape == (2, 1)
    svi = SVI(
        nested, guide, guide.optimizer(num_steps=10), Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=2)
    )
    assert all(svi.step(y) < 1e6 for _ in range(10))


@EACH
def test_a_state_and_copies_have_the_same_posterior(build):
    y = data()
    guide = AutoFlow(model, amortize=Encoder(), rows=build, end="diagonal")
    guide(y)
    perturbed(guide)
    fresh = AutoFlow(model, amortize=Encoder(), rows=build, end="diagonal")
    fresh.load_state_dict(guide.state_dict())
    pyro.clear_param_store()
    fresh(y)
    for other in (fresh, copy.deepcopy(guide)):
        found = []
        for one in (guide, other):
            torch.manual_seed(1)
            pyro.clear_param_store()
            found.append(one.for_rows(y, size=NUM, num_samples=3)["z"])
        torch.testing.assert_close(*found)
    assert pickle.loads(pickle.dumps(guide)).state_dict().keys() == guide.state_dict().keys()


def test_a_diagonal_end_has_no_correlations_within_rows():
    guide = AutoFlow(model, end="diagonal")
    guide(data())
    assert not any("within" in name for name, _ in guide.named_parameters())
    assert any("within" in name for name, _ in _called(AutoFlow(model)).named_parameters())


def _called(guide):
    pyro.clear_param_store()
    guide(data())
    return guide


def test_vi_trains_and_trusts_rows_of_a_bijective_flow():
    y = data(60)
    vi = VI(AutoFlow(model, amortize=True, rows=IAF, end="diagonal"), num_steps=300, seed=0, progress_bar=False)
    vi.run(y, size=20)
    z = vi.get_samples(2000)["z"]
    assert (z.mean(0) - y / 2).square().mean().sqrt() < 0.1
    assert (z.std(0) - 0.5**0.5).square().mean().sqrt() < 0.1


def test_vi_says_that_rows_need_a_density():
    with pytest.raises(ValueError, match=r"rows= is a flow with auxiliary variables.*train it by SVI"):
        VI(AutoFlow(model, amortize=True, rows=cif), num_steps=10, progress_bar=False).run(data())


def test_a_joint_guide_has_no_rows():
    with pytest.raises(ValueError, match="which a joint guide does not tell apart"):
        AutoFlow(model, rows=IAF, structure="joint")


def test_a_flow_of_rows_of_another_dimension_is_told():
    with pytest.raises(ValueError, match=r"flow of a row was built with \d -> \d dimensions, but a row has \d"):
        AutoFlow(model, rows=lambda dim: flows.realnvp(dim + 1))(data())


def test_a_model_without_plates_has_no_rows():
    with pytest.raises(ValueError, match="plate"):
        AutoFlow(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), rows=IAF)()
