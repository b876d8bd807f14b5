"""Rows whose numbers come from an encoder of their data: the same posterior as by a table, and for new rows."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from pyro_nflows import AutoFlow, AutoIAF

NUM, EACH = 40, 3


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def data():
    z = 1.5 + torch.randn(NUM, dtype=torch.float64)
    return z[:, None] + torch.randn(NUM, EACH, dtype=torch.float64)


def groups(y, size=10, index=None):
    """Groups of three observations."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
    size = None if index is not None else min(size, len(y))
    with pyro.plate("groups", len(y), subsample_size=size, subsample=index, dim=-2) as rows:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        with pyro.plate("members", EACH, dim=-1):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def exact(y):
    """Of mu, and of rows with the data y."""
    own = data_of_training()
    precision = len(own) / (1 + 1 / EACH) + 1 / 4
    mean = own.mean(-1).sum() / (1 + 1 / EACH) / precision
    shrink = EACH / (EACH + 1)
    return (
        mean,
        precision**-0.5,
        shrink * y.mean(-1) + (1 - shrink) * mean,
        (1 / (EACH + 1) + (1 - shrink) ** 2 / precision) ** 0.5,
    )


def data_of_training():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return data()


def fitted(guide, y, num_steps=3000):
    optim = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.01 ** (1 / num_steps)})
    svi = SVI(groups, guide, optim, Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=2))
    for _ in range(num_steps):
        svi.step(y)
    return guide


class Mean(nn.Module):
    """A user's encoder."""

    def forward(self, y):
        return torch.cat([y.mean(-1, keepdim=True), y.new_ones(len(y), 1)], -1)


def test_an_amortised_guide_has_no_table():
    y = data_of_training()
    guide = AutoFlow(groups, amortize=True)
    values = guide(y)
    assert values["z"].shape == (10, 1)
    assert guide.latents.dim == 1 + NUM
    assert all(NUM not in parameter.shape for parameter in guide.parameters())
    assert "rows by an encoder of their data" in repr(guide)
    names = poutine.trace(guide).get_trace(y).param_nodes
    assert any("amortizer" in name for name in names)


def test_a_fresh_guide_is_where_init_loc_fn_says():
    y = data_of_training()
    guide = AutoFlow(groups, amortize=True, init_scale=1e-4, centering=None)
    values = guide.for_rows(y, num_samples=10)
    start = guide.latents.constrain(guide.init_loc()[None])
    assert torch.allclose(values["mu"], start["mu"], atol=1e-3)
    assert torch.allclose(values["z"], start["z"][:, :1].expand(10, 10, 1), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("amortize", [True, Mean()])
def test_the_posterior_is_that_of_the_model_for_old_rows_and_new(amortize):
    y = data_of_training()
    guide = fitted(AutoFlow(groups, amortize=amortize), y)
    with torch.random.fork_rng(devices=[]):
        new = data()[:7] + 0.5
    for rows in (y, new):
        draws = guide.for_rows(rows, size=len(rows), num_samples=20_000)
        mean, sd, means, row_sd = exact(rows)
        assert draws["z"].shape == (20_000, len(rows), 1)
        assert abs(draws["mu"].mean() - mean) < 0.1 * sd
        assert abs(draws["mu"].std() / sd - 1) < 0.1
        assert ((draws["z"][..., 0].mean(0) - means).abs() < 0.1 * row_sd).all()
        assert ((draws["z"][..., 0].std(0) / row_sd - 1).abs() < 0.05).all()


def test_several_observations_are_a_set():
    y = data_of_training()
    guide = AutoFlow(groups, amortize=True)
    guide(y)
    with torch.no_grad():
        guide.amortizer.blocks["0"].head.weight.normal_()
    torch.manual_seed(3)
    first = guide.for_rows(y[:5], num_samples=4)
    torch.manual_seed(3)
    second = guide.for_rows(y[:5, torch.tensor([2, 0, 1])], num_samples=4)
    torch.manual_seed(3)
    other = guide.for_rows(y[5:10], num_samples=4)
    assert torch.allclose(first["z"], second["z"])
    assert not torch.allclose(first["z"], other["z"])


@pytest.mark.parametrize("kind", [AutoFlow, AutoIAF])
def test_what_is_computed_of_data_alone_is_read_too(kind):
    x = torch.randn(NUM, dtype=torch.float64)

    def model(y):
        slope = pyro.sample("slope", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", NUM, subsample_size=8) as at:
            pyro.deterministic("x", x[at])
            noise = pyro.sample("noise", dist.LogNormal(y.new_zeros(()), 1.0))
            pyro.deterministic("mean", slope[0] * x[at])
            pyro.sample("y", dist.Normal(slope[0] * x[at], noise), obs=y[at])

    guide = kind(model, amortize=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert all(svi.step(x) < torch.inf for _ in range(3))
    inputs = guide.amortizer.blocks["0"].inputs
    assert [(part.name, part.is_set, part.width) for part in inputs] == [("x", False, 1), ("y", False, 1)]


@pytest.mark.parametrize("event_dim", [None, 1])
def test_covariates_are_of_their_row_alone(event_dim):
    x = torch.randn(NUM, 3, dtype=torch.float64)

    def model(x, y):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("rows", len(y), subsample_size=min(8, len(y))) as at:
            pyro.deterministic("x", x[at], event_dim=event_dim)
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[at])

    guide = AutoFlow(model, amortize=True)
    guide(x, x[:, 0])
    assert [part.width for part in guide.amortizer.blocks["0"].inputs] == [3, 1]
    for parameter in guide.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    found = []
    for other in (0.0, 1.0):
        torch.manual_seed(0)
        moved = torch.cat([x[:1], x[1:4] + other])
        found.append(guide.for_rows(moved, x[:4, 0], num_samples=3)["z"])
    assert torch.allclose(found[0][:, 0], found[1][:, 0])
    assert not torch.allclose(found[0][:, 1:], found[1][:, 1:])


def test_it_is_the_same_after_saving_pickling_and_copying():
    y = data_of_training()
    guide = AutoFlow(groups, amortize=True)
    guide(y)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fresh = AutoFlow(groups, amortize=True)
    fresh.load_state_dict(guide.state_dict())
    pyro.clear_param_store()
    copies = [guide, fresh, copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))]
    copies[-1].give_model(groups, pyro.infer.autoguide.init_to_median)
    found = []
    for one in copies:
        one(y)  # a loaded guide, too, sees its model on a minibatch first
        torch.manual_seed(5)
        found.append(one.for_rows(y, size=NUM, num_samples=3)["z"])
    assert all(torch.allclose(one, found[0]) for one in found)


