"""What Pyro documents of its autoguides, for every flow guide; AutoMultivariateNormal shows that each test is fair."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import (
    SVI,
    Importance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.infer.reparam import LocScaleReparam
from pyro.optim import Adam
from torch import Tensor

from tests.guide_registry import CASES, Case, Model
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs


@dataclass(frozen=True)
class Control:
    """Pyro's full-rank Gaussian, made as the flow guides of the registry are."""

    name: str = "AutoMultivariateNormal"
    needs_model: bool = False

    def __call__(self, model: Model, **kwargs: Any) -> AutoGuide:
        return AutoMultivariateNormal(model, **kwargs)


Maker = Case | Control
MAKERS: list[Maker] = [Control(), *CASES]
guides = pytest.mark.parametrize("make", MAKERS, ids=lambda maker: maker.name)
#: For guide lists, whose parts see only a part of the model.
parts = pytest.mark.parametrize("make", [m for m in MAKERS if not m.needs_model], ids=lambda maker: maker.name)


def three_supports() -> None:
    pyro.sample("x", dist.Normal(0.5, 1.0))
    with pyro.plate("unit", 2):
        pyro.sample("y", dist.LogNormal(0.0, 1.0))
        pyro.sample("z", dist.Beta(2.0, 2.0))


def regression(x: Tensor, y: Tensor | None = None) -> Tensor:
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(x)):
        result: Tensor = pyro.sample("y", dist.Normal((x * weight).sum(-1), scale), obs=y)
    return result


def called(make: Maker, model: Model = three_supports, *args: Any, **kwargs: Any) -> Any:
    guide = make(model, **kwargs)
    guide(*args)
    return guide


# ---- what an autoguide can be asked -------------------------------------------------------------------------


@guides
@pytest.mark.parametrize(("init_scale", "dtype"), [(1.0, torch.float64), (1e-8, torch.float32)])
def test_location_and_scale_of_a_fresh_guide_are_those_asked_for(
    make: Maker, init_scale: float, dtype: torch.dtype
) -> None:
    """However narrow: a width below the precision of the location must not round to zero."""
    torch.set_default_dtype(dtype)
    try:
        guide = called(make, init_scale=init_scale)
        loc, scale = guide._loc_scale()
        torch.testing.assert_close(loc, guide._init_loc())
        torch.testing.assert_close(scale, torch.full_like(loc, init_scale), rtol=1e-4, atol=0.0)
    finally:
        torch.set_default_dtype(torch.float64)


@guides
def test_location_and_scale_of_a_wide_guide_are_those_of_its_draws(make: Maker) -> None:
    guide = called(make, init_scale=0.7)
    with torch.no_grad():
        for param in guide.parameters():
            param += 0.05 * torch.randn_like(param)
        draws = guide.get_posterior().sample((4000,))
        loc, scale = guide._loc_scale()
    assert ((draws.mean(0) - loc).abs() < 6 * draws.std(0) / 4000**0.5).all()
    fourth = ((draws - draws.mean(0)) / draws.std(0)).pow(4).mean(0)
    assert ((draws.std(0) / scale - 1).abs() < 6 * (0.25 * (fourth - 1) / 4000).sqrt() + 0.01).all()


@guides
def test_call_is_forward_as_a_tuple_in_the_order_of_names(make: Maker) -> None:
    guide = called(make)
    pyro.set_rng_seed(1)
    values = guide()
    pyro.set_rng_seed(1)
    assert all(torch.equal(a, values[name]) for a, name in zip(guide.call(), sorted(values), strict=True))


@guides
def test_the_latent_has_the_names_that_pyro_gives_it(make: Maker) -> None:
    guide = called(make)
    assert guide.latent_dim == 5
    assert guide.sample_latent().shape == (5,)
    sites = {site["name"]: value.shape for site, value in guide._unpack_latent(guide.sample_latent())}
    assert sites == {"x": (), "y": (2,), "z": (2,)}
    trace = poutine.trace(guide).get_trace()
    assert set(trace.stochastic_nodes) - {"unit"} == {"x", "y", "z", f"_{make.name}_latent"}
    assert {name: plate.size for name, plate in guide.plates.items()} == {"unit": 2}


