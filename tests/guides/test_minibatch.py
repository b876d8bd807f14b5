"""Guides of models whose plates are subsampled: all rows have numbers, and a call has the rows of a minibatch."""

import copy
import functools
import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal

from pyro_nflows import ELBO, IWAE, AutoCIF, AutoDAIS, AutoFlow

Y = torch.tensor([0.4, 2.2, -1.0, 3.1, 1.7, 0.2], dtype=torch.float64)


def groups(y, size=2, index=None):
    """Rows integrate out to y ~ N(mu, 2)."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(y[0]), 2.0))
    with pyro.plate("groups", 6, subsample_size=None if index is not None else size, subsample=index) as rows:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y if index is not None else y[rows])


def by_argument(y, size=None, index=None):
    """The plate that a minibatch's guide needs."""
    return pyro.plate("groups", 6, subsample=index)


def nested(y, sizes=(2, 3)):
    """Schools and classes, both subsampled, beside another subsampled plate; a simplex, a vector and an interval."""
    scale = pyro.sample("scale", dist.LogNormal(y.new_zeros(2), 0.3).to_event(1))
    with pyro.plate("others", 5, subsample_size=2, dim=-1):
        pyro.sample("part", dist.Uniform(y.new_zeros(()), 2.0))
    schools = pyro.plate("schools", 4, subsample_size=sizes[0], dim=-3)
    with schools as at:
        mix = pyro.sample("mix", dist.Dirichlet(y.new_ones(3)))
        with pyro.plate("classes", 6, subsample_size=sizes[1], dim=-1) as rows:
            z = pyro.sample("z", dist.Normal(mix[..., :2], scale).to_event(1))
            pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y[at][:, None, rows])


TABLE = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).reshape(4, 6)


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def moved(guide, *args, by=0.2, **kwargs):
    """A guide whose parameters are not those of a fresh one."""
    guide(*args, **kwargs)
    with torch.no_grad():
        for parameter in guide.layer.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return guide


def test_latents_are_those_of_all_rows_and_a_call_has_those_of_a_minibatch():
    guide = AutoFlow(groups)
    values = guide(Y)
    assert guide.follows_plates
    assert "groups: 6 rows of 1" in repr(guide)
    assert guide.latents.shapes["z"] == guide.median(Y)["z"].shape == (6,)
    assert values["z"].shape == (2,)


@pytest.mark.parametrize("centering", [None, 0.0])
def test_log_q_of_minibatches_is_on_average_that_of_all_rows(centering):
    """Every one of the 15 minibatches at the same values: exact, since both are sums over rows."""
    guide = moved(AutoFlow(groups, create_plates=by_argument, centering=centering), Y[:2], index=torch.arange(2))
    every = torch.arange(6)
    with torch.no_grad():
        full = poutine.trace(guide).get_trace(Y, index=every)
        values = {name: full.nodes[name]["value"] for name in ("mu", "z")}
        hidden = {name: site["value"] for name, site in full.nodes.items() if site.get("infer", {}).get("is_auxiliary")}
        top, rows = hidden.values()
        found = []
        for index in itertools.combinations(range(6), 2):
            index = torch.tensor(index)
            given = dict(zip(hidden, (top, rows[index])))
            trace = poutine.trace(poutine.condition(guide, given)).get_trace(Y[index], index=index)
            assert torch.allclose(trace.nodes["z"]["value"], values["z"][index])
            trace.compute_log_prob()
            found.append(trace.log_prob_sum())
        expected = guide.log_prob(values, 1, Y, index=every)
    assert torch.allclose(torch.stack(found).mean(), expected)


def test_the_elbo_of_minibatches_is_on_average_that_of_all_rows():
    guide = moved(AutoFlow(groups, centering=None), Y)
    whole = AutoFlow(groups, centering=None, structure="plates")
    whole(Y, 6)
    whole.load_state_dict(guide.state_dict())
    with torch.no_grad():
        few = torch.tensor([Trace_ELBO().loss(groups, guide, Y) for _ in range(400)])
        many = torch.tensor([Trace_ELBO().loss(groups, whole, Y, 6) for _ in range(100)])
    error = math.hypot(few.std().item() / 400**0.5, many.std().item() / 100**0.5)
    assert abs(few.mean() - many.mean()).item() < 5 * error
    assert few.std() > many.std()


