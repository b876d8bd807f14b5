"""Fits by minibatches of models with latents in a subsampled plate: their parts, and posteriors that are known."""

import copy
import dataclasses
import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_nflows import IWAE, SBC, VI, AutoCIF, AutoFlow
from pyro_nflows.diagnostics.row_verdict import with_rows
from pyro_nflows.diagnostics.verdict import Outcome, Verdict
from pyro_nflows.engine import History
from pyro_nflows.engine.lazy import RowState
from pyro_nflows.flows.by_row import draw_by_row
from pyro_nflows.flows.upweighted import Upweighted
from pyro_nflows.inference.collapsed import collapser_of
from pyro_nflows.inference.minibatch_fit import minibatches
from pyro_nflows.inference.minibatches import Minibatches
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.row_posterior import weighed_draws
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.model.observed import NothingObservedWarning
from pyro_nflows.model.row_terms import RowTerms
from pyro_nflows.model.rows import Rows
from pyro_nflows.nets.views import on_rows
from pyro_nflows.numerics import standard_normal_log_prob
from pyro_nflows.objectives.draws import Draws

NUM_ROWS, SIZE = 120, 30


def data(num_rows: int = NUM_ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z = 1 + 0.7 * torch.randn(num_rows, generator=generator)
    return z + torch.randn(10, num_rows, generator=generator)


def groups(y: Tensor, size: int | None = SIZE) -> None:
    """Ten observations in each of many groups: given tau, all is normal."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(y[0, 0]), 5.0))
    tau = pyro.sample("tau", dist.LogNormal(torch.zeros_like(y[0, 0]), 1.0))
    with pyro.plate("groups", y.shape[1], subsample_size=size, dim=-1) as i:
        z = pyro.sample("z", dist.Normal(mu, tau))
        with pyro.plate("observations", 10, dim=-2):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[:, i])


def exchangeable(y: Tensor, size: int = 10) -> None:
    """Groups of one observation each: all is normal."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    with pyro.plate("groups", len(y), subsample_size=size) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def exact(y: Tensor) -> dict[str, float]:
    """By quadrature over mu and log tau, the rows integrated out."""
    y = y.double()
    mean, num = y.mean(0), y.shape[1]
    mu, t = torch.linspace(-1, 3, 801, dtype=torch.float64), torch.linspace(-3, 2, 1001, dtype=torch.float64)
    mu, t = torch.meshgrid(mu, t, indexing="ij")
    variance = (2 * t).exp() + 0.1
    within = (y - mean).square().sum()
    log_p = -0.5 * (num * variance.log() + (mean.square().sum() - 2 * mu * mean.sum() + num * mu**2) / variance)
    log_p = log_p - 0.5 * within - 0.5 * num * (10 * math.log(2 * math.pi) + math.log(10))
    log_p = log_p - 0.5 * (mu / 5) ** 2 - math.log(5) - 0.5 * t**2 - math.log(2 * math.pi)
    weight = (log_p - log_p.logsumexp((0, 1))).exp()
    evidence = log_p.logsumexp((0, 1)) + math.log(0.005 * 0.005)
    found = {"evidence": float(evidence)}
    for name, value in (("mu", mu), ("log_tau", t)):
        first, second = float((weight * value).sum()), float((weight * value**2).sum())
        found[name], found[f"{name}_sd"] = first, (second - first**2) ** 0.5
    return found


def made(y: Tensor, guide: AutoFlow | None = None) -> tuple[AutoFlow, RowTerms]:
    guide = guide or AutoFlow(groups)
    guide.set_up((y,), {})
    return guide, RowTerms(BoundModel(groups, (y,), {}), guide.latents)


def nudged(guide: AutoFlow) -> torch.nn.Module:
    torch.manual_seed(0)
    layer = guide.plain_layer().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def test_the_rows_parts_add_up_to_the_log_joint_of_all_rows():
    y = data().double()
    guide, terms = made(y)
    whole = AutoFlow(lambda y: groups(y, None), structure="plates")
    whole.set_up((y,), {})
    joint = LogJoint(BoundModel(whole.bare_model, (y,), {}), whole.latents)
    z, total = torch.randn(4, NUM_ROWS + 2, dtype=torch.float64), 0.0
    for numbers in torch.randperm(NUM_ROWS).split(SIZE):
        terms.choose(numbers)
        outside, rows = terms(z[:, Rows.of(guide.hierarchy, {"groups": numbers}).columns])
        total = total + rows.sum(-1)
    assert torch.allclose(outside + total, joint(z))


def test_the_mean_over_minibatches_of_the_density_is_that_of_all_rows():
    guide, terms = made(data())
    layer = nudged(guide)
    x = torch.randn(3, NUM_ROWS + 2, dtype=torch.float64)
    found = []
    for numbers in torch.arange(NUM_ROWS).split(SIZE):
        view = on_rows(layer, Rows.of(guide.hierarchy, {"groups": numbers}))
        part = torch.cat([x[:, :2], x[:, 2:][:, numbers]], -1)
        found.append(standard_normal_log_prob(part) - Upweighted(view, terms.factor)(part)[1])
    expected = standard_normal_log_prob(x) - layer(x)[1]
    assert torch.allclose(torch.stack(found).mean(0), expected)


@pytest.mark.parametrize("kind", [AutoFlow, AutoCIF])
def test_the_score_of_the_upweighted_density_is_autograds(kind):
    guide, terms = made(data(), kind(groups))
    rows = Rows.of(guide.hierarchy, {"groups": torch.arange(SIZE)})
    layer = Upweighted(on_rows(nudged(guide), rows), terms.factor)
    if layer.noise_dim:
        noise = torch.randn(2, layer.noise_dim, dtype=torch.float64)
        x = torch.randn(2, SIZE + 2, dtype=torch.float64)
        assert torch.allclose(layer.scored(x, noise, -x, x[:, :0]).y, layer(x, noise)[0])
        return
    x = torch.randn(2, SIZE + 2, dtype=torch.float64, requires_grad=True)
    y, log_weight = layer(x)
    log_q = standard_normal_log_prob(x) - log_weight
    (gradient,) = torch.autograd.grad(log_q.sum(), x, retain_graph=True)
    jacobian = torch.stack([torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)[0] for j in range(SIZE + 2)], 1)
    expected = torch.linalg.solve(jacobian.mT, gradient[..., None])[..., 0]
    scored = layer.scored(x.detach(), None, -x.detach(), x[:, :0].detach())
    assert torch.allclose(scored.score, expected)
    assert torch.allclose(scored.log_weight, log_weight)


