"""Fits of models with a subsampled likelihood: weighed over all rows, and moved until they are right."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.diagnostics.worth import effective
from pyro_nflows.engine import Trainer
from pyro_nflows.flows.whitened import Whitened
from pyro_nflows.inference.moments import move, moved, tempered
from pyro_nflows.layers import LocScale, TriangularAffine
from pyro_nflows.layers.base import Chain
from pyro_nflows.objectives.draws import draw, even_noise
from pyro_nflows.system.exclusive import seeded

N = 1000


def normal(y, size=50):
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    with pyro.plate("data", N, subsample_size=size) as i:
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def data():
    return 1.0 + torch.randn(N, generator=torch.Generator().manual_seed(3))


def exact(y):
    precision = 0.25 + len(y)
    return float(y.sum()) / precision, precision**-0.5


def evidence(y):
    """Of y ~ N(0, I + 4 11')."""
    n, s, q = len(y), float(y.double().sum()), float(y.double().square().sum())
    return -0.5 * (n * math.log(2 * math.pi) + math.log(1 + 4 * n) + q - 4 * s * s / (1 + 4 * n))


def minibatch_of(*args):
    return VI(AutoFlow(normal), seed=1, progress_bar=False).run(*args)


@pytest.fixture(scope="module")
def vi():
    return minibatch_of(data())


def test_a_start_over_all_rows_is_had_from_many_short_visits_too():
    """Of minibatches of few rows: 250 runs of the model give a value in some hundredths of a second."""
    vi = VI(AutoFlow(normal), seed=1, progress_bar=False).run(data(), size=4)
    assert vi.verdict().outcome is Outcome.TRUST
    assert vi.history.num_steps == 0


def test_a_conjugate_posterior_is_found_from_minibatches(vi):
    y = data()
    mean, sd = exact(y)
    z = vi.get_samples(8000)["z"]
    assert abs(float(z.mean()) - mean) < 0.06 * sd
    assert float(z.std()) == pytest.approx(sd, rel=0.06)
    found = vi.diagnostics()
    assert found["outcome"] is Outcome.TRUST
    assert found["iwae"] == pytest.approx(evidence(y), abs=0.01)
    assert found["ess"] > 0.95


def test_the_verdict_says_that_all_rows_were_looked_at(vi):
    rests_on = "Log p of these draws is over all 1,000 rows of plate 'data'."
    assert str(vi.verdict()).endswith(f"{rests_on} The start was already right: no training was needed.")


def test_further_draws_and_loaded_fits_are_weighed_over_all_rows(vi, tmp_path):
    y = data()
    more = vi.posterior.with_draws(len(vi.log_weight) + 500)
    assert effective(more.log_weight[-500:]) > 0.9
    vi.save(tmp_path / "fit")
    again = VI.load(tmp_path / "fit", AutoFlow(normal), y)
    assert again.verdict() == vi.verdict()
    with pytest.raises(ValueError, match="at a saved draw, the log density of the model with these data"):
        VI.load(tmp_path / "fit", AutoFlow(normal), y + 1)


def test_chains_are_those_of_all_rows(vi):
    mean, sd = exact(data())
    refined = vi.posterior.refine(300, 50, 20, "hmc")
    z = refined.get_samples()["z"]
    assert abs(float(z.mean()) - mean) < 0.1 * sd
    assert float(z.std()) == pytest.approx(sd, rel=0.1)


def test_a_second_run_looks_at_all_rows_of_its_own_data():
    y = data()
    vi = VI(AutoFlow(normal), num_steps=200, seed=0, progress_bar=False).run(y)
    vi.run(y + 0.05)
    assert vi.diagnostics()["iwae"] == pytest.approx(evidence(y + 0.05), abs=0.05)


def test_a_minibatch_that_is_an_argument_is_no_fault_of_the_guide():
    y = data()

    def model(index):
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        with pyro.plate("data", N, subsample=index) as i:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    vi = VI(AutoFlow(model), num_steps=200, seed=0, progress_bar=False).run(torch.arange(50))
    sentence = str(vi.verdict())
    assert sentence.startswith("Trust")
    assert "Log p of these draws is over 50 of 1,000 rows of plate 'data', scaled up." in sentence


def test_where_rows_cannot_be_chosen_noise_is_not_blamed_on_the_guide():
    y = data()

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        with pyro.plate("data", N, subsample_size=50) as i:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])
        pyro.factor("outside", 0.0 * (y[i] - z).sum() + y[i].sum())

    vi = VI(AutoFlow(model), num_steps=200, seed=0, progress_bar=False).run()
    assert vi.diagnostics()["outcome"] is Outcome.MINIBATCH
    sentence = str(vi.verdict())
    assert "noise says nothing of the guide" in sentence
    assert "outside of plate 'data' depends on the rows" in sentence