@guides
def test_medians_and_quantiles_take_the_models_arguments(make: Maker) -> None:
    x, y = torch.randn(5, 2), torch.randn(5)
    guide = called(make, regression, x, y)
    quantiles, median = guide.quantiles([0.1, 0.5, 0.9], x, y), guide.median(x, y)
    for name, shape in (("weight", (2,)), ("scale", ())):
        assert quantiles[name].shape == (3, *shape)
        torch.testing.assert_close(quantiles[name][1], median[name])
        assert (quantiles[name].diff(dim=0) > 0).all()


@guides
def test_no_latents_are_an_error(make: Maker) -> None:
    with pytest.raises(RuntimeError):
        make(lambda: None)()


@guides
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_latent_of_any_shape(make: Maker, shape: tuple[int, ...]) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))

    guide = called(make, model)
    assert guide()["z"].shape == guide.median()["z"].shape == shape
    SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step()


# ---- every parameter trains ---------------------------------------------------------------------------------


@guides
def test_every_parameter_has_a_gradient(make: Maker) -> None:
    guide = called(make)
    Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(three_supports, guide)
    assert [name for name, param in guide.named_parameters() if param.grad is None] == []


@guides
def test_the_store_has_the_parameters_that_a_trace_sees(make: Maker) -> None:
    guide = called(make)
    names = set(poutine.trace(guide).get_trace().param_nodes)
    assert names == set(pyro.get_param_store().keys())
    assert len(names) == len(list(guide.parameters()))


# ---- objectives ---------------------------------------------------------------------------------------------

ELBOS: dict[str, Callable[..., Any]] = {
    "Trace": Trace_ELBO,
    "TraceGraph": TraceGraph_ELBO,
    "TraceMeanField": TraceMeanField_ELBO,
    "TraceEnum": partial(TraceEnum_ELBO, strict_enumeration_warning=False),
    "Renyi": partial(RenyiELBO, alpha=0.5),
    "WakeSleep": ReweightedWakeSleep,
}


@guides
@pytest.mark.parametrize("elbo", ELBOS)
def test_objectives_step(make: Maker, elbo: str) -> None:
    guide = called(make, pairs)
    before = [param.detach().clone() for param in guide.parameters()]
    loss = ELBOS[elbo](num_particles=3, max_plate_nesting=1, vectorize_particles=True)
    svi = SVI(pairs, guide, Adam({"lr": 1e-3}), loss)
    result = torch.as_tensor(svi.step(PAIRS))
    assert result.isfinite().all()
    assert any(not torch.equal(a, b) for a, b in zip(before, guide.parameters()))


JIT: dict[str, Callable[..., Any]] = {
    "Trace": JitTrace_ELBO,
    "TraceEnum": partial(JitTraceEnum_ELBO, strict_enumeration_warning=False),
}


@guides
@pytest.mark.parametrize("elbo", JIT)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_objectives_are_the_plain_ones(make: Maker, elbo: str) -> None:
    """At the exact posterior the loss is minus the log evidence, draw by draw."""
    if make.needs_model:
        pytest.skip("torch.jit cannot trace the gradient of the model, by which an annealed guide draws")
    guide = make(pairs, init_loc_fn=lambda site: PAIRS / 2, init_scale=0.5**0.5)
    guide(PAIRS)
    svi = SVI(pairs, guide, Adam({"lr": 1e-9}), JIT[elbo](ignore_jit_warnings=True, max_plate_nesting=1))
    for _ in range(3):
        assert svi.step(PAIRS) == pytest.approx(-PAIRS_EVIDENCE, abs=1e-5)


