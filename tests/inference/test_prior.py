"""A fitted posterior as the prior of further data: two halves give the posterior and the evidence of the whole."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from pyro_nflows import VI, AutoCIF, AutoFlow, flows
from pyro_nflows.inference.prior import FittedPrior

GENERATOR = torch.Generator().manual_seed(0)
X = torch.linspace(-1, 1, 24, dtype=torch.float64)
Y = 0.5 - X + 0.7 * torch.randn(24, dtype=torch.float64, generator=GENERATOR)
GROUPS = torch.randn(6, 8, dtype=torch.float64, generator=GENERATOR) + torch.arange(8.0, dtype=torch.float64) / 4
HALVES = (slice(0, None, 2), slice(1, None, 2))


def line(x: Tensor, y: Tensor | None = None) -> None:
    """Conjugate."""
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(weights[..., 0] + weights[..., 1] * x, 0.7), obs=y)


def positive(x: Tensor, y: Tensor | None = None) -> None:
    """A scale and a share, on supports of their own."""
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
    share = pyro.sample("share", dist.Beta(x.new_tensor(2.0), 2.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(share - x, scale), obs=y)


def hierarchy(y: Tensor) -> None:
    """Rows of a plate, in coordinates informed by their prior."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
    tau = pyro.sample("tau", dist.LogNormal(y.new_zeros(()), 0.5))
    with pyro.plate("group", y.shape[-1], dim=-1):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        with pyro.plate("row", len(y), dim=-2):
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def fit(model, *args: Tensor, num_steps: int | None = None) -> VI:
    return VI(AutoFlow(model), seed=0, num_steps=num_steps, progress_bar=False).run(*args)