def test_rows_state_is_looked_up_and_put_back():
    guide, terms = made(data())
    layer, small = nudged(guide), guide.layer_over(terms.hierarchy, terms.joint.latents.init_loc()).double()
    state, numbers = RowState(layer), torch.tensor([5, 0, 119, *range(20, 47)])
    rows = Rows.of(guide.hierarchy, {"groups": numbers})
    index = state.index(rows)
    parts = state.take(index).params.split([parameter.numel() for parameter in small.parameters()])
    with torch.no_grad():
        for parameter, part in zip(small.parameters(), parts):
            parameter.copy_(part.view(parameter.shape))
    x = torch.randn(4, SIZE + 2, dtype=torch.float64)
    assert torch.allclose(small(x)[0], on_rows(layer, rows)(x)[0])
    before = state.params.clone()
    state.put(index, state.take(index)._replace(params=state.take(index).params + 1))
    moved = torch.zeros_like(before, dtype=torch.bool)
    moved[index] = True
    assert torch.equal(state.params[moved], before[moved] + 1)
    assert torch.equal(state.params[~moved], before[~moved])


def test_steps_of_locations_are_in_units_of_the_rows_own_scales():
    guide, _ = made(data())
    layer, numbers = nudged(guide), torch.tensor([5, 0, 119])
    rows = Rows.of(guide.hierarchy, {"groups": numbers})
    view = on_rows(layer, rows)
    factors = RowState(layer).factors(rows).split([parameter.numel() for parameter in view.parameters()])
    named = dict(zip([name for name, _ in view.named_parameters()], factors))
    assert torch.equal(named["layers.1.loc"], layer.end.log_scale[rows.columns].exp())
    assert torch.equal(named["layers.1.log_scale"], torch.ones(5, dtype=torch.float64))


def test_every_row_is_visited_equally_often_and_none_twice_at_once():
    torch.manual_seed(0)
    steps = list(minibatches(7, 3, 14, seed=0))
    assert all(len(rows.unique()) == 3 for rows in steps)
    assert torch.cat(steps).bincount().tolist() == [6] * 7


def test_densities_by_row_are_those_of_the_flow():
    guide, _ = made(data())
    layer, x = nudged(guide), torch.randn(3, NUM_ROWS + 2, dtype=torch.float64)
    found = draw_by_row(layer, x)
    z, log_weight = layer(x)
    assert torch.allclose(found.z, z)
    assert torch.allclose(found.outside + found.rows[0].sum(-1), standard_normal_log_prob(x) - log_weight)