@guides
def test_evaluation_leaves_no_gradients_and_runs_without_them(make: Maker) -> None:
    guide = called(make, pairs)
    svi = SVI(pairs, guide, Adam({"lr": 1e-3}), Trace_ELBO())
    pyro.set_rng_seed(2)
    loss = svi.evaluate_loss()
    assert all(param.grad is None for param in guide.parameters())
    pyro.set_rng_seed(2)
    with torch.no_grad():
        assert Trace_ELBO().loss(pairs, guide) == pytest.approx(loss)
    pyro.set_rng_seed(2)
    assert Trace_ELBO().differentiable_loss(pairs, guide).item() == pytest.approx(loss)


# ---- serialisation ------------------------------------------------------------------------------------------


@guides
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_guide_is_saved_and_draws_the_same(make: Maker) -> None:
    if make.needs_model:
        pytest.skip("a saved trace cannot hold the gradient of the model, by which an annealed guide draws")
    guide = called(make)
    pyro.set_rng_seed(0)
    expected = guide.call()
    traced, buffer = torch.jit.trace_module(guide, {"call": ()}, check_trace=False), io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    pyro.set_rng_seed(0)
    for a, b in zip(loaded.call(), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert {n for n, _ in loaded.named_parameters()} == {n for n, _ in guide.named_parameters()}


@guides
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_predictive_is_saved(make: Maker) -> None:
    if make.needs_model:
        pytest.skip("a saved trace cannot hold the gradient of the model, by which an annealed guide draws")
    x, y = torch.randn(4, 2), torch.randn(4)
    guide = called(make, regression, x, y)
    predictive, buffer = Predictive(regression, guide=guide, num_samples=3), io.BytesIO()
    traced = torch.jit.trace_module(predictive, {"call": (x,)}, check_trace=False)
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    assert len(torch.jit.load(buffer).call(x)) == len(predictive(x))


@parts
def test_a_pickled_guide_draws_the_same(make: Maker) -> None:
    guide = called(make)
    twins = [copy.deepcopy(guide)]
    pyro.set_rng_seed(3)
    draw = guide.get_posterior().sample()
    pyro.clear_param_store()
    if isinstance(make, Case):  # parameters in Pyro's store cannot be pickled from Pyro's own guides
        twins.append(pickle.loads(pickle.dumps(guide)))
    for twin in twins:
        pyro.set_rng_seed(3)
        assert torch.equal(twin.get_posterior().sample(), draw)


@guides
def test_the_param_store_saves_and_loads(make: Maker, tmp_path: Path) -> None:
    guide, path, store = called(make), str(tmp_path / "store.pt"), pyro.get_param_store()
    before = {name: value.detach().clone() for name, value in store.items()}
    store.save(path)
    SVI(three_supports, guide, Adam({"lr": 0.1}), Trace_ELBO()).step()
    assert any(not torch.equal(before[name], value) for name, value in store.items())
    pyro.clear_param_store()
    store.load(path)
    guide()
    for name, value in store.items():
        torch.testing.assert_close(value.detach(), before[name])


@guides
@pytest.mark.parametrize("local", [False, True])
def test_parameters_in_the_store_and_out_of_it_train_alike(make: Maker, local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        guide = called(make, pairs)
        assert bool(pyro.get_param_store().keys()) is not local
        before = [param.detach().clone() for param in guide.parameters()]
        optimizer = torch.optim.Adam(guide.parameters(), lr=1e-2)
        Trace_ELBO()(pairs, guide)(PAIRS).backward()
        optimizer.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, guide.parameters()))


@guides
def test_a_guide_changes_precision(make: Maker) -> None:
    guide = called(make)
    guide.float()
    assert {param.dtype for param in guide.parameters()} == {torch.float32}
    guide.to(torch.float64)
    guide()
    assert {param.dtype for param in guide.parameters()} == {torch.float64}
    assert {value.dtype for value in guide().values()} == {torch.float64}


# ---- lists and other guides ---------------------------------------------------------------------------------


