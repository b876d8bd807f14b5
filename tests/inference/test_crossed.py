"""Fits of models with latents in several plates, by minibatches: their parts, and posteriors that are known exactly."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.crossed_verdict import with_blocks
from pyro_nflows.diagnostics.findings import Block
from pyro_nflows.diagnostics.verdict import Outcome, Verdict
from pyro_nflows.flows.upweighted import Upweighted
from pyro_nflows.inference.conditionals import Conditionals
from pyro_nflows.inference.crossed_posterior import CrossedPosterior, crossed_terms
from pyro_nflows.layers import SharedAffine
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.crossed_terms import CrossedTerms
from pyro_nflows.model.hierarchy import Hierarchy, Outline
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.model.row_owners import SeveralRowsError, row_owners
from pyro_nflows.model.rows import Rows
from pyro_nflows.nets.views import on_rows
from pyro_nflows.numerics import standard_normal_log_prob

USERS, ITEMS, RATINGS = 40, 30, 900
OPTIONS = {"seed": 0, "progress_bar": False, "engine": "traced"}


def ratings() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    user, item = (torch.randint(num, (RATINGS,), generator=generator) for num in (USERS, ITEMS))
    a, b, noise = (torch.randn(num, generator=generator, dtype=torch.float64) for num in (USERS, ITEMS, RATINGS))
    return user, item, 1 + 0.7 * a[user] + 0.5 * b[item] + 0.5 * noise


def table() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(num, generator=generator, dtype=torch.float64) for num in (USERS, ITEMS))
    noise = torch.randn(USERS, ITEMS, generator=generator, dtype=torch.float64)
    return 1 + 0.7 * a[:, None] + 0.5 * b + 0.5 * noise


def sparse(user: Tensor, item: Tensor, y: Tensor, size: int | None = 100) -> None:
    """Effects of users and items, which are all there; some of the ratings."""
    zero = y.new_zeros(())
    mu = pyro.sample("mu", dist.Normal(zero, 2.0))
    with pyro.plate("users", USERS):
        a = pyro.sample("a", dist.Normal(zero, 0.7))
    with pyro.plate("items", ITEMS):
        b = pyro.sample("b", dist.Normal(zero, 0.5))
    with pyro.plate("ratings", len(y), subsample_size=size) as i:
        pyro.sample("y", dist.Normal(mu + a[user[i]] + b[item[i]], 0.5), obs=y[i])


def dense(y: Tensor, num_users: int | None = 15, num_items: int | None = 10) -> None:
    """The same, of all items by all users: some of both."""
    zero = y.new_zeros(())
    mu = pyro.sample("mu", dist.Normal(zero, 2.0))
    users = pyro.plate("users", USERS, subsample_size=num_users, dim=-2)
    items = pyro.plate("items", ITEMS, subsample_size=num_items, dim=-1)
    with users as i:
        a = pyro.sample("a", dist.Normal(zero, 0.7))
    with items as j:
        b = pyro.sample("b", dist.Normal(zero, 0.5))
    with users, items:
        pyro.sample("y", dist.Normal(mu + a + b, 0.5), obs=y[i][:, j])


def exact(user: Tensor, item: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of mu, a and b, which are normal."""
    x = torch.zeros(len(y), 1 + USERS + ITEMS, dtype=torch.float64)
    places = torch.arange(len(y))
    x[:, 0], x[places, 1 + user], x[places, 1 + USERS + item] = 1.0, 1.0, 1.0
    prior = torch.tensor([2.0] + USERS * [0.7] + ITEMS * [0.5], dtype=torch.float64).pow(-2)
    covariance = torch.linalg.inv(x.T @ x / 0.25 + prior.diag())
    return covariance @ x.T @ y / 0.25, covariance


def exact_of_table(y: Tensor) -> tuple[Tensor, Tensor]:
    return exact(torch.arange(USERS).repeat_interleave(ITEMS), torch.arange(ITEMS).repeat(USERS), y.reshape(-1))


CASES = {"sparse": (sparse, ratings, exact), "dense": (dense, lambda: (table(),), exact_of_table)}


