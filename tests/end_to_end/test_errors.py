"""Bad input gets a clear error: what was got, what was expected, and the remedy; sites and plates are named."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_nflows import ELBO, IWAE, VI, AutoFlow, AutoIAF, AutoRealNVP, flows
from pyro_nflows.layers import LocScale
from pyro_nflows.layers.base import Exactness
from tests.guide_registry import Case, Model, cases
from tests.models import PAIRS, pairs

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))


def quick(model: Model, **kwargs: Any) -> VI:
    return VI(AutoFlow(model, TWO), num_steps=2, engine="eager", seed=0, progress_bar=False, **kwargs)


def by_vi(model: Model, *args: Any) -> None:
    quick(model).run(*args)


def by_elbo(model: Model, *args: Any) -> None:
    ELBO(2).loss_and_grads(model, AutoFlow(model, TWO), *args)


def by_call(model: Model, *args: Any) -> None:
    AutoFlow(model, TWO)(*args)


everywhere = pytest.mark.parametrize("use", [by_vi, by_elbo, by_call])
in_training = pytest.mark.parametrize("use", [by_vi, by_elbo])
validated = pytest.mark.parametrize("validate", [True, False], ids=["validated", "not validated"])

# ---- latents ------------------------------------------------------------------------------------------------


def nothing() -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


@everywhere
@pytest.mark.parametrize("model", [nothing, poutine.block(pairs, hide=["z"]), poutine.condition(pairs, {"z": PAIRS})])
def test_no_latents(use: Callable[..., None], model: Model) -> None:
    with pytest.raises(RuntimeError, match=r"AutoFlow found no latent variables.*without obs= and not hidden"):
        use(model)


@everywhere
@pytest.mark.parametrize("also_continuous", [False, True])
def test_a_discrete_latent_that_is_not_enumerated(use: Callable[..., None], also_continuous: bool) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0)) if also_continuous else 0.0
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(z + k, 1.0), obs=torch.tensor(0.0))

    message = r'AutoFlow: latent site \'k\' is discrete \(Bernoulli\).*infer=\{"enumerate": "parallel"\}.*poutine.block'
    with pytest.raises(ValueError, match=message):
        use(model)


def test_a_subsampled_local_latent() -> None:
    def model() -> None:
        with pyro.plate("unit", 4, subsample_size=2) as index:
            z = pyro.sample("local", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=PAIRS[index])

    with pytest.raises(
        ValueError, match=r"site 'local' is inside plate 'unit', which is subsampled \(2 of 4\).*structure=\"plates\""
    ):
        AutoFlow(model, TWO, structure="joint")()
    by_elbo(model)
    by_call(model)


@everywhere
def test_a_latent_in_a_sequential_plate(use: Callable[..., None]) -> None:
    def model() -> None:
        for i in pyro.plate("unit", 2):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'z_0' is inside the sequential plate 'unit'.*Python range"):
        use(model)


@everywhere
def test_a_value_that_is_computed_as_a_latent(use: Callable[..., None]) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("twice", dist.Delta(2 * z))

    with pytest.raises(ValueError, match=r"site 'twice' is a Delta.*pyro.deterministic\('twice', value\)"):
        use(model)


@everywhere
def test_a_support_without_a_bijection(use: Callable[..., None]) -> None:
    def model() -> None:
        pyro.sample("factor", dist.ImproperUniform(dist.constraints.unit_lower_cholesky, (), (2, 2)))

    with pytest.raises(ValueError, match=r"site 'factor' has support .*UnitLowerCholesky.*LKJCholesky"):
        use(model)


@in_training
def test_a_support_that_depends_on_an_enumerated_site(use: Callable[..., None]) -> None:
    @config_enumerate
    def model() -> None:
        kind = pyro.sample("kind", dist.Bernoulli(0.5))
        pyro.sample("z", dist.Uniform(0.0, 1 + kind))

    with pytest.raises(ValueError, match=r"support of latent site 'z' (depends on a discrete|changes between two)"):
        use(model)


@everywhere
@pytest.mark.parametrize(
    "angle",
    [
        dist.VonMises(0.0, 2.0),
        dist.VonMises(torch.zeros(2), 2.0).to_event(1).mask(True),
        dist.VonMises3D(torch.tensor([1.0, 0.0, 0.0])),
        dist.SineBivariateVonMises(0.0, 0.0, 5.0, 5.0, correlation=0.5),
        dist.ProjectedNormal(torch.ones(3)),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.VonMises(torch.zeros(2), 2.0)),
    ],
)
def test_an_angle_or_a_direction(use: Callable[..., None], angle: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)site 't'.*ProjectedNormal.*ProjectedNormalReparam"):
        use(lambda: pyro.sample("t", angle))


@everywhere
def test_a_mixture_of_different_supports(use: Callable[..., None]) -> None:
    parts = dist.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"site 'z' is a mixture of components with different supports"):
        use(lambda: pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts)))


# ---- data ---------------------------------------------------------------------------------------------------


@in_training
@validated
def test_data_with_nan(use: Callable[..., None], validate: bool) -> None:
    data = torch.where(PAIRS > 0, PAIRS, math.nan)
    with (
        pyro.validation_enabled(validate),
        pytest.raises(ValueError, match=r"site 'x' is observed with NaN \(1 of 4 values\).*poutine.mask"),
    ):
        use(pairs, data)


@in_training
def test_data_with_nan_under_a_mask(use: Callable[..., None]) -> None:
    """The value would be right, but gradients NaN."""
    data = torch.where(PAIRS > 0, PAIRS, math.nan)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("unit", 4), poutine.mask(mask=~data.isnan()):
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"site 'x' is observed with NaN.*fill them"):
        use(model)


# ---- the start ----------------------------------------------------------------------------------------------


def negative_counts() -> None:
    rate = pyro.sample("rate", dist.Exponential(1.0))
    pyro.sample("count", dist.Poisson(rate), obs=torch.tensor(-1.0))


def impossible() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("never", torch.tensor(-math.inf))


def undefined() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("fine", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
    pyro.factor("root", (-1 - z.square()).sqrt())


def no_cholesky() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    covariance = torch.tensor([[1.0, 2.0], [2.0, 1.0]]) * (1 + z.square())
    pyro.factor("chol", torch.linalg.cholesky(covariance).sum())


@validated
@pytest.mark.parametrize(("model", "site"), [(negative_counts, "count"), (impossible, "never"), (undefined, "root")])
def test_no_density_at_the_start(model: Model, site: str, validate: bool) -> None:
    message = rf"not finite at its start, nor at 100 random points.*site '{site}' is the first.*init_loc_fn"
    with pyro.validation_enabled(validate), pytest.raises(ValueError, match=message):
        by_vi(model)


def test_the_models_own_errors_at_the_start_come_through() -> None:
    with pytest.raises(RuntimeError, match="cholesky"):
        by_vi(no_cholesky)


def test_other_points_are_tried_first() -> None:
    """The prior's median is infeasible here, and ``upper`` has to be at least three."""

    def model() -> None:
        upper = pyro.sample("upper", dist.Exponential(5.0))
        pyro.factor("wall", -100 * torch.relu(3 - upper).square() + torch.where(upper < 1, -math.inf, 0.0))

    vi = quick(model).run()
    assert vi.get_samples(5)["upper"].shape == (5,)