def test_all_rows_of_the_guide_are_the_guide_without_subsampling():
    guide = moved(AutoFlow(groups, create_plates=by_argument, centering=None), Y[:2], index=torch.arange(2))
    whole = AutoFlow(lambda y: groups(y, 6), centering=None, structure="plates")
    whole(Y)
    whole.load_state_dict(guide.state_dict())
    values = guide(Y, index=torch.arange(6))
    assert torch.allclose(whole.log_prob(values), guide.log_prob(values))
    for name, value in whole.median().items():
        assert torch.allclose(value, guide.median()[name])


def exact():
    """Means and standard deviations of mu and of the rows."""
    precision = len(Y) / 2 + 1 / 4
    mean = Y.sum() / 2 / precision
    return mean, precision**-0.5, (Y + mean) / 2, (0.5 + 1 / precision / 4) ** 0.5


def at_the_posterior(centering):
    """A guide with the exact posterior: of z in the coordinates v = z - (1 - c) mu."""
    guide = AutoFlow(groups, centering=centering, init_scale=1.0)
    guide(Y)
    mean, sd, means, _ = exact()
    end, rest = guide.layer.layer.end, 0.0 if centering is None else 1.0 - centering
    mu, z = (guide.latents.sites[name].columns for name in ("mu", "z"))
    with torch.no_grad():
        end.loc[mu], end.log_scale[mu] = mean, math.log(sd)
        end.loc[z], end.log_scale[z] = means - rest * mean, 0.5 * math.log(0.5)
        end.above["0"][..., 0] = (0.5 - rest) * sd / 0.5**0.5 / guide.layer.factors["layers.1.above.0"]
    return guide


@pytest.mark.parametrize("centering", [None, 0.0, 0.3])
def test_the_exact_posterior_is_where_minibatches_have_no_gradient_on_average(centering):
    """Those of the rows are zero in each draw, that of mu's scale in each pair; that of its mean is noise."""
    guide, elbo = at_the_posterior(centering), Trace_ELBO(50, vectorize_particles=True, max_plate_nesting=1)
    losses, gradients = [], {}
    for _ in range(30):
        guide.zero_grad()
        losses.append(elbo.loss_and_grads(groups, guide, Y))
        for name, parameter in guide.layer.named_parameters():
            if parameter.grad is not None:
                gradients.setdefault(name, []).append(parameter.grad.clone())
    mu, z = (guide.latents.sites[name].columns for name in ("mu", "z"))
    for name, found in gradients.items():
        found = torch.stack(found)
        if name in ("layer.layers.1.loc", "layer.layers.1.log_scale"):
            assert found[:, z].abs().max() < 1e-10
            found = found[:, mu]
            assert (found.abs().max() < 1e-10) if name.endswith("log_scale") else (found.std() > 0.1)
        error = found.std(0) / len(found) ** 0.5 + 1e-10
        assert (found.mean(0).abs() < 5 * error).all(), name
    covariance = 2 * torch.eye(6).double() + 4
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(Y), covariance).log_prob(Y)
    losses = torch.tensor(losses)
    assert abs(losses.mean() + evidence) < 5 * losses.std() / len(losses) ** 0.5