def test_a_regression_by_minibatches_is_that_of_all_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 3, generator=generator)
    y = torch.bernoulli(torch.sigmoid(x @ torch.tensor([1.0, -0.5, 0.2])), generator=generator)

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 2000, subsample_size=100) as i:
            pyro.sample("y", dist.Bernoulli(logits=x[i] @ w), obs=y[i])

    vi = VI(AutoFlow(model), num_steps=400, seed=0, progress_bar=False).run()
    mean, sd = by_importance(x.double(), y.double())
    w = vi.get_samples(8000)["w"]
    assert vi.diagnostics()["outcome"] is Outcome.TRUST
    assert ((w.mean(0) - mean).abs() / sd).max() < 5 * (2 / 8000) ** 0.5
    assert (w.std(0) / sd - 1).abs().max() < 5 * 8000**-0.5


def by_importance(x, y):
    """Mean and sd of the posterior of a logistic regression, by draws of its Laplace approximation."""
    w, eye = torch.zeros(3, dtype=torch.double), torch.eye(3, dtype=torch.double)
    for _ in range(20):
        p = torch.sigmoid(x @ w)
        precision = (x.T * (p * (1 - p))) @ x + eye
        w = w + torch.linalg.solve(precision, x.T @ (y - p) - w)
    laplace = torch.distributions.MultivariateNormal(w, precision_matrix=precision)
    with seeded(0):
        draws = laplace.sample((8000,))
    logits = draws @ x.T
    log_p = (logits * y).sum(1) - torch.nn.functional.softplus(logits).sum(1) - 0.5 * draws.square().sum(1)
    weight = (log_p - laplace.log_prob(draws)).softmax(0)
    mean = weight @ draws
    return mean, (weight @ (draws - mean).square()).sqrt()


# ---- moves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [LocScale, TriangularAffine])
def test_a_gaussian_is_moved_onto_the_posterior(end):
    loc = torch.tensor([1.0, -2.0, 0.5])
    tril = torch.tensor([[0.5, 0.0, 0.0], [0.3, 1.0, 0.0], [-0.2, 0.4, 2.0]])
    tril = tril.diagonal().diag() if end is LocScale else tril
    target = torch.distributions.MultivariateNormal(loc, scale_tril=tril)
    layer = Whitened(Chain(LocScale(3)), end(3, init_scale=1.0))
    with seeded(0):
        trainer = Trainer(target.log_prob, progress_bar=False)
        draws = moved(trainer, layer, 0.999, 20_000)
    assert effective(draws.log_weight) > 0.99
    torch.testing.assert_close(draws.z.mean(0), loc, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.z.T.cov(), tril @ tril.T, atol=0.12, rtol=0.05)


def test_a_good_fit_stays_where_it_is_and_a_move_that_does_no_good_is_undone():
    layer = Whitened(Chain(LocScale(2)), LocScale(2))
    with seeded(0):
        trainer = Trainer(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob)
        moved(trainer, layer, 0.95, 5000)
        assert not layer.end.loc.any()
        heavy = Trainer(lambda z: torch.distributions.Cauchy(0.0, 0.01).log_prob(z).sum(-1))
        before = effective(heavy.sampler.sample(layer, 5000).log_weight)
        after = effective(moved(heavy, layer, 0.95, 5000).log_weight)
    assert after >= 0.8 * before


def test_few_draws_with_weight_do_not_move_a_fit():
    layer = Whitened(Chain(LocScale(2)), LocScale(2))
    with torch.no_grad():
        draws = draw(lambda z: torch.full_like(z[:, 0], -torch.inf), layer, even_noise(layer, 1000))
    assert not move(layer, draws)


def test_the_power_of_weights_is_the_largest_that_leaves_enough():
    log_weight = 10 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    power = tempered(log_weight, 400)
    assert effective(power * log_weight) * 5000 == pytest.approx(400, rel=0.01)
    assert effective(1.1 * power * log_weight) * 5000 < 400
