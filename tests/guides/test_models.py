"""Flow guides on many kinds of models: supports, flat priors, starting points, masks, factors, plates, modules."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.optim import Adam
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_nflows import ELBO, IWAE, AutoFlow
from pyro_nflows.layers import LocScale
from tests.guide_registry import Case, Model, cases, moved
from tests.models import PAIRS, one_of_each, pairs

pytestmark = pytest.mark.on_devices

# ---- supports -----------------------------------------------------------------------------------------------

SUPPORTS: dict[str, Callable[[], Any]] = {
    "real": lambda: dist.StudentT(3.0),
    "real vector": lambda: dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
    "real matrix": lambda: dist.Normal(torch.zeros(2, 3), 1.0).to_event(2),
    "positive": lambda: dist.Gamma(2.0, 1.0),
    "nonnegative": lambda: dist.HalfCauchy(1.0),
    "unit interval": lambda: dist.Beta(2.0, 3.0),
    "interval": lambda: dist.Uniform(-1.0, 4.0),
    "greater than": lambda: dist.Pareto(2.0, 3.0),
    "simplex": lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    "correlation": lambda: dist.LKJ(3, 2.0),
    "correlation Cholesky": lambda: dist.LKJCholesky(4, 2.0),
    "ordered vector": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()
    ),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_draws_keep_to_the_support(name: str) -> None:
    def model() -> Tensor:
        return pyro.sample("z", SUPPORTS[name]())

    guide = AutoFlow(model, init_scale=1.0)
    guide()
    moved(guide, 0.1)
    with torch.no_grad():
        draws = guide.constrain(guide.get_posterior().sample((50,)))["z"]
    fn = SUPPORTS[name]()
    assert draws.shape == (50, *fn.shape())
    assert fn.support.check(draws).all()
    assert ELBO(3).loss_and_grads(model, guide) < torch.inf
    assert Trace_ELBO().loss_and_grads(model, guide) < torch.inf


@cases()
def test_all_kinds_of_latents_at_once(case: Case) -> None:
    guide = case(one_of_each)
    svi = SVI(one_of_each, guide, Adam({"lr": 1e-3}), ELBO(4))
    losses = torch.tensor([svi.step() for _ in range(3)])
    assert losses.isfinite().all()
    assert guide.latent_dim == 1 + 2 + 1 + 1 + 2 + 3 + 6
    for name, value in guide().items():
        site = guide.prototype_trace.nodes[name]
        assert value.shape == site["value"].shape
        assert site["fn"].support.check(value).all()


# ---- starting points ----------------------------------------------------------------------------------------


def positive_pair() -> None:
    pyro.sample("real", dist.Normal(3.0, 1.0))
    with pyro.plate("unit", 2):
        pyro.sample("positive", dist.LogNormal(1.0, 0.5))


INITS: dict[str, Callable[[], Any]] = {
    "feasible": lambda: init_to_feasible,
    "sample": lambda: init_to_sample,
    "median": lambda: init_to_median(num_samples=7),
    "mean": lambda: init_to_mean,
    "uniform": lambda: init_to_uniform(radius=0.5),
    "value": lambda: init_to_value(values={"positive": torch.tensor([0.2, 5.0])}, fallback=init_to_mean),
    "generated": lambda: init_to_generated(generate=lambda: init_to_value(values={"real": torch.tensor(9.0)})),
}


@cases()
@pytest.mark.parametrize("init", INITS)
def test_a_fresh_guide_is_a_gaussian_at_init_loc_fn_of_width_init_scale(case: Case, init: str) -> None:
    """In unconstrained space; a fresh flow is the identity, so this is exact and not only so on average."""
    init_loc_fn, started = INITS[init](), {}

    def remember(site: dict[str, Any]) -> Tensor:
        started[site["name"]] = init_loc_fn(site)
        return started[site["name"]]

    guide = case(positive_pair, init_loc_fn=remember, init_scale=0.3)
    guide()
    loc = torch.cat([started["real"].reshape(1), started["positive"].log()])
    with torch.no_grad():
        draws = guide.get_posterior().sample((2000,))
        z = (draws - loc) / 0.3
        torch.testing.assert_close(guide.get_posterior().log_prob(draws), dist.Normal(loc, 0.3).log_prob(draws).sum(-1))
    assert (z.mean(0).abs() < 5 / 2000**0.5).all()
    assert ((z.var(0) - 1).abs() < 5 * (2 / 2000) ** 0.5).all()
    torch.testing.assert_close(guide.median(), started)


@pytest.mark.parametrize("init_scale", [1e-4, 0.1, 3])
def test_init_scale_is_a_width_in_any_unit(init_scale: float) -> None:
    guide = AutoFlow(positive_pair, init_scale=init_scale)
    guide()
    z = guide.get_posterior().sample((2000,)) - guide.init_loc()
    assert ((z.std(0) / init_scale - 1).abs() < 5 * (0.5 / 2000) ** 0.5).all()


FLAT: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "real": (constraints.real, (), ()),
    "positive": (constraints.positive, (), ()),
    "unit interval": (constraints.unit_interval, (3,), ()),
    "interval": (constraints.interval(-2.0, 5.0), (2, 3), ()),
    "greater than": (constraints.greater_than(4.0), (), ()),
    "real vector": (constraints.real_vector, (), (3,)),
    "independent": (constraints.independent(constraints.positive, 1), (), (3,)),
    "simplex": (constraints.simplex, (2,), (3,)),
    "ordered vector": (constraints.ordered_vector, (), (3,)),
    "positive ordered vector": (constraints.positive_ordered_vector, (), (3,)),
    "correlation Cholesky": (constraints.corr_cholesky, (), (3, 3)),
}
FLAT_INITS = {**INITS, "value": lambda: init_to_value(values={}), "generated": lambda: init_to_generated}


@pytest.mark.parametrize("support", FLAT)
@pytest.mark.parametrize("init", FLAT_INITS)
def test_flat_priors_start_at_a_feasible_point(support: str, init: str) -> None:
    constraint, batch_shape, event_shape = FLAT[support]

    def model() -> None:
        fn = dist.ImproperUniform(constraint, batch_shape, event_shape).to_event(len(batch_shape))
        z = pyro.sample("z", fn)
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(4.0))

    guide = AutoFlow(model, init_loc_fn=FLAT_INITS[init]())
    start = guide.median()["z"]
    assert start.shape == batch_shape + event_shape
    assert biject_to(constraint)(biject_to(constraint).inv(start)).isfinite().all()
    assert ELBO(2).loss_and_grads(model, guide) < torch.inf


@cases()
def test_flat_priors_in_plates_and_under_masks(case: Case) -> None:
    def model() -> None:
        loc = pyro.sample("loc", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("unit", 4):
            flat = dist.ImproperUniform(constraints.positive, (), ())
            scale = pyro.sample("scale", flat)
            pyro.sample("unused", flat.mask(torch.tensor([True, False, False, True])))
            pyro.sample("y", dist.Normal(loc, scale), obs=PAIRS)
            pyro.factor("proper", -scale)

    guide = case(model)
    svi = SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO())
    assert torch.tensor([svi.step() for _ in range(2)]).isfinite().all()
    assert ELBO(2).loss_and_grads(model, guide) < torch.inf
    assert (guide.median()["scale"] > 0).all()


# ---- parts of models ----------------------------------------------------------------------------------------


@cases()
@pytest.mark.parametrize("make_elbo", [ELBO, IWAE, Trace_ELBO])
def test_factors_count_once_a_row(case: Case, make_elbo: Callable[[], Any]) -> None:
    def model(log_factor: float) -> None:
        pyro.sample("z1", dist.Normal(0.0, 1.0))
        pyro.factor("f1", torch.tensor(log_factor))
        with pyro.plate("unit", 3):
            pyro.factor("f2", torch.tensor(log_factor))
            pyro.sample("z3", dist.Normal(torch.zeros(3), 1.0))

    guide, losses = case(model), []
    guide(0.0)
    for log_factor in (5.0, 4.0):
        pyro.set_rng_seed(1)
        losses.append(make_elbo().loss(model, guide, log_factor))
    assert losses[0] - losses[1] == pytest.approx(-4)


@cases()
@pytest.mark.parametrize("make_elbo", [ELBO, Trace_ELBO])
def test_masks_and_scales(case: Case, make_elbo: Callable[[], Any]) -> None:
    keep = torch.tensor([True, False, True, True])

    def model(mask: bool, scale: float) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).mask(torch.tensor([True, False])).to_event(1))
        with pyro.plate("unit", 4), poutine.scale(scale=scale), poutine.mask(mask=keep if mask else True):
            pyro.sample("y", dist.Normal(z[0] + z[1], 1.0), obs=PAIRS)

    def by_hand(mask: bool, scale: float) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.factor("undo", -dist.Normal(0.0, 1.0).log_prob(z[1]))
        log_prob = dist.Normal(z.sum(), 1.0).log_prob(PAIRS)
        pyro.factor("y", scale * (log_prob[keep] if mask else log_prob).sum())

    guide = case(model)
    guide(True, 1.0)
    for mask, scale in ((False, 1.0), (True, 1.0), (False, 2.5), (True, 0.1)):
        losses = []
        for each in (model, by_hand):
            pyro.set_rng_seed(2)
            losses.append(make_elbo().loss(each, guide, mask, scale))
        assert losses[0] == pytest.approx(losses[1])


@cases()
def test_params_of_the_model_are_trained_too(case: Case) -> None:
    def model() -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("unit", 4):
            z = pyro.sample("z", dist.Normal(loc, scale))
            pyro.sample("y", dist.Normal(z, 1.0), obs=PAIRS)

    svi = SVI(model, case(model), Adam({"lr": 0.1}), ELBO(4))
    svi.step()
    assert pyro.param("loc") != 0
    assert pyro.param("scale") != 2


class Regression(PyroModule):
    """A Bayesian weight, a point estimate and a plain parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(lambda self: dist.Normal(0.0, self.width).expand([3]).to_event(1))
        self.width = PyroParam(torch.tensor(2.0), constraints.positive)
        self.offset = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        loc, sigma = x @ self.weight + self.offset, pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("unit", len(x)):
            result: Tensor = pyro.sample("y", dist.Normal(loc, sigma), obs=y)
        return result