def exact(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and log evidence of the line."""
    design = torch.stack([torch.ones_like(x), x], -1)
    precision = torch.eye(2, dtype=x.dtype) / 4 + design.T @ design / 0.49
    mean = torch.linalg.solve(precision, design.T @ y / 0.49)
    marginal = 4 * design @ design.T + 0.49 * torch.eye(len(x), dtype=x.dtype)
    evidence = dist.MultivariateNormal(torch.zeros_like(y), marginal).log_prob(y)
    return mean, torch.linalg.inv(precision), evidence


@pytest.fixture(scope="module")
def first() -> VI:
    return fit(line, X[HALVES[0]], Y[HALVES[0]])


@pytest.fixture(scope="module")
def prior(first: VI) -> FittedPrior:
    return first.posterior.as_prior()


def test_a_conjugate_posterior_and_its_evidence_are_exact(prior: FittedPrior) -> None:
    vi = fit(prior.on(line), X[HALVES[1]], Y[HALVES[1]])
    mean, covariance, evidence = exact(X, Y)
    draws = vi.get_samples(4000)["weights"]
    assert ((draws.mean(0) - mean).abs() < 3 * (covariance.diag() / 4000).sqrt()).all()
    assert ((draws.var(0) / covariance.diag() - 1).abs() < 5 * (2 / 4000) ** 0.5).all()
    found, before = vi.diagnostics(), exact(X[HALVES[0]], Y[HALVES[0]])[2]
    assert abs(found["iwae"] - float(evidence - before)) < 3 * found["iwae_se"] + 0.002  # the first flow's own error


@pytest.mark.slow
@pytest.mark.parametrize(("model", "whole"), [(positive, (X, Y)), (hierarchy, (GROUPS,))])
def test_halves_give_the_posterior_of_the_whole(model, whole: tuple[Tensor, ...]) -> None:
    parts = [tuple(values[half] for values in whole) for half in HALVES]
    prior = fit(model, *parts[0]).posterior.as_prior()
    halves, at_once = fit(prior.on(model), *parts[1]), fit(model, *whole)
    assert halves.verdict().outcome.is_trusted
    found, right = halves.get_samples(16000), at_once.get_samples(16000)
    assert set(found) == set(right)
    for name, values in right.items():
        sd = values.std(0)
        assert ((found[name].mean(0) - values.mean(0)).abs() < 0.05 * sd).all(), name
        assert ((found[name].std(0) / sd - 1).abs() < 0.05).all(), name


def test_the_density_is_that_of_the_draws(prior: FittedPrior) -> None:
    mean, covariance, _ = exact(X[HALVES[0]], Y[HALVES[0]])
    points = dist.MultivariateNormal(mean, covariance).sample((500,))
    right = dist.MultivariateNormal(mean, covariance).log_prob(points)
    assert (prior.log_prob({"weights": points}) - right).abs().mean() < 0.02
    draws = prior.sample((4000,))["weights"]
    assert ((draws.mean(0) - mean).abs() < 5 * (covariance.diag() / 4000).sqrt() + 0.01).all()


@pytest.mark.parametrize("structured", [False, True])
def test_the_models_log_density_has_the_prior_in_the_place_of_its_own(structured: bool) -> None:
    model, args = (hierarchy, (GROUPS,)) if structured else (positive, (X, Y))
    prior = fit(model, *args, num_steps=5).posterior.as_prior(untrusted=True)
    values = {name: value[0] for name, value in prior.sample((1,)).items()}
    updated = pyro.condition(prior.on(model), values)
    found = pyro.poutine.trace(updated).get_trace(*args).log_prob_sum()
    trace = pyro.poutine.trace(pyro.condition(model, values)).get_trace(*args)
    right = trace.log_prob_sum(lambda name, site: name == "y") + prior.log_prob(values)
    torch.testing.assert_close(found, right)
    if not structured:  # its coordinates do not depend on the data
        guide = AutoFlow(model)
        assert prior.log_prob({n: v.expand(3, 2, *v.shape) for n, v in values.items()}).shape == (3, 2)
        assert guide(*args).keys() == values.keys()


@pytest.mark.slow
def test_it_runs_in_pyros_tools(prior: FittedPrior) -> None:
    x, y = X[HALVES[1]], Y[HALVES[1]]
    model, mean = prior.on(line), exact(X, Y)[0]
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model, jit_compile=False), num_samples=100, warmup_steps=50, disable_progbar=True)
    mcmc.run(x, y)
    assert (mcmc.get_samples()["weights"].mean(0) - mean).abs().max() < 0.2
    guide = AutoMultivariateNormal(model)
    loss = Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
    assert SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss).step(x, y) > 0
    for parallel in (False, True):
        drawn = Predictive(model, num_samples=300, parallel=parallel)(x)
        center, covariance, _ = exact(X[HALVES[0]], Y[HALVES[0]])
        assert drawn["weights"].reshape(300, 2).unique(dim=0).shape == (300, 2)
        error = drawn["weights"].reshape(300, 2).mean(0) - center
        assert (error.abs() < 5 * (covariance.diag() / 300).sqrt() + 0.01).all()


def test_particles_have_a_density_each(prior: FittedPrior) -> None:
    trained = fit(hierarchy, GROUPS, num_steps=5).posterior.as_prior(untrusted=True)
    model = trained.on(hierarchy)
    draws = {n: v.reshape(3, 1, -1) for n, v in trained.sample((3,)).items()}
    with pyro.plate("particles", 3, dim=-3):
        trace = pyro.poutine.trace(pyro.condition(model, draws)).get_trace(GROUPS)
    trace.compute_log_prob()
    terms = [site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample"]
    found = sum(term.flatten(1).sum(-1) for term in terms if term.dim() == 3)
    for i in range(3):
        alone = {n: v[i].reshape(trained.shapes[n]) for n, v in draws.items()}
        right = pyro.poutine.trace(pyro.condition(model, alone)).get_trace(GROUPS).log_prob_sum()
        torch.testing.assert_close(found[i], right)


def test_it_travels(first: VI, prior: FittedPrior, tmp_path) -> None:
    first.save(tmp_path / "fit")
    loaded = VI.load(tmp_path / "fit", AutoFlow(line), X[HALVES[0]], Y[HALVES[0]]).posterior.as_prior()
    values = prior.sample((5,))
    for other in (loaded, pickle.loads(pickle.dumps(prior))):
        torch.testing.assert_close(other.log_prob(values), prior.log_prob(values))
    hierarchical = fit(hierarchy, GROUPS, num_steps=5).posterior.as_prior(untrusted=True)
    values = hierarchical.sample((5,))
    torch.testing.assert_close(pickle.loads(pickle.dumps(hierarchical)).log_prob(values), hierarchical.log_prob(values))


def test_it_stays_when_the_guide_is_trained_further() -> None:
    vi = fit(line, X, Y, num_steps=5)
    prior = vi.posterior.as_prior(untrusted=True)
    values = prior.sample((5,))
    before = prior.log_prob(values)
    vi.run(X, -Y)
    torch.testing.assert_close(prior.log_prob(values), before)


def test_a_fit_of_the_new_model_pickles(prior: FittedPrior) -> None:
    vi = fit(prior.on(line), X[HALVES[1]], Y[HALVES[1]], num_steps=5)
    again = pickle.loads(pickle.dumps(vi))
    assert again.diagnostics()["iwae"] == vi.diagnostics()["iwae"]
    assert again.get_samples(10)["weights"].shape == (10, 2)


def test_mistakes_are_told(prior: FittedPrior) -> None:
    def renamed(x: Tensor) -> None:
        pyro.sample("slopes", dist.Normal(x.new_zeros(2), 2.0).to_event(1))

    def longer(x: Tensor) -> None:
        pyro.sample("weights", dist.Normal(x.new_zeros(3), 2.0).to_event(1))

    with pytest.raises(ValueError, match=r"no latent site \['weights'\].*it has \['slopes'\]"):
        prior.on(renamed)(X)
    with pytest.raises(ValueError, match=r"'weights' has shape \(3,\) in this model and \(2,\)"):
        prior.on(longer)(X)
    with pytest.raises(ValueError, match=r"site 'weights' has shape \(4,\), expected \(..., 2\)"):
        prior.log_prob({"weights": torch.zeros(4)})
    with pytest.raises(TypeError, match="expected a Pyro model"):
        prior.on(3)  # type: ignore[arg-type]


def test_a_flow_that_is_not_the_posterior_is_refused() -> None:
    poor = VI(AutoFlow(line, init_scale=20.0), seed=0, progress_bar=False).judge(X, Y)
    with pytest.raises(ValueError, match="not to be trusted as a posterior"):
        poor.posterior.as_prior()
    assert poor.posterior.as_prior(untrusted=True).sample()["weights"].shape == (2,)
    indexed = VI(AutoCIF(line, inner=lambda dim: flows.realnvp(dim, 1, (4,))), seed=0, progress_bar=False).judge(X, Y)
    with pytest.raises(ValueError, match="no exact density"):
        indexed.posterior.as_prior(untrusted=True)