def test_masked_sites_are_not_blamed() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=torch.tensor(False)):
            pyro.factor("masked", torch.tensor(-math.inf))
        pyro.factor("guilty", z - math.inf)

    with pytest.raises(ValueError, match="site 'guilty' is the first"):
        by_vi(model)


# ---- models that change -------------------------------------------------------------------------------------


class Changing:
    """A model with another site every second run, or every run after the first."""

    def __init__(self, *runs: bool):
        self.runs = list(runs)

    def __call__(self) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        if self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]:
            pyro.sample("sometimes", dist.Normal(0.0, 1.0))


@in_training
@pytest.mark.parametrize("runs", [(False, True), (False, False, True)])
def test_a_site_that_was_not_there_before(use: Callable[..., None], runs: tuple[bool, ...]) -> None:
    with pytest.raises(ValueError, match=r"latent site 'sometimes' that the guide does not know.*run to run"):
        use(Changing(*runs))


@in_training
@pytest.mark.parametrize("runs", [(True, False), (True, True, False)])
def test_a_site_that_is_gone(use: Callable[..., None], runs: tuple[bool, ...]) -> None:
    with pytest.raises(ValueError, match=r"latent site 'sometimes' that this run of the model did not reach"):
        use(Changing(*runs))


@pytest.mark.parametrize("num", [1, 2, 6])
def test_local_latents_of_another_size(num: int) -> None:
    """Even one, which would broadcast."""
    guide, objective = AutoFlow(pairs, TWO), ELBO(2)
    objective.loss(pairs, guide, PAIRS)
    message = rf"latent site 'z' has shape \({num},\) in this run of the model, and had \(4,\)"
    for elbo in (objective, ELBO(2)):
        with pytest.raises(ValueError, match=message):
            elbo.loss(pairs, guide, torch.zeros(num))
    with pytest.raises(ValueError, match=message):
        VI(guide, num_steps=2, progress_bar=False).run(torch.zeros(num))