def test_particles_without_a_partner_have_the_minibatchs_noise_in_scales():
    guide = at_the_posterior(0.0)
    at, sizes = guide.latents.sites["mu"].columns, {}
    for num in (1, 3, 4):
        guide.zero_grad()
        Trace_ELBO(num, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(groups, guide, Y)
        sizes[num] = guide.layer.layer.end.log_scale.grad[at].abs().item()
    assert sizes[4] < 1e-10 < 1e-3 < min(sizes[1], sizes[3])


def data_alone(y, size=5):
    """No latents in the plate that is subsampled."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y), subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y[rows])


@pytest.mark.parametrize(
    ("loss", "is_paired"),
    [
        (Trace_ELBO(6, vectorize_particles=True, max_plate_nesting=1), True),
        (ELBO(6), True),
        (ELBO(6, compile=True), True),
        (IWAE(6), False),
    ],
)
def test_particles_of_a_minibatch_of_data_are_pairs_too(loss, is_paired):
    """At the exact posterior: a minibatch says where it is, and nothing of its width."""
    y = torch.randn(20, 2, dtype=torch.float64)
    guide = AutoFlow(data_alone)
    guide(y)
    end = guide.layer.layer.end
    with torch.no_grad():
        end.loc.copy_(y.sum(0) / 21)
        end.log_scale.fill_(-0.5 * math.log(21))
    for _ in range(3):
        guide.zero_grad()
        loss.loss_and_grads(data_alone, guide, y)
        assert end.loc.grad.abs().max() > 0.1
        assert (end.log_scale.grad.abs().max().item() < 1e-10) is is_paired


@pytest.mark.parametrize(("plate", "is_paired"), [("num_particles_vectorized", True), ("predictions", False)])
def test_only_particles_of_an_objective_are_pairs(plate, is_paired):
    y = Y[:, None].expand(6, 2)
    for model, args in ((data_alone, (y,)), (groups, (Y,))):
        pyro.clear_param_store()
        guide = AutoFlow(model)
        guide(*args)
        with pyro.plate(plate, 4, dim=-2):
            mu = guide(*args)["mu"].reshape(4, -1)
        loc = guide.layer.layer.end.loc[guide.latents.sites["mu"].columns]
        apart = (mu[:2] + mu[2:] - 2 * loc).abs()
        assert apart.max() < 1e-10 if is_paired else apart.min() > 1e-4


def fitted(guide, model, args=lambda: (Y,), num_steps=3000):
    optim = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.01 ** (1 / num_steps)})
    svi = SVI(model, guide, optim, Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1))
    for _ in range(num_steps):
        svi.step(*args())
    return guide


@pytest.mark.slow
@pytest.mark.parametrize("centering", [None, "auto"])
def test_svi_with_minibatches_finds_the_exact_posterior(centering):
    guide = fitted(AutoFlow(groups, centering=centering), groups)
    mean, sd, means, row_sd = exact()
    with torch.no_grad():
        draws = guide.constrain(guide.get_posterior().sample((20_000,)), Y)
    assert abs(draws["mu"].mean() - mean) < 0.06 * sd
    assert abs(draws["mu"].std() / sd - 1) < 0.06
    assert ((draws["z"].mean(0) - means).abs() < 0.06 * row_sd).all()
    assert ((draws["z"].std(0) / row_sd - 1).abs() < 0.06).all()


@pytest.mark.slow
def test_pyros_own_guide_agrees():
    """Mean-field: the same means, both within the noise of the exact ones."""
    mean, sd, means, row_sd = exact()
    for kind in (functools.partial(AutoFlow, centering=None), AutoNormal):
        pyro.clear_param_store()
        found = fitted(kind(groups, create_plates=by_argument), groups, minibatches, 2000).median()
        assert abs(found["mu"] - mean) < 0.2 * sd
        assert ((found["z"] - means).abs() < 0.2 * row_sd).all()


def minibatches():
    index = torch.randperm(6)[:2]
    return Y[index], None, index


@pytest.mark.parametrize("centering", [None, 0.0])
@pytest.mark.parametrize("is_vectorized", [False, True])
@pytest.mark.parametrize("kind", [AutoFlow, AutoCIF])
def test_several_plates_nested_and_beside_each_other(kind, is_vectorized, centering):
    guide = kind(nested, centering=centering)
    guide(TABLE)
    assert set(guide._hierarchy.subsampled) == {"others", "schools", "classes"}
    elbo = Trace_ELBO(3, vectorize_particles=is_vectorized, max_plate_nesting=3)
    svi = SVI(nested, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    losses = [svi.step(TABLE) for _ in range(5)]
    assert all(math.isfinite(loss) for loss in losses)
    assert guide(TABLE)["z"].shape == (2, 1, 3, 2)
    median = guide.median(TABLE)
    assert {name: tuple(value.shape) for name, value in median.items()} == {
        "scale": (2,),
        "part": (5,),
        "mix": (4, 1, 1, 3),
        "z": (4, 1, 6, 2),
    }
    assert ((median["part"] > 0) & (median["part"] < 2)).all()
    assert torch.allclose(median["mix"].sum(-1), torch.ones_like(median["mix"][..., 0]))


@pytest.mark.parametrize("centering", [None, 0.0])
def test_values_of_all_rows_go_back_and_forth(centering):
    guide = moved(AutoFlow(nested, centering=centering), TABLE)
    latent = guide.get_posterior().sample((3,))
    values = guide.constrain(latent, TABLE)
    again, log_det = guide.unconstrain(values, TABLE)
    assert torch.allclose(again, latent)
    found = guide.log_prob(values, 1, TABLE)
    assert torch.allclose(found, guide.get_posterior().log_prob(latent) - log_det)


@pytest.mark.parametrize("centering", [None, 0.0])
def test_entropy_has_the_path_gradient(centering):
    """Where the guide is the posterior of the rows given mu, and of mu, gradients of all draws are zero."""

    def model(size):
        mu = pyro.sample("mu", dist.Normal(Y.new_zeros(()), 2.0))
        with pyro.plate("groups", 6, subsample_size=size):
            pyro.sample("z", dist.Normal(mu, 1.0))

    guide = AutoFlow(model, centering=centering, init_scale=1.0)
    guide(3)
    end = guide.layer.layer.end
    with torch.no_grad():  # z = mu + noise, mu = 2 noise: centered, y_z = x_z + 2 x_mu
        at = guide.latents.sites["mu"].columns
        end.loc.zero_()
        if centering is None:
            end.log_scale[at] = math.log(2.0)
            end.above["0"][..., :1] = 2.0 / guide.layer.factors["layers.1.above.0"]
        else:
            end.log_scale[at] = math.log(2.0)
    Trace_ELBO().loss_and_grads(model, guide, 3)
    for name, parameter in guide.layer.named_parameters():
        assert parameter.grad is None or parameter.grad.abs().max() < 1e-10, name


def test_a_plate_is_given_its_rows_by_the_model_and_their_number_may_change():
    for guide in (AutoFlow(groups), AutoFlow(groups, create_plates=by_argument)):
        pyro.clear_param_store()
        svi = SVI(groups, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        for index in (torch.tensor([0, 3]), torch.tensor([5]), torch.tensor([1, 2, 4])):
            assert svi.step(Y[index], index=index) < torch.inf
            trace = poutine.trace(guide).get_trace(Y[index], index=index)
            assert trace.nodes["groups"]["value"].tolist() == index.tolist()
            assert trace.nodes["z"]["value"].shape == index.shape
            assert float(trace.nodes["z"]["scale"]) == pytest.approx(6 / len(index))


def test_a_models_own_subsample_may_change_its_size():
    guide = AutoFlow(groups)
    svi = SVI(groups, guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO())
    assert all(svi.step(Y, size) < torch.inf for size in (2, 5, 6, 1))
    assert guide(Y, 6)["z"].shape == (6,)


def test_values_of_all_rows_need_arguments_with_all_rows_where_these_say_which():
    guide, index = AutoFlow(groups, centering=0.0), torch.arange(2)
    guide(Y[:2], index=index)
    with pytest.raises(ValueError, match=r"given by its arguments \(subsample=\)"):
        guide.median(Y[:2], index=index)
    assert guide.median(Y, index=torch.arange(6))["z"].shape == (6,)


def test_it_predicts_a_minibatch_and_all_rows():
    guide = moved(AutoFlow(groups), Y[:2], index=torch.arange(2))
    for index in (torch.tensor([5, 1]), torch.arange(6)):
        draws = Predictive(groups, guide=guide, num_samples=7, return_sites=["z", "y"])(Y[index], index=index)
        assert draws["z"].shape == draws["y"].shape == (7, len(index))


def test_it_is_the_same_after_saving_pickling_and_copying():
    guide = moved(AutoFlow(groups), Y)
    values = guide(Y, 6)
    expected = guide.log_prob(values, 1, Y)
    fresh = AutoFlow(groups)
    fresh.load_state_dict(guide.state_dict())
    fresh(Y)
    pyro.clear_param_store()
    copies = [fresh, copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))]
    copies[2].give_model(groups, pyro.infer.autoguide.init_to_median)
    for again in copies:
        assert torch.allclose(again.log_prob(values, 1, Y), expected)
        assert again(Y)["z"].shape == (2,)


def test_a_part_of_a_list():
    guide = of_a_list()
    svi = SVI(groups, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(svi.step(Y) < torch.inf for _ in range(5))


def of_a_list(**kwargs):
    guide = AutoGuideList(groups, **kwargs)
    guide.append(AutoFlow(poutine.block(groups, hide=["mu"])))
    guide.append(AutoNormal(poutine.block(groups, expose=["mu"])))
    return guide


def test_a_part_of_a_list_has_the_rows_that_the_list_is_given():
    """The plate of a list's ``create_plates`` says nothing of its dimension."""
    guide, first, then = of_a_list(create_plates=by_argument), torch.tensor([0, 1]), torch.tensor([4, 1])
    svi = SVI(groups, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(Y[first], index=first)
    before = guide.median(Y[first], index=first)["z"]
    svi.step(Y[then], index=then)
    has_moved = guide.median(Y[then], index=then)["z"] != before
    assert has_moved[then].all()
    assert not has_moved[[2, 3, 5]].any()


def test_rows_that_a_list_does_not_know_of_are_refused():
    guide, index = of_a_list(), torch.tensor([4, 1])
    with pytest.raises(ValueError, match=r"'groups' its rows by subsample=.* AutoGuideList needs create_plates="):
        guide(Y[index], index=index)


def test_joint_and_annealed_guides_refuse():
    with pytest.raises(ValueError, match=r"'z' is inside plate 'groups', which is subsampled .* structure=\"plates\""):
        AutoFlow(groups, structure="joint")(Y)
    with pytest.raises(ValueError, match=r"AutoDAIS: .* Take AutoFlow"):
        AutoDAIS(groups)(Y)


def test_rows_that_there_were_not_are_refused():
    guide = AutoFlow(groups)
    guide(Y[:2], index=torch.arange(2))
    with pytest.raises(ValueError, match=r"plate 'groups' has 6 rows, numbered from 0, .* got row 7"):
        guide(Y[:2], index=torch.tensor([0, 7]))


@pytest.mark.slow
def test_many_rows_have_quantiles():
    """More than a Sobol sequence has dimensions."""
    num = 22_000

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", num, subsample_size=5):
            pyro.sample("z", dist.Normal(mu, 1.0))

    guide = AutoFlow(model, centering=None, init_scale=0.5)
    guide()
    low, middle, high = guide.quantiles([0.16, 0.5, 0.84])["z"]
    start = guide.latents.constrain(guide.init_loc()[None])["z"][0]
    assert torch.allclose(middle, start, atol=1e-6)
    assert abs(((high - low) / 2).mean() / 0.5 / 0.9945 - 1) < 0.01


def test_an_optimiser_does_not_pull_in_what_is_outside_of_plates():
    """With the noise of what rows take from above, the layer at its base would shrink faster than they follow."""
    guide = AutoFlow(groups)
    guide(Y)
    affine = guide.layer.plain().flow[0].layer[0]
    assert affine.step < 0.01
    fitted(guide, groups, num_steps=20)
    trained = guide.layer.plain()
    moved = trained.flow[0].layer[0].log_scale - affine.log_scale
    assert 0 < moved.abs().max() < 1e-3


def test_data_that_come_after_the_first_call_are_told():
    def model(y=None):
        with pyro.plate("groups", 6, subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=None if y is None else y[index])

    guide = AutoFlow(model)
    guide()
    with pytest.raises(ValueError, match="site 'y' is observed at these arguments, but was not in"):
        guide(torch.zeros(6))


def unaware(y):
    """The same model of all rows: it does not know of minibatches."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(y[0]), 2.0))
    with pyro.plate("groups", 6):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=pyro.subsample(y, event_dim=0))


def two_of_six(y):
    return pyro.plate("groups", 6, subsample_size=2)


@pytest.mark.parametrize("centering", [None, 0.0])
def test_create_plates_makes_minibatches_of_a_model_that_does_not_know_of_them(centering):
    guide = AutoFlow(unaware, create_plates=two_of_six, centering=centering)
    values = guide(Y)
    assert (values["z"].shape, guide.median(Y)["z"].shape) == ((2,), (6,))
    moved(guide, Y)
    losses = {}
    for name, plates in (("two", two_of_six), ("all", None)):
        guide.create_plates = plates
        torch.manual_seed(1)
        losses[name] = torch.tensor([Trace_ELBO().loss(unaware, guide, Y) for _ in range(100)])
    guide.create_plates = two_of_six
    error = (sum(loss.var() for loss in losses.values()) / 100) ** 0.5
    assert (losses["two"].mean() - losses["all"].mean()).abs() < 5 * error
    aware = moved(AutoFlow(groups, centering=centering), Y)
    assert repr(aware) == repr(guide)


def forecast(y, steps):
    """Jumps of all steps, of which the first are seen."""
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros_like(y[0]), 0.3))
    with pyro.plate("time", steps):
        jumps = pyro.sample("jumps", dist.Normal(0.0, scale))
    assert jumps.shape[-1] == len(y), "more steps than data"
    pyro.sample("y", dist.Normal(jumps.cumsum(-1), 1.0).to_event(1), obs=y)


def test_a_run_with_more_rows_draws_those_of_the_guide():
    """As in ``pyro.contrib.forecast``, whose models cannot even be run there but with draws of the guide."""
    guide = AutoFlow(forecast)
    guide(Y, 6)
    assert guide.latents.moving
    assert guide(Y, 9)["jumps"].shape == guide.median(Y, 9)["jumps"].shape == (6,)