def test_a_call_predicts_where_data_are():
    y, index = data_of_training(), torch.tensor([4, 1])
    guide = AutoFlow(groups, amortize=True, create_plates=lambda y, index: pyro.plate("groups", NUM, subsample=index))
    guide(y, index=index)
    draws = Predictive(groups, guide=guide, num_samples=5, return_sites=["z"])(y, index=index)
    assert draws["z"].shape == (5, 2, 1)


def test_what_cannot_be_is_told():
    y = data_of_training()

    def prior(y):
        groups(y)

    with pytest.raises(TypeError, match=r"amortize must be True, False, or a torch.nn.Module"):
        AutoFlow(groups, amortize="yes")
    with pytest.raises(ValueError, match="this model had none in its first run"):
        AutoFlow(lambda y: groups(y, NUM), amortize=True, structure="plates")(y)
    with pytest.raises(ValueError, match="no site in plate 'groups' is observed"):
        AutoFlow(poutine.block(poutine.uncondition(prior), hide=["y"]), amortize=True)(y)
    with pytest.raises(ValueError, match=r"the encoder must give features of shape \(10, F\) for 10 rows"):
        AutoFlow(groups, amortize=nn.Flatten(0))(y)
    with pytest.raises(
        ValueError, match=r"fails at the data of rows \(mat1.*of site 'y', a tensor \(10, 3\) of torch.fl"
    ):
        AutoFlow(groups, amortize=nn.Linear(EACH + 1, 2))(y)
    guide = AutoFlow(groups, amortize=True)
    guide(y)
    for ask in (guide.get_posterior, lambda: guide.median(y)):
        with pytest.raises(ValueError, match="there is no posterior of all rows at once"):
            ask()
    with pytest.raises(ValueError, match="this model has none"):
        AutoFlow(lambda y: groups(y, NUM)).for_rows(y)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda features: features[:, :1], r"\(10, 1\)"),
        (lambda features: features[:3], r"\(3, 2\)"),
        (lambda features: features.sum(-1), r"\(10,\)"),
        (lambda features: (features,), "tuple"),
    ],
)
def test_an_encoder_whose_features_change_is_told(change, got):
    encoder, y = Mean(), data_of_training()
    guide = AutoFlow(groups, amortize=encoder)
    guide(y)
    encoder.register_forward_hook(lambda module, given, features: change(features))
    with pytest.raises(ValueError, match=rf"amortize: the encoder must give features of shape \(10, 2\).*got {got}"):
        guide(y)


def test_features_may_be_of_another_precision():
    encoder = Mean()
    encoder.register_forward_hook(lambda module, given, features: features.float())
    AutoFlow(groups, amortize=encoder)(data_of_training())


def test_an_encoder_of_ones_own_has_one_name():
    """It had a second one, under which it was saved twice and took the step size of the model's parameters."""
    y, encoder = data_of_training(), nn.Sequential(nn.Linear(EACH, 4), nn.Tanh())
    guide = AutoFlow(groups, amortize=encoder)
    assert guide.encoder is encoder
    svi = SVI(groups, guide, guide.optimizer({"encoder": 0.1, "model": 0.0}), Trace_ELBO())
    before = encoder[0].weight.detach().clone()
    for _ in range(3):  # its head starts at zero
        svi.step(y)
    assert not torch.equal(encoder[0].weight, before)
    names = list(pyro.get_param_store().keys())
    stored = [id(pyro.get_param_store()._params[name]) for name in names]
    assert len(set(stored)) == len(stored) == len(list(guide.parameters()))
    tensors = {key: value for key, value in guide.state_dict().items() if value.dim()}
    places = [value.data_ptr() for key, value in tensors.items() if not key.endswith("_extra_state")]
    assert len(set(places)) == len(places)
    assert sum("0.weight" in key and "encoder" in key for key in tensors) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda guide: pickle.loads(pickle.dumps(guide))])
def test_a_copy_has_the_encoder_that_it_trains(copied):
    guide = AutoFlow(groups, amortize=nn.Sequential(nn.Linear(EACH, 4), nn.Tanh()))
    guide(data_of_training())
    new = copied(guide)
    assert new.encoder is new.amortizer.blocks["0"].encoder
    assert new.encoder is not guide.encoder
    again = AutoFlow(groups, amortize=nn.Sequential(nn.Linear(EACH, 4), nn.Tanh()))
    again.load_state_dict(guide.state_dict())
    assert again.encoder is again.amortizer.blocks["0"].encoder
    torch.testing.assert_close(again.encoder[0].weight, guide.encoder[0].weight)