@pytest.fixture(autouse=True, scope="module")
def small():
    """Even these few rows are blocks of their own, as those of larger plates are; and fewer draws are judged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_nflows.model.hierarchy.MAX_CROSSED", 0)
        patch.setattr("pyro_nflows.inference.conditionals.MOST", 100)
        yield


def made(name: str) -> tuple[AutoFlow, CrossedTerms, tuple]:
    model, args, _ = CASES[name]
    args = args()
    guide = AutoFlow(model, structure="plates")
    guide.set_up(args, {})
    return guide, crossed_terms(guide, (args, {})), args


def nudged(guide: AutoFlow):
    torch.manual_seed(0)
    layer = guide.plain_layer().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def joint_of_all(name: str, args: tuple) -> LogJoint:
    model, _, _ = CASES[name]
    rest = (None,) if name == "sparse" else (None, None)
    whole = AutoFlow(lambda *args: model(*args, *rest), structure="plates")
    whole.set_up(args, {})
    return LogJoint(BoundModel(whole.bare_model, args, {}), whole.latents)


@pytest.fixture(scope="module")
def fits(small) -> dict[str, VI]:
    return {
        name: VI(AutoFlow(model, structure="plates"), **OPTIONS).run(*args())
        for name, (model, args, _) in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_terms_of_all_chunks_add_up_to_the_log_joint_of_all_rows(name):
    _, terms, args = made(name)
    z = torch.randn(3, 1 + USERS + ITEMS, dtype=torch.float64)
    found = [terms.at(z[:, rows.columns], *visit.tensors).sum(-1) for visit, rows in terms.chunks]
    assert torch.allclose(torch.stack(found).sum(0), joint_of_all(name, args)(z))


@pytest.mark.parametrize("name", CASES)
def test_the_elbo_of_minibatches_is_in_mean_that_of_all_rows(name):
    guide, terms, args = made(name)
    layer, x = nudged(guide), torch.randn(2, 1 + USERS + ITEMS, dtype=torch.float64)
    z, log_weight = layer(x)
    whole = joint_of_all(name, args)(z) - standard_normal_log_prob(x) + log_weight
    found = []
    for _ in range(100):
        numbers = torch.cat([torch.randperm(plate.size)[: plate.taken] for plate in terms.plates.values()])
        rows = terms.rows_of(terms.split(numbers))
        terms.choose(numbers)
        part = x[:, torch.cat([torch.zeros(1, dtype=torch.long), rows.columns[1:]])]
        small, own = Upweighted(on_rows(layer, rows), terms.weights)(part), standard_normal_log_prob(part)
        found.append(terms.log_joint(small[0]) - own + small[1])
    values = torch.stack(found)
    assert ((values.mean(0) - whole).abs() < 5 * values.std(0) / 10).all()


def test_the_score_of_rows_that_count_differently_is_autograds():
    guide, terms, _ = made("dense")
    rows = terms.rows_of({"users": torch.arange(15), "items": torch.arange(10)})
    layer = Upweighted(on_rows(nudged(guide), rows), terms.weights)
    x = torch.randn(2, 26, dtype=torch.float64, requires_grad=True)
    y, log_weight = layer(x)
    (gradient,) = torch.autograd.grad((standard_normal_log_prob(x) - log_weight).sum(), x, retain_graph=True)
    jacobian = torch.stack([torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)[0] for j in range(26)], 1)
    scored = layer.scored(x.detach(), None, -x.detach(), x[:, :0].detach())
    assert torch.allclose(scored.score, torch.linalg.solve(jacobian.mT, gradient[..., None])[..., 0])


def test_the_rows_that_ratings_read_are_found():
    _, terms, (user, item, _) = made("sparse")
    z, seen = torch.randn(1 + USERS + ITEMS, dtype=torch.float64), []
    for visit, rows in terms.chunks:
        owners = row_owners(lambda at, visit=visit: terms.of_one(at, *visit.tensors), z, rows.hierarchy)
        both = (owners[0] >= 0) & (owners[1] >= 0)
        seen.append(torch.stack([owners[0][both], owners[1][both]], -1))
    assert torch.equal(torch.cat(seen), torch.stack([user, item], -1))


def test_a_term_of_two_rows_is_told():
    hierarchy = Hierarchy.of_outlines({"skill": Outline((9,), {"players": 0})})
    first, second = torch.tensor([0, 3, 8]), torch.tensor([1, 2, 2])
    with pytest.raises(SeveralRowsError, match="several rows of plate 'players'"):
        row_owners(lambda z: (z[first] - z[second]).sigmoid().log(), torch.randn(9), hierarchy)


@pytest.mark.parametrize("name", CASES)
def test_a_normal_posterior_is_exact(fits, name):
    vi, (_, args, answer) = fits[name], CASES[name]
    mean, covariance = answer(*(arg.double() for arg in args()[-1:])) if name == "dense" else answer(*args())
    sd, num = covariance.diagonal().sqrt(), 4000
    draws = vi.get_samples(num, resample=False)
    z = torch.cat([draws[site].reshape(num, -1).double() for site in ("mu", "a", "b")], -1)
    assert isinstance(vi.posterior, CrossedPosterior)
    assert ((z.mean(0) - mean).abs() < 5 * sd / num**0.5 + 0.01 * sd).all()
    with torch.no_grad():  # of so few draws, widths of what rows share have more noise than that
        many = vi.posterior._own_guide().plain_layer()(torch.randn(50_000, z.shape[1]))[0].double()
    assert ((many.std(0) / sd).mean() - 1).abs() < 0.01
    assert ((z.std(0) / sd - 1).abs() < 5 / (2 * num) ** 0.5 + 0.03).all()
    for block in (slice(1, 1 + USERS), slice(1 + USERS, None)):
        of_sum = z[:, block].sum(-1).std() / covariance[block, block].sum().sqrt()
        assert (of_sum - 1).abs() < 5 / (2 * num) ** 0.5 + 0.02
    assert vi.verdict().outcome in (Outcome.TRUST, Outcome.RESAMPLED)
    assert "'users' and 'items'" in vi.verdict().sentence


def test_rows_of_plates_side_by_side_are_exact():
    def beside(y: Tensor) -> None:
        for name in ("a", "b"):
            with pyro.plate(name, len(y), subsample_size=5) as i:
                z = pyro.sample(f"z_{name}", dist.Normal(y[i], 1.0))
                pyro.sample(f"y_{name}", dist.Normal(z, 1.0), obs=y[i])

    y = torch.randn(20)
    vi = VI(AutoFlow(beside), **OPTIONS).run(y)
    draws = vi.get_samples(2000)["z_b"]
    assert ((draws.mean(0) - y).abs() < 5 * (0.5 / 2000) ** 0.5).all()
    assert ((draws.var(0) / 0.5 - 1).abs() < 5 * (2 / 2000) ** 0.5).all()


def test_a_fit_is_saved_and_loaded(fits, tmp_path):
    vi, args = fits["dense"], CASES["dense"][1]()
    vi.save(tmp_path / "fit")
    again = VI.load(tmp_path / "fit", AutoFlow(dense, structure="plates"), *args)
    assert again.verdict().sentence == vi.verdict().sentence
    assert torch.equal(again.get_samples(50, resample=False)["a"], vi.get_samples(50, resample=False)["a"])
    assert torch.equal(
        again.guide.plain_layer().flow[0].log_widths, vi.posterior._own_guide().plain_layer().flow[0].log_widths
    )
    assert VI.load(tmp_path / "fit", AutoFlow(dense, structure="plates")).verdict().outcome is vi.verdict().outcome


def test_predictions_and_exports_of_all_rows(fits):
    vi, (user, item, y) = fits["sparse"], ratings()
    found = vi.predict(user[:50], item[:50], y[:50], None, num_samples=400, seed=0)["y"]
    assert found.shape == (400, 50)
    assert ((found.mean(0) - y[:50]).square().mean().sqrt() < 0.75).all()
    exported = vi.to_arviz(100, untrusted=True)
    assert exported.posterior["a"].shape == (1, 100, USERS)


def test_minibatches_of_a_loader():
    user, item, y = ratings()

    def model(user: Tensor, item: Tensor, y: Tensor) -> None:
        zero = y.new_zeros(())
        mu = pyro.sample("mu", dist.Normal(zero, 2.0))
        with pyro.plate("users", USERS):
            a = pyro.sample("a", dist.Normal(zero, 0.7))
        with pyro.plate("items", ITEMS):
            b = pyro.sample("b", dist.Normal(zero, 0.5))
        with pyro.plate("ratings", RATINGS, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(mu + a[user] + b[item], 0.5), obs=y)

    loader = DataLoader(TensorDataset(user, item, y), batch_size=100, shuffle=True)
    vi = VI(AutoFlow(model, structure="plates"), **OPTIONS).run(minibatches=loader)
    mean, covariance = exact(user, item, y)
    draws = vi.get_samples(2000, resample=False)["a"]
    sd = covariance.diagonal().sqrt()[1 : 1 + USERS]
    assert ((draws.mean(0) - mean[1 : 1 + USERS]).abs() < 5 * sd / 2000**0.5 + 0.01 * sd).all()


def test_what_rows_share_is_seen_where_the_guide_has_it_not(fits):
    """The same Gaussian without the shared directions: rows alone look right, and their sum is too narrow."""
    guide = fits["sparse"].posterior._own_guide()
    layer = guide.plain_layer()
    layer.flow[0].put(layer.flow[0].directions[:0], layer.flow[0].log_widths[:0])
    _, blocks = Conditionals(layer, crossed_terms(guide, (ratings(), {}))).judged(200)
    base = Verdict(Outcome.DISTRUST, "No.")
    assert with_blocks(base, blocks).outcome is Outcome.SHARED


@pytest.mark.parametrize("spoil", [0.6, 1.5])
def test_rows_of_another_width_are_not_trusted(fits, spoil):
    guide = fits["sparse"].posterior._own_guide()
    layer = guide.plain_layer()
    with torch.no_grad():
        layer.end.log_scale[1 : 1 + USERS] += torch.tensor(spoil).log()
    _, blocks = Conditionals(layer, crossed_terms(guide, (ratings(), {}))).judged(100)
    assert with_blocks(Verdict(Outcome.DISTRUST, "No."), blocks).outcome is Outcome.ROWS


def left_out(user: Tensor, item: Tensor, y: Tensor, group: Tensor) -> Tensor:
    """The exact log density of each group of data given all others."""
    x = torch.zeros(len(y), 1 + USERS + ITEMS, dtype=torch.float64)
    places = torch.arange(len(y))
    x[:, 0], x[places, 1 + user], x[places, 1 + USERS + item] = 1.0, 1.0, 1.0
    prior = torch.tensor([2.0] + USERS * [0.7] + ITEMS * [0.5], dtype=torch.float64).square()
    covariance = (x * prior) @ x.T + 0.25 * torch.eye(len(y))
    whole, found = MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y), []
    for row in range(int(group.max()) + 1):
        rest = group != row
        found.append(whole - MultivariateNormal(y[rest] * 0, covariance[rest][:, rest]).log_prob(y[rest]))
    return torch.stack(found)


@pytest.mark.parametrize(("name", "plate"), [("sparse", "users"), ("dense", "items")])
def test_a_row_of_either_plate_is_left_out(fits, name, plate):
    vi, parts = fits[name], ratings()
    if name == "dense":
        parts = torch.arange(USERS).repeat_interleave(ITEMS), torch.arange(ITEMS).repeat(USERS), table().reshape(-1)
    found, exact_ones = vi.leave_one_group_out(plate, 150), left_out(*parts, parts[plate == "items"])
    assert len(found.elpd) == {"users": USERS, "items": ITEMS}[plate]
    assert found.pareto_k.median() < 0.6
    assert found.ess.min() > 0.8
    assert (found.elpd - exact_ones).square().mean().sqrt() < 0.25
    assert abs(found.total - exact_ones.sum()) < 2.5
    assert not found.doubt


def test_what_cannot_be_left_out_is_told(fits, monkeypatch):
    with pytest.raises(ValueError, match=r"latents in plates \['items', 'users'\], got 'ratings'"):
        fits["sparse"].leave_one_group_out("ratings")
    monkeypatch.setattr("pyro_nflows.inference.crossed_left_out.MOST_LATENTS", 0)
    with pytest.raises(ValueError, match="a row of plate 'users' has 1 latents"):
        fits["sparse"].leave_one_group_out("users")


def test_a_guide_is_judged_as_it_is(fits):
    vi = VI(fits["dense"].posterior._own_guide(), **OPTIONS).judge(table())
    assert vi.verdict().outcome.is_trusted


def test_shared_directions_keep_the_density():
    torch.manual_seed(0)
    layer = SharedAffine(6, num_top=1, rank=2).double()
    layer.put(torch.linalg.qr(torch.randn(5, 2))[0].T, torch.tensor([3.0, 0.5]))
    x = torch.randn(4, 6)
    y, log_weight = layer(x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: layer(x)[0]))(x)
    assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, log_weight)
    assert torch.allclose(layer.inverse(y)[0], x)
    score = torch.randn(4, 6)
    expected = torch.linalg.solve(jacobian.mT, score[..., None])[..., 0]
    assert torch.allclose(layer.transport(x, y, score), expected)
    few = Rows.of(
        Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((5,), {"g": 0})}), {"g": torch.tensor([1])}
    )
    assert torch.equal(on_rows(layer, few)(x[:, :2])[0], x[:, :2])


def test_what_cannot_be_is_told():
    def given(i: Tensor, j: Tensor, y: Tensor) -> None:
        users = pyro.plate("users", USERS, subsample=i, dim=-2)
        items = pyro.plate("items", ITEMS, subsample=j, dim=-1)
        with users:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with items:
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with users, items:
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    with pytest.raises(ValueError, match="gives plate 'users' its rows by subsample="):
        VI(AutoFlow(given), **OPTIONS).run(torch.arange(5), torch.arange(4), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="rows by an encoder"):
        VI(AutoFlow(dense, amortize=True), **OPTIONS).run(table())


def test_svi_steps_on_some_rows_of_both():
    guide = AutoFlow(dense)
    svi = SVI(dense, guide, guide.optimizer(num_steps=20), Trace_ELBO(4, vectorize_particles=True))
    first, *_, last = [svi.step(table()) for _ in range(20)]
    assert last < first
    assert guide.median(table())["a"].shape == (USERS, 1)


def test_verdicts_of_blocks():
    weights, good = Verdict(Outcome.DISTRUST, "No."), Block(("a",), 9, 1.0, 1.0, 0.0, 0.01, 0.0)
    for block, expected in [
        (Block(("a",), 9, 1.0, 1.0, 0.5, 0.01, 0.0), Outcome.ROWS),
        (Block(("a",), 9, 1.0, 0.5, 0.0, 0.01, 0.0), Outcome.ROWS),
        (Block(("a",), 9, 1.0, 1.0, 0.0, 0.01, 0.5), Outcome.ROWS),
        (Block(("a",), 9, 1.0, 1.0, 0.0, 0.01, 0.0, ess=0.01), Outcome.ROWS),
        (Block(("a",), 9, 1.0, 1.0, 0.0, 0.01, 0.0, shared_ratio=float("inf")), Outcome.SHARED),
        (Block(("a",), 9, 1.0, 0.0, 0.0, 0.01, 0.0), Outcome.ROWS),
        (Block(("a",), 9, 1.0, float("nan"), 0.0, 0.01, 0.0), Outcome.ROWS),
    ]:
        assert with_blocks(weights, [good, block]).outcome is expected
    assert with_blocks(Verdict(Outcome.NOT_FINITE, "No."), [good]).outcome is Outcome.NOT_FINITE
    assert with_blocks(weights, [], obstacle="a term reads several rows").outcome is Outcome.DISTRUST


def test_predictions_take_rows_by_their_numbers(fits):
    assert set(fits["dense"].posterior.numbered) == {"users", "items"}