def three_plates(y: Tensor, extra: Tensor, sizes: tuple[int | None, ...] = (30, 4, 3)) -> None:
    """Groups with latents, observations within them, and other data beside them: all subsampled."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.LogNormal(y.new_zeros(()), 1.0))
    with pyro.plate("extra", len(extra), subsample_size=sizes[2], dim=-1) as k:
        pyro.sample("x", dist.Normal(mu, 2.0), obs=extra[k])
    with pyro.plate("groups", y.shape[1], subsample_size=sizes[0], dim=-1) as i:
        z = pyro.sample("z", dist.Normal(mu, tau))
        with pyro.plate("observations", 10, subsample_size=sizes[1], dim=-2) as j:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[j][:, i])


def test_other_subsampled_plates_are_gone_through():
    y, extra = data().double(), torch.linspace(0, 2, 8).double()
    guide, whole = AutoFlow(three_plates), AutoFlow(three_plates, structure="plates")
    guide.set_up((y, extra), {})
    whole.set_up((y, extra, (None,) * 3), {})
    terms = RowTerms(BoundModel(three_plates, (y, extra), {}), guide.latents)
    joint = LogJoint(BoundModel(three_plates, (y, extra, (None,) * 3), {}), whole.latents)
    z, total = torch.randn(4, NUM_ROWS + 2, dtype=torch.float64), 0.0
    for numbers in torch.randperm(NUM_ROWS).split(SIZE):
        part = z[:, Rows.of(guide.hierarchy, {"groups": numbers}).columns]
        terms.choose(numbers)
        outside, rows = terms(part)
        total = total + rows.sum(-1)
        pairs = [torch.cat([numbers, k, j]) for k in torch.arange(8).split(3)[:2] for j in torch.arange(8).split(4)]
        terms.choose(pairs[0])  # those of a step
        assert not torch.allclose(terms.here(part)[1], rows)
        assert torch.allclose(terms(part)[1], rows)
    assert torch.allclose(outside + total, joint(z))


def test_a_step_takes_minibatches_of_all_plates_which_are_right_on_average():
    y, extra = data(4).double(), torch.tensor([0.5, 2.0]).double()
    args, sizes = (y, extra), (2, 5, 1)
    guide = AutoFlow(three_plates)
    guide.set_up((*args, sizes), {})
    terms = RowTerms(BoundModel(three_plates, (*args, sizes), {}), guide.latents)
    joint = LogJoint(BoundModel(three_plates, (*args, (None,) * 3), {}), guide.latents)
    z, found = torch.randn(3, 6, dtype=torch.float64), []
    assert len(terms.with_others(torch.tensor([3, 1]))) == 2 + 1 + 5
    for i, k, j in itertools.product(torch.arange(4).split(2), torch.arange(2).split(1), torch.arange(10).split(5)):
        terms.choose(torch.cat([i, k, j]))
        found.append(terms.log_joint(z[:, Rows.of(guide.hierarchy, {"groups": i}).columns]))
    assert torch.allclose(torch.stack(found).mean(0), joint(z))


def test_an_encoder_needs_all_observations_of_a_row():
    with pytest.raises(ValueError, match="because plate 'observations' is subsampled; take all of them"):
        VI(AutoFlow(three_plates, amortize=True), progress_bar=False).run(data(), torch.zeros(8))


@pytest.mark.slow
def test_several_subsampled_plates_are_fitted():
    y, known = data(), exact(data())
    vi = VI(AutoFlow(three_plates), seed=0, progress_bar=False).run(y, torch.ones(8))
    assert vi.diagnostics()["outcome"] in (Outcome.TRUST, Outcome.TAILS)
    precision, num = known["mu_sd"] ** -2 + 2.0, 4000
    draws = vi.get_samples(num)
    mean = (known["mu"] * known["mu_sd"] ** -2 + 2.0) / precision
    assert abs(draws["mu"].mean().item() - mean) < (5 / num**0.5 + 0.05) * precision**-0.5
    assert abs(draws["mu"].std().item() * precision**0.5 - 1) < 5 / (2 * num) ** 0.5 + 0.02


@pytest.fixture(scope="module")
def fitted() -> VI:
    return VI(AutoFlow(groups), seed=0, progress_bar=False).run(data())


def test_the_posterior_is_right(fitted):
    known, found = exact(data()), fitted.diagnostics()
    assert found["outcome"] is Outcome.TRUST
    assert found["ess"] > 0.9
    assert abs(found["iwae"] - known["evidence"]) < 0.1
    draws, num = fitted.get_samples(4000), 4000
    for name, value in (("mu", draws["mu"]), ("log_tau", draws["tau"].log())):
        assert abs(value.mean().item() - known[name]) < 5 * known[f"{name}_sd"] / num**0.5
        assert abs(value.std().item() / known[f"{name}_sd"] - 1) < 5 / (2 * num) ** 0.5
    assert draws["z"].shape == (4000, NUM_ROWS)


def test_the_rows_are_right(fitted):
    """Given mu and tau a row is normal, and so its draws standardised by what these make of it are."""
    draws, y = fitted.get_samples(2000), data()
    precision = draws["tau"] ** -2 + 10
    mean = (draws["mu"] * draws["tau"] ** -2)[:, None] + 10 * y.mean(0)
    white = (draws["z"] - mean / precision[:, None]) * precision.sqrt()[:, None]
    assert white.mean(0).abs().max() < 5 / 2000**0.5 + 0.05
    assert (white.std(0) - 1).abs().max() < 5 / 4000**0.5 + 0.05


def test_the_sentence_says_what_it_rests_on(fitted):
    sentence = fitted.verdict().sentence
    assert "of plate 'groups', its 120 rows integrated out" in sentence
    assert "the row fitted worst is groups[" in sentence


def test_further_draws_are_weighed_too(fitted):
    num = len(fitted.posterior.draws.z)
    more = fitted.posterior.with_draws(num + 50)
    assert len(more.draws.z) == num + 50
    assert more.log_weight[num:].isfinite().all()


def test_more_draws_may_be_judged_than_are_kept(fitted, tmp_path):
    whole, path = fitted.posterior, tmp_path / "fit.pt"
    kept = Draws(whole.draws.z[:50], whole.draws.log_p[:50], whole.draws.log_q[:50])
    few = dataclasses.replace(whole, draws=kept, starts=[kept], judged=whole.log_weight)
    assert few.diagnostics()["ess"] == whole.diagnostics()["ess"]
    assert few.verdict().sentence == whole.verdict().sentence
    assert len(few.log_weight) == 50
    few.save(path)
    assert VI.load(path, AutoFlow(groups)).diagnostics()["ess"] == whole.diagnostics()["ess"]


def test_it_is_saved_loaded_copied_and_shown(fitted, tmp_path):
    path = tmp_path / "fit.pt"
    fitted.save(path)
    sentence = fitted.verdict().sentence
    with_data, without = VI.load(path, AutoFlow(groups), data()), VI.load(path, AutoFlow(groups))
    for again in (with_data, without, copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert again.verdict().sentence == sentence
        assert torch.equal(again.log_weight, fitted.log_weight)
    shown = fitted.to_arviz(100)
    assert shown["posterior"]["z"].dims == ("chain", "draw", "groups")
    assert "log_weight" in shown["sample_stats"]


def test_what_needs_all_rows_at_each_step_is_refused(fitted):
    with pytest.raises(ValueError, match="Markov chains take the gradient of all rows"):
        fitted.refine(10)
    with pytest.raises(ValueError, match="SBC: the model has latents in a subsampled plate"):
        SBC(AutoFlow(groups), num_simulations=2, progress_bar=False).run(data())


def paired(y: Tensor) -> None:
    """Groups of one observation each, around a number that is estimated."""
    mu = pyro.param("mu", y.new_tensor(0.0))
    with pyro.plate("groups", len(y), subsample_size=10) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


@pytest.mark.parametrize("amortize", [False, True])
def test_parameters_of_the_model_are_trained(amortize, tmp_path):
    """The maximum of the likelihood is the mean, and each row is then normal."""
    pyro.clear_param_store()
    y, options = data(40)[0].double(), {"num_steps": 300, "engine": "traced", "progress_bar": False}
    vi = VI(AutoFlow(paired, amortize=amortize), seed=0, **options).run(y)
    found = pyro.param("mu").item()
    assert abs(found - y.mean().item()) < 0.05
    assert abs(vi.diagnostics()["iwae"] - dist.Normal(found, 2**0.5).log_prob(y).sum().item()) < 0.05
    vi.save(tmp_path / "fit.pt")
    pyro.clear_param_store()
    again = VI.load(tmp_path / "fit.pt", AutoFlow(paired, amortize=amortize), y)
    assert pyro.param("mu").item() == found
    num = len(again.posterior.draws.z)
    assert torch.allclose(again.posterior.with_draws(num + 5).log_weight[num:], vi.log_weight[:1], atol=0.1)
    pyro.clear_param_store()


@pytest.mark.parametrize("what", ["outside", "rows"])
def test_a_bad_fit_is_not_trusted(fitted, what):
    """Widths halved after training, as an overconfident guide would have them."""
    terms = made(data())[1]
    layer = copy.deepcopy(fitted.posterior.layer).plain()
    with torch.no_grad():
        columns = layer.end.hierarchy.top if what == "outside" else layer.end.hierarchy.blocks[0].columns.reshape(-1)
        layer.end.log_scale[columns] -= 2.0
    torch.manual_seed(0)
    draws, rows, _ = weighed_draws(collapser_of(layer, terms), 1000)
    posterior = copy.copy(fitted.posterior)
    object.__setattr__(posterior, "draws", draws)
    object.__setattr__(posterior, "starts", ())
    object.__setattr__(posterior, "row_fit", rows)
    assert not posterior.verdict().sentence.startswith("Trust")


def test_an_interrupt_keeps_what_has_been_reached(monkeypatch):
    guide, terms = made(data())
    fit = Minibatches(guide, terms, Plan(progress_bar=False), History())
    choose, calls = terms.choose, []

    def interrupted(rows):
        calls.append(rows)
        if len(calls) == 300:
            raise KeyboardInterrupt
        choose(rows)

    monkeypatch.setattr(terms, "choose", interrupted)
    plan = Plan.asked("VI", engine="eager", num_steps=500, progress_bar=False)
    fit.plan = plan
    layer = fit.fit()
    assert fit.history.interrupted
    assert all(bool(parameter.isfinite().all()) for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": IWAE(4)}, "by the plain ELBO"),
        ({"annealing": 0.5}, "by the plain ELBO without annealing"),
        ({"optim": torch.optim.SGD}, "leave out optim="),
    ],
)
def test_what_minibatches_have_not_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VI(AutoFlow(groups), progress_bar=False, **options).run(data())


class Blind(nn.Module):
    """An encoder that ignores its data."""

    def forward(self, y: Tensor) -> Tensor:
        return y.new_ones(len(y), 1)


def test_an_encoder_that_ignores_its_data_is_not_trusted():
    options = {"num_steps": 100, "engine": "traced", "progress_bar": False}
    vi = VI(AutoFlow(exchangeable, amortize=Blind()), seed=0, **options).run(data(40)[0].double())
    assert not vi.verdict().sentence.startswith("Trust")
    rows = with_rows(Verdict(Outcome.TRUST, ""), vi.posterior.row_fit, is_encoded=True)
    assert rows.outcome is Outcome.ROWS
    assert "an encoder that tells more of a row" in rows.sentence


@pytest.mark.slow
def test_rows_by_an_encoder_are_rows_by_a_table():
    y = data(400)[0]
    fits = [VI(AutoFlow(exchangeable, amortize=by), seed=0, progress_bar=False).run(y) for by in (False, True)]
    assert all(fit.diagnostics()["ess"] > 0.95 for fit in fits)
    num = 20_000
    tabled, encoded = (fit.get_samples(num) for fit in fits)
    sd, noise = tabled["z"].std(0), (2 / num) ** 0.5
    apart = (tabled["z"].mean(0) - encoded["z"].mean(0)) / sd
    assert apart.square().mean().sqrt() < 0.02
    assert apart.abs().max() < 0.02 + 5 * noise
    assert (encoded["z"].std(0) / sd - 1).square().mean().sqrt() < 0.02
    assert (encoded["z"].std(0) / sd - 1).abs().max() < 0.02 + 5 * noise
    rows = fits[1].guide.for_rows(y[:5], size=5, num_samples=num)["z"]
    assert torch.allclose(rows.mean(0), encoded["z"][:, :5].mean(0), atol=0.05)


def test_rows_that_the_model_is_given_are_refused():
    def model(y, rows):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("groups", NUM_ROWS, subsample=rows):
            pyro.sample("z", dist.Normal(mu, 1.0))

    with pytest.raises(ValueError, match="gives plate 'groups' its rows by subsample="):
        VI(AutoFlow(model), progress_bar=False).run(data(), torch.arange(SIZE))


def test_what_observes_nothing_is_told():
    """A posterior without data is the prior, which the verdict says; an argument that is None may be forgotten."""

    def model(y: Tensor | None = None) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=torch.float64), 5.0))
        with pyro.plate("groups", 40, subsample_size=10) as i:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=None if y is None else y[i])

    vi, again = (VI(AutoFlow(model), num_steps=5, engine="traced", seed=0, progress_bar=False) for _ in range(2))
    with pytest.warns(NothingObservedWarning, match=r"nothing is observed where y is None.*run\(..., y=y\)"):
        vi.run()
    assert "so the posterior is the prior" in vi.verdict().sentence
    assert "the prior" not in again.run(data(40)[0].double()).verdict().sentence