# ---- arguments of guides ------------------------------------------------------------------------------------


@cases()
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"init_scale": 0}, ValueError, "init_scale must be a positive number, got 0"),
        ({"init_scale": -0.1}, ValueError, "init_scale must be a positive number, got -0.1"),
        ({"init_scale": math.nan}, ValueError, "init_scale must be a positive number, got nan"),
        ({"init_scale": math.inf}, ValueError, "init_scale must be a positive number, got inf"),
        ({"init_scale": "0.1"}, TypeError, "expected init_scale to be a number, got str"),
        ({"init_loc_fn": 0.0}, TypeError, "expected init_loc_fn to be a function, got float"),
        ({"create_plates": 3}, TypeError, "expected create_plates to be a function, got int"),
    ],
)
def test_arguments_of_guides(case: Case, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"{case.name}: {message}"):
        case(pairs, **kwargs)


@cases()
def test_the_model_of_a_guide_must_be_callable(case: Case) -> None:
    with pytest.raises(TypeError, match=f"{case.name}: expected model to be a Pyro model, which is a function"):
        case(torch.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (3, TypeError, "AutoFlow: expected build to be a function, got int"),
        (lambda dim: flows.iaf(dim + 1), ValueError, r"build\(4\) made a layer of 5 -> 5 dim.*model has 4 latent"),
        (
            lambda dim: nn.Linear(dim, dim),
            TypeError,
            r"build\(4\): expected a pyro_nflows Layer or a torch .*, got Linear",
        ),
        (lambda: flows.iaf(4), TypeError, r"build is called with the number of latents, build\(4\), and takes \(\)"),
    ],
)
def test_build_of_a_guide(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AutoFlow(pairs, build)()


@pytest.mark.parametrize("num_layers", [0, 2.0, "2"])
def test_num_layers_of_a_guide(num_layers: Any) -> None:
    with pytest.raises(ValueError, match="num_layers must be a positive integer, got"):
        AutoIAF(pairs, num_layers)()


@pytest.mark.parametrize("guide", [AutoIAF, AutoRealNVP])
@pytest.mark.parametrize("hidden_dims", [8, "8", (8, 0), (8.0,)])
def test_hidden_dims_of_a_guide(guide: Callable[..., AutoFlow], hidden_dims: Any) -> None:
    with pytest.raises(ValueError, match=r"hidden_dims must be a sequence of positive integers, such as .* got"):
        guide(pairs, hidden_dims=hidden_dims)()


@pytest.mark.parametrize("levels", [[-0.1], [0.5, 1.1], [math.nan], [[0.5]]])
def test_levels_of_quantiles(levels: Any) -> None:
    with pytest.raises(ValueError, match=r"AutoFlow.quantiles: expected numbers between 0 and 1, got"):
        AutoFlow(pairs, TWO).quantiles(levels)


def test_log_prob_needs_every_site() -> None:
    guide = AutoFlow(pairs, TWO)
    with pytest.raises(RuntimeError, match=r"call guide\(\*args\) once"):
        guide.log_prob({"z": PAIRS})
    guide()
    with pytest.raises(ValueError, match=r"AutoFlow\.log_prob: no value for site 'z'"):
        guide.log_prob({"x": PAIRS})
    with pytest.raises(ValueError, match=r"expected site 'z' of shape \(\.\.\., 4\), got \(3,\)"):
        guide.log_prob({"z": PAIRS[:3]})


# ---- arguments of VI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "VI: num_steps must be a positive integer, got 0"),
        ({"num_steps": 10.0}, ValueError, "VI: num_steps must be a positive integer, got 10.0"),
        ({"num_starts": 0}, ValueError, "VI: num_starts must be a positive integer, got 0"),
        ({"annealing": 1.5}, ValueError, "VI: annealing is a share of the steps, from 0 to 1, got 1.5"),
        ({"annealing": "half"}, ValueError, "VI: annealing is a share of the steps, from 0 to 1, got 'half'"),
        ({"seed": "zero"}, TypeError, "VI: expected seed to be an integer or None, got str"),
        ({"engine": "fast"}, ValueError, r"VI: engine must be one of \['eager', 'traced'.*got 'fast'"),
        ({"objective": "elbo"}, TypeError, "VI: objective must be a pyro_nflows ELBO or IWAE, got str"),
        ({"objective": pyro.infer.Trace_ELBO()}, TypeError, "must be a pyro_nflows ELBO or IWAE, got Trace_ELBO"),
    ],
)
def test_arguments_of_vi(kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VI(AutoFlow(pairs), **kwargs)


@pytest.mark.parametrize("guide", [AutoNormal(pairs), pairs, None])
def test_the_guide_of_vi_must_be_a_flow(guide: Any) -> None:
    with pytest.raises(TypeError, match=r"VI: expected a flow guide, VI\(AutoFlow\(model\)\), got.*pyro.infer.SVI"):
        VI(guide)


class Roulette(LocScale):
    exactness = Exactness.UNBIASED


def test_iwae_on_weights_that_are_right_in_log_space_only() -> None:
    with pytest.raises(ValueError, match=r"unbiased in log space only.*train on ELBO"):
        VI(AutoFlow(pairs, Roulette), objective=IWAE(4), progress_bar=False).run()


@pytest.mark.parametrize(
    "ask",
    [
        lambda vi, path: vi.summary(),
        lambda vi, path: vi.get_samples(),
        lambda vi, path: vi.diagnostics(),
        lambda vi, path: vi.verdict(),
        lambda vi, path: vi.to_arviz(),
        lambda vi, path: vi.save(path),
    ],
    ids=["summary", "get_samples", "diagnostics", "verdict", "to_arviz", "save"],
)
def test_questions_before_run(ask: Callable[[VI, Path], None], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"VI has no draws yet; call run\(\*args\)"):
        ask(quick(pairs), tmp_path / "vi.pt")


def test_arguments_of_questions() -> None:
    vi = quick(pairs).run()
    with pytest.raises(ValueError, match="num_samples must be a positive integer, got 0"):
        vi.get_samples(0)
    for prob in (0.0, 1.0, 90):
        with pytest.raises(ValueError, match=f"prob must be between 0 and 1, got {prob}"):
            vi.summary(prob=prob)


# ---- checkpoints --------------------------------------------------------------------------------------------


def test_a_fit_of_another_model_or_guide(tmp_path: Path) -> None:
    def other(x: Tensor = PAIRS) -> None:
        with pyro.plate("unit", 4):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    quick(pairs).run().save(tmp_path / "vi.pt")
    assert VI.load(tmp_path / "vi.pt", AutoFlow(pairs, TWO), PAIRS).diagnostics()["num_steps"] > 0
    with pytest.raises(ValueError, match="the file holds a fit of AutoFlow, got a fresh AutoIAF; make a matching"):
        VI.load(tmp_path / "vi.pt", AutoIAF(pairs), PAIRS)
    with pytest.raises(
        ValueError, match=r"the file is of another model: its latent sites are \['z'\], those of this one"
    ):
        VI.load(tmp_path / "vi.pt", AutoFlow(other, TWO), PAIRS)
