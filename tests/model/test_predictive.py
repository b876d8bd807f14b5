"""Every draw is asked the same, whichever way the model is run."""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyro_nflows.model import predictive
from pyro_nflows.model.predictive import Run, each_draw, isolated

NUM_DRAWS = 7
DATA = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)


def hierarchical(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("unit", len(y)):
        z = pyro.sample("z", dist.Normal(loc, scale))
        pyro.deterministic("shift", z - loc)
        pyro.deterministic("above", z > loc)
        pyro.sample("y", dist.StudentT(4.0, z, 1.0), obs=y)


def multivariate(y: Tensor) -> None:
    chol = pyro.sample("chol", dist.LKJCholesky(2, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("share", weights[0])
    with pyro.plate("pair", 2):
        pyro.sample("y", dist.MultivariateNormal(loc + weights[1], scale_tril=chol), obs=y.reshape(2, 2))


def masked_and_scaled(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("unit", len(y)), poutine.scale(scale=3.0), poutine.mask(mask=y > 0):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def branching(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("unit", len(y)):
        pyro.sample("y", dist.Normal(loc if loc > 0 else 2 * loc, 1.0), obs=y)


def circular(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("unit", len(y)):
        pyro.sample("y", dist.VonMises(loc, 2.0), obs=y)


def counts(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("unit", len(y)):
        pyro.sample("y", dist.ZeroInflatedPoisson(gate=share, rate=rate), obs=y.abs().round())


def sequential(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.factor("soft", -loc.square())
    for i in pyro.plate("unit", len(y)):
        pyro.sample(f"y_{i}", dist.Normal(loc, 1.0), obs=y[i])


def mixture(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("component", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    pyro.deterministic("mean", weights @ loc)
    with pyro.plate("unit", len(y)):
        label = pyro.sample("label", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.deterministic("center", loc[label])
        pyro.sample("y", dist.Normal(loc[label], 1.0), obs=y)


MODELS = [hierarchical, multivariate, masked_and_scaled, branching, circular, counts, sequential, mixture]
EAGER_ONLY = {branching, mixture}


def draws_of(model: Callable[..., Any], num_samples: int = NUM_DRAWS) -> dict[str, Tensor]:
    """Draws from the prior."""
    pyro.set_rng_seed(1)
    names = [name for name, site in Run(model, (DATA,)).prior({}).items() if name[0] == "prior"]
    answers = [Run(model, (DATA,)).prior({}) for _ in range(num_samples)]
    derived = {"shift", "above", "mean", "center", "label"} | ({"share"} if model is multivariate else set())
    return {n: torch.stack([a["prior", n] for a in answers]) for _, n in names if n not in derived}


@pytest.fixture(autouse=True)
def run_isolated(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tests run models as they are meant to be, but for the one of that very thing."""
    with contextlib.nullcontext() if "isolation" in request.node.name else isolated(0):
        yield


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that were asked in a loop."""
    asked: list[str] = []
    one_by_one = predictive._one_by_one
    monkeypatch.setattr(
        predictive, "_one_by_one", lambda ask, draws: asked.append(ask.__name__) or one_by_one(ask, draws)
    )
    return asked


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("question", ["deterministic", "log_likelihood"])
def test_vectorised_equals_the_loop(model: Callable[..., Any], question: str, loops: list[str]) -> None:
    ask, draws = getattr(Run(model, (DATA,)), question), draws_of(model)
    answers = each_draw(ask, draws)
    assert loops == ([question] if model in EAGER_ONLY and answers else [])
    loop = predictive._one_by_one(ask, draws)
    assert answers.keys() == loop.keys()
    for key, values in loop.items():
        torch.testing.assert_close(answers[key], values, equal_nan=True)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("question", ["posterior_predictive", "prior"])
def test_random_answers_differ_between_draws_and_have_the_shapes_of_the_loop(
    model: Callable[..., Any], question: str
) -> None:
    ask, draws = getattr(Run(model, (DATA,)), question), draws_of(model)
    answers, loop = each_draw(ask, draws), predictive._one_by_one(ask, draws)
    assert {k: v.shape for k, v in answers.items()} == {k: v.shape for k, v in loop.items()}
    assert all(len(values.unique(dim=0)) > 1 for values in answers.values())


@pytest.mark.parametrize("model", [hierarchical, masked_and_scaled])
def test_common_models_are_not_run_in_a_loop(model: Callable[..., Any], loops: list[str]) -> None:
    run = Run(model, (DATA,))
    for ask in (run.deterministic, run.log_likelihood, run.posterior_predictive, run.prior):
        each_draw(ask, draws_of(model))
    assert loops == []


@pytest.mark.parametrize("make_loop", [False, True])
def test_predictive_draws_have_the_right_law(make_loop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(1.0, 2.0))
        with pyro.plate("unit", 2):
            pyro.sample("y", dist.Laplace(z, 0.5), obs=torch.zeros(2))

    if make_loop:
        monkeypatch.setattr(predictive, "_vectorised", None)
    num_samples = 1500
    z = torch.linspace(-3, 3, num_samples)
    noise = each_draw(Run(model).posterior_predictive, {"z": z})["posterior_predictive", "y"] - z[:, None]
    prior = each_draw(Run(model).prior, {"": z})
    variance = 2 * 0.5**2
    for values, mean, var in [
        (noise, 0.0, variance),
        (prior["prior", "z"][:, None], 1.0, 4.0),
        (prior["prior_predictive", "y"], 1.0, 4.0 + variance),
    ]:
        assert ((values.mean(0) - mean).abs() < 5 * (var / num_samples) ** 0.5).all()
        # The fourth moment of these laws is at most six times the squared variance.
        assert ((values.var(0) - var).abs() < 5 * var * (5 / num_samples) ** 0.5).all()
    assert abs(torch.corrcoef(noise.T)[0, 1]) < 5 / num_samples**0.5


def test_counts_out_of_known_totals_are_predicted_at_once_without_a_warning(loops: list[str]) -> None:
    """Of what ``vmap`` knows only the chances as many, torch's sampler says that it resizes an output."""
    totals = torch.tensor([10.0, 20.0, 30.0])

    def model() -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("row", 3):
            pyro.sample("y", dist.Binomial(totals, p), obs=torch.tensor([1.0, 2.0, 3.0]))

    draws = {"p": torch.linspace(0.1, 0.9, 2000)}
    counts = each_draw(Run(model, ()).posterior_predictive, draws)["posterior_predictive", "y"]
    assert loops == []
    away = (counts - totals * draws["p"][:, None]) / (totals * (draws["p"] * (1 - draws["p"]))[:, None]).sqrt()
    assert (away.mean(0).abs() < 5 / 2000**0.5).all()


def test_a_sampler_that_fills_in_place_is_found_out(loops: list[str]) -> None:
    class Sloppy(dist.Normal):
        def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
            noise = torch.empty(())
            noise.normal_()
            return self.loc + noise

    def model() -> None:
        pyro.sample("y", Sloppy(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(0.0))

    y = each_draw(Run(model).posterior_predictive, {"z": torch.zeros(500)})["posterior_predictive", "y"]
    assert loops == ["posterior_predictive"]
    assert abs(y.mean()) < 5 / 500**0.5


def test_log_likelihood_is_neither_scaled_nor_masked() -> None:
    loc = torch.tensor(0.4)
    answer = Run(masked_and_scaled, (DATA,)).log_likelihood({"loc": loc})["log_likelihood", "y"]
    expected = dist.Normal(loc, 1.0).log_prob(DATA)
    torch.testing.assert_close(answer[DATA > 0], expected[DATA > 0])
    assert answer[DATA <= 0].isnan().all()


def test_masks_of_distributions_and_of_partly_observed_sites_are_heeded() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("unit", 4):
            pyro.sample("a", dist.Normal(z, 1.0).mask(DATA > 0), obs=DATA)
            pyro.sample("b", dist.Normal(z, 1.0), obs=DATA, obs_mask=DATA > 0)

    draw = {"z": torch.tensor(0.4), "b_unobserved": torch.full((4,), 9.0)}
    answers = Run(model).log_likelihood(draw)
    assert set(answers) == {("log_likelihood", "a"), ("log_likelihood", "b_observed")}
    for answer in answers.values():
        assert torch.equal(answer.isnan(), DATA <= 0)
    assert torch.equal(Run(model).deterministic(draw)["posterior", "b"], torch.where(DATA > 0, DATA, 9.0))


def test_labels_of_a_mixture_are_summed_out() -> None:
    weights, loc = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-1.0, 0.0, 2.0])
    answer = Run(mixture, (DATA,)).log_likelihood({"weights": weights, "loc": loc})
    exact = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 1.0)).log_prob(DATA)
    torch.testing.assert_close(answer["log_likelihood", "y"], exact)


def test_several_enumerated_latents_are_summed_out_as_pyro_does() -> None:
    @config_enumerate
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("unit", 4):
            a = pyro.sample("a", dist.Bernoulli(z.sigmoid()))
            b = pyro.sample("b", dist.Categorical(torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])[a.long()]))
            pyro.sample("y", dist.Normal(z * a + b, 1.0), obs=DATA)

    z = torch.tensor(0.3)
    answer = Run(model).log_likelihood({"z": z})["log_likelihood", "y"]
    guide = poutine.block(lambda: pyro.sample("z", dist.Delta(z)))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(poutine.condition(model, {"z": z}), guide)
    torch.testing.assert_close(answer.sum() + dist.Normal(0.0, 1.0).log_prob(z), torch.tensor(-loss))


def test_shared_discrete_latents_leave_no_pointwise_likelihood() -> None:
    @config_enumerate
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shared = pyro.sample("shared", dist.Bernoulli(0.5))
        with pyro.plate("unit", 4):
            pyro.sample("y", dist.Normal(z + shared, 1.0), obs=DATA)
            pyro.sample("free", dist.Normal(z, 1.0), obs=DATA)

    assert list(Run(model).log_likelihood({"z": torch.tensor(0.0)})) == [("log_likelihood", "free")]


def test_batches_outside_plates_share_their_latents() -> None:
    @config_enumerate
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shared = pyro.sample("shared", dist.Categorical(torch.ones(4)))
        pyro.sample("y", dist.Normal((z + shared) * torch.ones(4), 1.0), obs=DATA)
        pyro.sample("free", dist.Normal(z, 1.0).expand([4]), obs=DATA)

    answers = Run(model).log_likelihood({"z": torch.tensor(0.0)})
    torch.testing.assert_close(answers, {("log_likelihood", "free"): dist.Normal(0.0, 1.0).log_prob(DATA)})


def test_hidden_markov_models_leave_no_pointwise_likelihood() -> None:
    @config_enumerate
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        state: Any = 0
        for t in pyro.markov(range(4)):
            state = pyro.sample(f"state_{t}", dist.Categorical(torch.eye(2)[state] * 0.8 + 0.1))
            pyro.sample(f"y_{t}", dist.Normal(z[state], 1.0), obs=DATA[t])

    assert Run(model).log_likelihood({"z": torch.zeros(2)}) == {}


def test_deterministics_of_enumerated_latents_are_left_out() -> None:
    draw = {name: values[0] for name, values in draws_of(mixture).items()}
    assert list(Run(mixture, (DATA,)).deterministic(draw)) == [("posterior", "mean")]


def test_deterministics_have_the_shape_they_were_given() -> None:
    for answers in (
        Run(hierarchical, (DATA,)).prior({}),
        Run(hierarchical, (DATA,)).deterministic({n: v[0] for n, v in draws_of(hierarchical).items()}),
    ):
        assert next(v for (_, name), v in answers.items() if name == "shift").shape == (4,)


def test_conditioned_data_are_replaced_too() -> None:
    def model() -> None:
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0))

    conditioned = poutine.condition(model, {"y": torch.tensor(50.0)})
    y = Run(conditioned).posterior_predictive({"z": torch.tensor(0.0)})["posterior_predictive", "y"]
    assert abs(y) < 10


def test_missing_latent_is_named() -> None:
    with pytest.raises(ValueError, match="expected the latent site 'scale' too"):
        Run(hierarchical, (DATA,)).log_likelihood({"loc": torch.tensor(0.0), "z": torch.zeros(4)})


def test_errors_of_the_model_come_through() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        each_draw(Run(model).log_likelihood, {"z": torch.zeros(3)})


def test_large_models_are_run_in_chunks(monkeypatch: pytest.MonkeyPatch, loops: list[str]) -> None:
    draws, run = draws_of(hierarchical), Run(hierarchical, (DATA,))
    whole = each_draw(run.log_likelihood, draws)
    monkeypatch.setattr(predictive, "ELEMENTS_AT_ONCE", 25)
    torch.testing.assert_close(each_draw(run.log_likelihood, draws), whole)
    assert loops == []


@pytest.mark.parametrize("seed", [None, 3])
def test_isolation_leaves_nothing_behind(seed: int | None) -> None:
    pyro.param("kept", torch.tensor(2.0), constraint=dist.constraints.positive)
    kept = pyro.get_param_store()._params["kept"]
    pyro.enable_validation(True)
    torch.distributions.Distribution.set_default_validate_args(False)
    before = torch.get_rng_state(), random.getstate()
    with isolated(seed):
        pyro.param("new", torch.tensor(1.0))
        pyro.sample("x", dist.Normal(pyro.param("kept"), 1.0))
        assert not torch.is_grad_enabled()
    assert list(pyro.get_param_store().keys()) == ["kept"]
    assert pyro.get_param_store()._params["kept"] is kept
    assert torch.is_grad_enabled()
    assert torch.distributions.Distribution._validate_args is False
    assert pyro.poutine.util.is_validation_enabled()
    assert torch.equal(torch.get_rng_state(), before[0]) == (seed is not None)
    assert random.getstate() == before[1]
