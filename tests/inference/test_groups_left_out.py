"""Leave-one-group-out against the exact predictive densities of Gaussian hierarchies."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.groups import GroupsLeftOut
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.group_terms import GroupTerms
from pyro_nflows.model.log_joint import LogJoint

NUM, EACH, SD, TAU, WIDTH = 12, 3, 1.5, 0.8, 4.0
OPTIONS = {"seed": 0, "progress_bar": False, "engine": "traced"}


def data() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    z = 1 + TAU * torch.randn(NUM, generator=generator, dtype=torch.float64)
    return z + SD * torch.randn(EACH, NUM, generator=generator, dtype=torch.float64)


def groups(y: Tensor, size: int | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), WIDTH))
    with pyro.plate("groups", y.shape[1], subsample_size=size, dim=-1) as i:
        z = pyro.sample("z", dist.Normal(mu, TAU))
        with pyro.plate("within", EACH, dim=-2):
            pyro.sample("y", dist.Normal(z, SD), obs=y[:, i])


def exact(y: Tensor) -> tuple[Tensor, Tensor]:
    """Log predictive densities of each group given the others, and given all data with its latent drawn anew."""
    same = torch.eye(NUM).repeat_interleave(EACH, 0).repeat_interleave(EACH, 1).to(y)
    covariance = WIDTH**2 + TAU**2 * same + SD**2 * torch.eye(NUM * EACH).to(y)
    flat, found = y.T.reshape(-1), []
    joint = MultivariateNormal(torch.zeros_like(flat), covariance)
    for i in range(NUM):
        rest = torch.ones(NUM * EACH, dtype=torch.bool)
        rest[i * EACH : (i + 1) * EACH] = False
        other = MultivariateNormal(torch.zeros_like(flat[rest]), covariance[rest][:, rest])
        found.append(joint.log_prob(flat) - other.log_prob(flat[rest]))
    variance = 1 / (WIDTH**-2 + NUM / (TAU**2 + SD**2 / EACH))
    mean = variance * y.mean(0).sum() / (TAU**2 + SD**2 / EACH)
    within = (TAU**2 + variance) * torch.ones(EACH, EACH).to(y) + SD**2 * torch.eye(EACH).to(y)
    return torch.stack(found), MultivariateNormal(mean.expand(EACH), within).log_prob(y.T)


@pytest.fixture(scope="module")
def fitted() -> VI:
    return VI(AutoFlow(groups), effort="quick", **OPTIONS).run(data())


@pytest.mark.parametrize("size", [None, 5])
def test_it_is_exact_for_a_gaussian_hierarchy(size: int | None, fitted: VI) -> None:
    """By all rows, and by minibatches, of which the last one has rows of the first."""
    y, vi = data(), fitted
    if size is not None:
        vi = VI(AutoFlow(lambda y: groups(y, size)), num_steps=100, **OPTIONS).run(y)
    found, (elpd, lpd) = vi.leave_one_group_out("groups"), exact(y)
    assert torch.allclose(found.elpd, elpd, atol=0.05)
    assert torch.allclose(found.lpd, lpd, atol=0.05)
    assert abs(found.total - float(elpd.sum())) < 0.1
    assert abs(found.num_effective - float((lpd - elpd).sum())) < 0.1
    assert found.is_reliable
    assert (found.ess > 0.7).all()


def test_other_guides_give_the_same(fitted: VI) -> None:
    joint = VI(AutoFlow(groups, structure="joint", centering=None), effort="quick", **OPTIONS).run(data())
    found = joint.posterior.leave_one_group_out("groups", 1000)
    assert found.num_samples == 1000
    assert torch.allclose(found.elpd, exact(data())[0], atol=0.07)


def test_a_group_that_says_much_is_told() -> None:
    y = data()
    y[:, 4] += 60.0
    vi = VI(AutoFlow(groups), effort="quick", **OPTIONS).run(y)
    found = vi.leave_one_group_out("groups")
    assert found.worst == 4
    assert not found.is_reliable
    assert "most in groups[4]" in str(found)
    assert "so fit the model without each of them" in str(found)


def test_the_table(fitted: VI) -> None:
    found = fitted.leave_one_group_out("groups")
    table = found.to_dataframe()
    assert list(table.columns) == ["elpd", "pareto_k", "lpd", "ess"]
    assert table.index.name == "groups"
    assert len(table) == NUM
    assert abs(table["elpd"].sum() - found.total) < 1e-9
    assert abs(found.se - NUM**0.5 * float(found.elpd.std(correction=0))) < 1e-9
    assert repr(found).startswith("Plate 'groups', each of its 12 rows left out by 2,000 weighed draws")


def test_rows_without_latents_are_left_out_alone() -> None:
    """A plate of observations: leave-one-observation-out."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), WIDTH))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, SD), obs=y)

    y = data()[0]
    found = VI(AutoFlow(model), effort="quick", **OPTIONS).run(y).leave_one_group_out("row")
    precision = WIDTH**-2 + (NUM - 1) / SD**2
    mean = (y.sum() - y) / SD**2 / precision
    expected = dist.Normal(mean, math.sqrt(SD**2 + 1 / precision)).log_prob(y)
    assert torch.allclose(found.elpd, expected, atol=0.03)


def test_skewed_rows_are_integrated_out() -> None:
    """Counts around a log mean that is normal, by quadrature."""
    y = torch.tensor([0.0, 0.0, 1.0, 2.0, 5.0, 0.0, 3.0, 12.0], dtype=torch.float64)

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Poisson(z.exp()), obs=y)

    mu, e = torch.linspace(-4, 5, 901, dtype=torch.float64), torch.linspace(-7, 7, 1401, dtype=torch.float64)
    normal = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob
    each = dist.Poisson((mu[:, None] + e).exp()).log_prob(y[:, None, None])
    each = (each + normal(e)).logsumexp(-1) + math.log(0.01)
    all_of_them = each.sum(0) + normal(mu)
    expected = all_of_them.logsumexp(-1) - (all_of_them - each).logsumexp(-1)
    found = VI(AutoFlow(model), **OPTIONS).run(y).leave_one_group_out("row")
    assert torch.allclose(found.elpd, expected, atol=0.06)
    assert found.ess.min() > 0.4


def test_the_parts_add_up() -> None:
    y, guide = data(), AutoFlow(groups)
    guide.set_up((y,), {})
    joint = LogJoint(BoundModel(groups, (y,), {}), guide.latents)
    joint.look()
    z = torch.randn(4, NUM + 1, dtype=torch.float64)
    outside, rows = GroupTerms("test", joint, "groups")(z)
    assert torch.allclose(outside + rows.sum(-1), joint(z))


def walk(y: Tensor) -> None:
    with pyro.plate("time", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z.cumsum(-1), 1.0), obs=y)


def test_mistakes_are_told(fitted: VI) -> None:
    with pytest.raises(ValueError, match=r"no plate 'group'; its plates are \['groups', 'within'\]"):
        fitted.leave_one_group_out("group")
    with pytest.raises(ValueError, match="num_samples"):
        fitted.leave_one_group_out("groups", 0)
    tied = VI(AutoFlow(walk), effort="quick", **OPTIONS).run(data()[0])
    with pytest.raises(ValueError, match="rows of plate 'time' depend on each other given what is outside"):
        tied.leave_one_group_out("time")


def test_a_doubtful_fit_is_told() -> None:
    found = GroupsLeftOut.of("g", torch.zeros(100, 2), torch.zeros(100), torch.tensor([1.0, 0.05]), "Do not trust.")
    assert str(found).endswith("worst in g[1] (ESS 5% of the points). Do not trust.")
    assert not found.is_reliable