@cases()
@pytest.mark.parametrize("make_elbo", [ELBO, Trace_ELBO])
def test_pyro_modules(case: Case, make_elbo: Callable[[], Any]) -> None:
    model, x, y = Regression(), torch.randn(5, 3), torch.randn(5)
    guide = case(model)
    svi = SVI(model, guide, Adam({"lr": 0.1}), make_elbo())
    svi.step(x, y)
    assert guide.latent_names == ["weight", "sigma"]
    assert model.width != 2
    assert model.offset != 1


@cases()
def test_create_plates(case: Case) -> None:
    guide = case(pairs, create_plates=lambda *args: pyro.plate("unit", 4))
    trace = poutine.trace(guide).get_trace()
    assert trace.nodes["z"]["cond_indep_stack"][0].name == "unit"
    assert Trace_ELBO().loss(pairs, guide) < torch.inf


@cases(needs_model=False)
def test_data_and_latents_may_be_subsampled(case: Case) -> None:
    def model(local: bool) -> None:
        z = pyro.sample("shared", dist.Normal(0.0, 1.0))
        with pyro.plate("unit", 4, subsample_size=2) as index:
            if local:
                z = pyro.sample("local", dist.Normal(z, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=PAIRS[index])

    for local in (False, True):
        pyro.clear_param_store()
        guide = case(functools.partial(model, local))
        assert SVI(guide.bare_model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step() < torch.inf
        assert guide.latents.dim == (5 if local else 1)


@cases()
def test_one_latent_dimension(case: Case) -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide, y = case(model), torch.tensor(0.5)
    for elbo in (ELBO(4), Trace_ELBO(), Trace_ELBO(num_particles=2, vectorize_particles=True)):
        assert SVI(model, guide, Adam({"lr": 1e-3}), elbo).step(y) < torch.inf
    moved(guide, 0.1)
    assert guide.latent_dim == 1
    assert guide(y)["z"].shape == guide.median()["z"].shape == ()
    if case.bijective:
        z = torch.linspace(-8, 8, 4001)
        assert torch.trapezoid(guide.log_prob({"z": z}).exp(), z).item() == pytest.approx(1, abs=1e-3)


def model_without_plates(num: int) -> Model:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(num), 1.0).to_event(1))

    return model


@cases()
@pytest.mark.parametrize("num", [2, 3, 17])
def test_any_number_of_dimensions(case: Case, num: int) -> None:
    model = model_without_plates(num)
    guide = case(model, init_scale=1.0, init_loc_fn=init_to_feasible)
    assert ELBO(2).loss_and_grads(model, guide) == pytest.approx(0, abs=1e-9)


def test_many_dimensions_have_a_diagonal_end() -> None:
    guide = AutoFlow(model_without_plates(600), LocScale)
    assert guide()["z"].shape == (600,)
    assert sum(p.numel() for p in guide.parameters()) == 4 * 600