@parts
@pytest.mark.parametrize("elbo", ["Trace", "TraceEnum"])
def test_lists_with_pyros_guides_train(make: Maker, elbo: str) -> None:
    guide = AutoGuideList(three_supports)
    guide.append(AutoNormal(poutine.block(three_supports, expose=["x"])))
    guide.append(make(poutine.block(three_supports, expose=["y"])))
    guide.last = AutoDelta(poutine.block(three_supports, expose=["z"]))
    svi = SVI(three_supports, guide, Adam({"lr": 1e-2}), ELBOS[elbo]())
    assert torch.tensor([svi.step() for _ in range(5)]).isfinite().all()
    assert set(guide()) == set(guide.median()) == {"x", "y", "z"}
    assert all(part.master() is guide for part in guide.children())
    torch.testing.assert_close(guide.last.median()["z"], guide()["z"].detach())


@parts
def test_quantiles_of_a_list(make: Maker) -> None:
    guide = AutoGuideList(three_supports)
    guide.append(AutoNormal(poutine.block(three_supports, expose=["x"])))
    guide.append(make(poutine.block(three_supports, hide=["x"])))
    guide()
    quantiles = guide.quantiles([0.25, 0.5])
    assert {name: value.shape for name, value in quantiles.items()} == {"x": (2,), "y": (2, 2), "z": (2, 2)}


@parts
def test_a_guide_inside_an_easy_guide(make: Maker) -> None:
    inner = make(poutine.block(three_supports, hide=["x"]))

    class Outer(EasyGuide):  # type: ignore[misc]
        def guide(self) -> None:
            pyro.sample("x", dist.Normal(pyro.param("x_loc", torch.tensor(0.5)), 1.0))
            inner()

    svi = SVI(three_supports, Outer(three_supports), Adam({"lr": 1e-2}), Trace_ELBO())
    assert torch.tensor([svi.step() for _ in range(3)]).isfinite().all()


# ---- handlers and programs ----------------------------------------------------------------------------------


@guides
def test_predictive_has_every_site(make: Maker) -> None:
    x, y = torch.randn(4, 2), torch.randn(4)
    guide = called(make, regression, x, y)
    draws = Predictive(regression, guide=guide, num_samples=6, return_sites=("weight", "y"))(torch.randn(5, 2))
    assert draws["weight"].squeeze().shape == (6, 2)
    assert draws["y"].shape == (6, 5)


@guides
def test_importance_sampling_at_the_exact_posterior_has_equal_weights(make: Maker) -> None:
    guide = make(pairs, init_loc_fn=lambda site: PAIRS / 2, init_scale=0.5**0.5)
    guide(PAIRS)
    weights = torch.stack(Importance(pairs, guide, 5).run(PAIRS).log_weights)
    torch.testing.assert_close(weights, torch.full_like(weights, PAIRS_EVIDENCE))


@guides
def test_handlers_see_through_a_guide(make: Maker) -> None:
    guide = called(make)
    trace = poutine.trace(guide).get_trace()
    again = poutine.trace(poutine.replay(guide, trace)).get_trace()
    assert all(torch.equal(again.nodes[n]["value"], trace.nodes[n]["value"]) for n in ("x", "y", "z"))
    blocked = poutine.trace(poutine.block(guide, hide=[f"_{make.name}_latent"])).get_trace()
    assert {"x", "y", "z"} <= set(blocked.nodes)
    assert f"_{make.name}_latent" not in blocked.nodes


@guides
def test_reparametrised_models(make: Maker) -> None:
    @poutine.reparam(config={"z": LocScaleReparam(0.3)})  # type: ignore[misc]
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("unit", 3):
            z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.deterministic("total", z.sum())
        pyro.factor("pull", -(z**2).sum())

    guide = called(make, model)
    assert "z_decentered" in guide()
    svi = SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO())
    assert torch.tensor([svi.step() for _ in range(3)]).isfinite().all()


@guides
def test_observed_data_may_be_subsampled(make: Maker) -> None:
    if make.needs_model:
        pytest.skip("an annealed guide needs the gradient of all the data, and refuses a part of it")

    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("row", len(data), subsample_size=2):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=pyro.subsample(data, event_dim=0))

    svi = SVI(model, make(model), Adam({"lr": 1e-2}), Trace_ELBO())
    assert torch.tensor([svi.step(torch.randn(6)) for _ in range(3)]).isfinite().all()
