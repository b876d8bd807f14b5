"""Flow guides among Pyro's own parts: SVI, its ELBOs and handlers, Predictive, guide lists and NeuTra."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoCallable, AutoDelta, AutoDiscreteParallel, AutoGuideList, AutoNormal
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam
from pyro.ops.indexing import Vindex
from pyro.optim import Adam
from torch import Tensor

from pyro_nflows import AutoFlow
from tests.guide_registry import Case, cases, exact_pairs, moved
from tests.models import PAIRS, PAIRS_EVIDENCE, one_of_each, pairs, pairs_without_plate

pytestmark = pytest.mark.on_devices

STOCK = [
    Trace_ELBO,
    TraceMeanField_ELBO,
    TraceGraph_ELBO,
    lambda **kwargs: TraceEnum_ELBO(strict_enumeration_warning=False, **kwargs),
]
STOCK_NAMES = ["Trace", "TraceMeanField", "TraceGraph", "TraceEnum"]
stock_elbos = pytest.mark.parametrize("make_elbo", STOCK, ids=STOCK_NAMES)


@cases()
@stock_elbos
@pytest.mark.parametrize("particles", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
def test_stock_elbos_give_the_exact_evidence_at_the_exact_posterior(
    case: Case, make_elbo: Callable[..., Any], particles: dict[str, Any]
) -> None:
    guide = exact_pairs(case)
    svi = SVI(pairs, guide, Adam({"lr": 1e-3}), make_elbo(max_plate_nesting=1, **particles))
    assert svi.evaluate_loss() == pytest.approx(-PAIRS_EVIDENCE, abs=1e-9)
    assert svi.step() == pytest.approx(-PAIRS_EVIDENCE, abs=1e-9)


@cases()
@pytest.mark.parametrize("vectorized", [False, True])
def test_renyi_elbo_is_exact_where_sites_share_no_plate(case: Case, vectorized: bool) -> None:
    guide = exact_pairs(case, pairs_without_plate)
    elbo = RenyiELBO(alpha=0, num_particles=3, vectorize_particles=vectorized, max_plate_nesting=0)
    assert SVI(pairs_without_plate, guide, Adam({"lr": 1e-3}), elbo).step() == pytest.approx(-PAIRS_EVIDENCE, abs=1e-9)


@cases()
def test_sequential_and_vectorised_particles_agree_in_expectation(case: Case) -> None:
    guide = case(pairs)
    guide()
    moved(guide)
    means, variances = [], []
    for vectorized, num_particles, repeats in ((False, 1, 100), (True, 50, 20)):
        elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=vectorized, max_plate_nesting=1)
        losses = torch.tensor([elbo.loss(pairs, guide) for _ in range(repeats)])
        means.append(losses.mean())
        variances.append(losses.var() / len(losses))
    assert abs(means[0] - means[1]) < 5 * sum(variances) ** 0.5


# ---- discrete latents ---------------------------------------------------------------------------------------


@config_enumerate
def mixture(y: Tensor = PAIRS) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("unit", len(y)):
        label = pyro.sample("label", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(Vindex(locs)[..., label], 1.0), obs=y)


def summed_mixture(y: Tensor = PAIRS) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    labels, laws = dist.Categorical(weights), dist.Normal(locs, 1.0)
    with pyro.plate("unit", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(labels, laws), obs=y)


@cases()
@pytest.mark.parametrize("guided", [mixture, poutine.block(mixture, hide=["label"])], ids=["bare", "blocked"])
@pytest.mark.parametrize("vectorized", [False, True])
def test_enumerated_latents_are_summed_out(case: Case, guided: Callable[..., Any], vectorized: bool) -> None:
    if case.needs_model and guided is not mixture:
        pytest.skip("to such a guide the labels must not be hidden")
    guide = case(guided)
    guide()
    assert guide.latent_names == ["weights", "locs"]
    kwargs: dict[str, Any] = {"num_particles": 2, "vectorize_particles": vectorized, "max_plate_nesting": 1}
    pyro.set_rng_seed(3)
    loss = TraceEnum_ELBO(**kwargs).loss_and_grads(mixture, guide)
    pyro.set_rng_seed(3)
    assert loss == pytest.approx(Trace_ELBO(**kwargs).loss(summed_mixture, guide))


@cases(needs_model=False)
def test_a_discrete_guide_may_stand_beside(case: Case) -> None:
    guide = AutoGuideList(mixture)
    guide.append(case(poutine.block(mixture, hide=["label"])))
    guide.append(AutoDiscreteParallel(poutine.block(mixture, expose=["label"])))
    assert TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(mixture, guide) > 0


# ---- Predictive ---------------------------------------------------------------------------------------------


@cases()
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(case: Case, parallel: bool) -> None:
    guide = case(one_of_each)
    guide()
    predictive = Predictive(one_of_each, guide=guide, num_samples=6, parallel=parallel, return_sites=None)
    samples = predictive()
    prior = Predictive(one_of_each, num_samples=6, parallel=parallel)()
    for name in guide.latent_names:
        assert samples[name].squeeze().shape == prior[name].squeeze().shape
        assert len(samples[name].unique(dim=0)) == 6


@cases()
def test_parallel_predictive_has_the_law_of_the_guide(case: Case) -> None:
    guide = exact_pairs(case)
    guide()
    z = Predictive(pairs, guide=guide, num_samples=2000, parallel=True, return_sites=["z"])()["z"]
    assert ((z.mean(0) - PAIRS / 2).abs() < 5 * (0.5 / 2000) ** 0.5).all()
    assert ((z.var(0) - 0.5).abs() < 5 * 0.5 * (2 / 2000) ** 0.5).all()


@cases()
def test_weighed_predictive(case: Case) -> None:
    guide = exact_pairs(case)
    guide()
    result = pyro.infer.WeighedPredictive(pairs, guide=guide, num_samples=5, parallel=True)(model_guide=pairs)
    torch.testing.assert_close(result.log_weights, torch.full((5,), PAIRS_EVIDENCE))


# ---- guides of guides ---------------------------------------------------------------------------------------


def two_parts() -> None:
    x = pyro.sample("x", dist.Normal(1.0, 0.1))
    with pyro.plate("unit", 2):
        pyro.sample("y", dist.Normal(x, 0.1))


def custom_x() -> dict[str, Tensor]:
    loc = pyro.param("x_loc", torch.tensor(1.0))
    return {"x": pyro.sample("x", dist.Normal(loc, 0.1))}


OTHERS: dict[str, Callable[[], Any]] = {
    "delta": lambda: AutoDelta(poutine.block(two_parts, expose=["x"])),
    "normal": lambda: AutoNormal(poutine.block(two_parts, expose=["x"])),
    "function": lambda: custom_x,
    "callable": lambda: AutoCallable(two_parts, custom_x, lambda: {"x": pyro.param("x_loc")}),
}


@cases(needs_model=False)
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.filterwarnings("ignore:.*TraceMeanField_ELBO:UserWarning")
def test_guide_lists(case: Case, other: str) -> None:
    guide = AutoGuideList(two_parts)
    guide.append(OTHERS[other]())
    guide.append(case(poutine.block(two_parts, hide=["x"])))
    assert set(guide()) == {"x", "y"}
    for make_elbo in STOCK:
        SVI(two_parts, guide, Adam({"lr": 1e-3}), make_elbo()).step()
    if other != "function":
        assert set(guide.median()) == {"x", "y"}


@cases(needs_model=False)
def test_two_of_a_kind_in_a_list(case: Case) -> None:
    guide = AutoGuideList(two_parts)
    guide.append(case(poutine.block(two_parts, expose=["x"])))
    guide.append(case(poutine.block(two_parts, expose=["y"])))
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True)
    svi = SVI(two_parts, guide, Adam({"lr": 1e-3}), elbo)
    for _ in range(2):
        svi.step()
    assert {k: v.shape for k, v in guide.quantiles([0.1, 0.5]).items()} == {"x": (2,), "y": (2, 2)}
    trace = poutine.trace(guide).get_trace()
    assert {"_AutoGuideList.0_latent", "_AutoGuideList.1_latent"} <= set(trace.nodes)
    assert {name.split(".layer$$$")[0] for name in trace.param_nodes} == {"AutoGuideList.0", "AutoGuideList.1"}


@cases(needs_model=False)
@stock_elbos
def test_nested_guide_lists(case: Case, make_elbo: Callable[..., Any]) -> None:
    guide, inner = AutoGuideList(two_parts), AutoGuideList(poutine.block(two_parts, expose=["y"]))
    guide.append(AutoDelta(poutine.block(two_parts, expose=["x"])))
    inner.flow = case(poutine.block(two_parts, expose=["y"]))
    guide.append(inner)
    assert inner.flow.master() is guide
    SVI(two_parts, guide, Adam({"lr": 1e-3}), make_elbo()).step()
    trace = poutine.trace(guide).get_trace()
    assert "_AutoGuideList.1.flow_latent" in trace.nodes
    assert all(name.startswith(("AutoGuideList.0.", "AutoGuideList.1.flow.")) for name in trace.param_nodes)


# ---- handlers -----------------------------------------------------------------------------------------------


@cases()
def test_the_latent_is_auxiliary_and_carries_the_density(case: Case) -> None:
    guide = case(one_of_each)
    guide_trace = poutine.trace(guide).get_trace()
    model_trace = poutine.trace(poutine.replay(one_of_each, guide_trace)).get_trace()
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
    latent = guide_trace.nodes[f"_{case.name}_latent"]
    assert latent["infer"] == {"is_auxiliary": True}
    assert latent["log_prob_sum"] != 0
    assert f"_{case.name}_latent" not in model_trace.nodes
    for name in guide.latent_names:
        assert torch.equal(model_trace.nodes[name]["value"], guide_trace.nodes[name]["value"])
        assert (guide_trace.nodes[name]["log_prob_sum"] == 0) == (name in ("real", "vector"))  # no Jacobian


@cases()
def test_replay_and_condition_repeat_a_draw(case: Case) -> None:
    guide = case(pairs)
    first = poutine.trace(guide).get_trace()
    z = first.nodes["z"]["value"]
    assert torch.equal(poutine.replay(guide, trace=first)()["z"], z)
    latent = {f"_{case.name}_latent": z + 1}
    torch.testing.assert_close(pyro.condition(guide, data=latent)()["z"], z + 1)


@cases()
def test_a_guide_of_a_conditioned_model(case: Case) -> None:
    model = poutine.condition(two_parts, {"x": torch.tensor(0.7)})
    guide = case(model)
    SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step()
    assert guide.latent_names == ["y"]


@cases()
def test_scale_and_mask(case: Case) -> None:
    guide = case(pairs)
    guide()
    log_probs = []
    for handler in (poutine.scale(scale=1.0), poutine.scale(scale=0.5), poutine.mask(mask=False)):
        pyro.set_rng_seed(0)
        log_probs.append(poutine.trace(handler(guide)).get_trace().log_prob_sum())
    torch.testing.assert_close(log_probs[1], log_probs[0] / 2)
    assert log_probs[2] == 0


@cases()
def test_log_density_is_not_computed_where_it_is_masked_out(case: Case) -> None:
    with poutine.mask(mask=False):
        trace = poutine.trace(case(one_of_each)).get_trace()
    assert all(trace.nodes[name]["fn"].log_density == 0 for name in ("positive", "simplex", "cholesky"))


# ---- neural transport ---------------------------------------------------------------------------------------


@cases(bijective=True)
@pytest.mark.parametrize("model", [one_of_each, pairs_without_plate])
def test_neutra_transports_the_log_joint(case: Case, model: Callable[..., None]) -> None:
    guide = case(model)
    guide()
    moved(guide, 0.1)
    neutra = NeuTraReparam(guide)
    _, potential, transforms, _ = initialize_model(model)
    start, transported, _, _ = initialize_model(neutra.reparam(model))
    (latent,) = start.values()
    values = neutra.transform_sample(latent)
    unconstrained = {name: transforms[name](value) for name, value in values.items()}
    transform = guide.get_transform()
    log_det = transform.log_abs_det_jacobian(latent, transform(latent))
    torch.testing.assert_close(transported(start), potential(unconstrained) - log_det)


def funnel(dim: int) -> None:
    y = pyro.sample("y", dist.Normal(0.0, 3.0))
    with pyro.plate("row", dim):
        pyro.sample("x", dist.Normal(0.0, torch.exp(y / 2)))


@cases(bijective=True)
def test_transforms_of_the_posterior_are_the_whole_way_to_the_sites(case: Case) -> None:
    """In coordinates that the prior informs, too: what is sampled in the base's coordinates needs its Jacobian."""
    guide = case(funnel)
    guide(3)
    moved(guide, 0.1)
    neutra = NeuTraReparam(guide)
    _, potential, _, _ = initialize_model(funnel, model_kwargs={"dim": 3})
    start, transported, _, _ = initialize_model(neutra.reparam(funnel), model_kwargs={"dim": 3})
    (latent,) = start.values()
    (transform,) = guide.get_posterior(3).transforms
    log_det = transform.log_abs_det_jacobian(latent, transform(latent))
    torch.testing.assert_close(transported(start), potential(neutra.transform_sample(latent)) - log_det)


@cases(bijective=True)
def test_neutra_runs_under_nuts(case: Case) -> None:
    guide = case(two_parts)
    guide()
    neutra = NeuTraReparam(guide)
    mcmc = MCMC(NUTS(neutra.reparam(two_parts), max_tree_depth=3), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    samples = neutra.transform_sample(mcmc.get_samples()["x_shared_latent"].unsqueeze(-2))
    assert {name: value.shape for name, value in samples.items()} == {"x": (5, 1), "y": (5, 2)}


def test_neutra_is_refused_where_a_scale_would_count_the_log_determinant_too() -> None:
    guide = AutoFlow(two_parts)
    guide()
    with pytest.raises(ValueError, match=r"log-determinant 0\.5 times, because poutine\.scale is around"):
        NeuTraReparam(guide).reparam(poutine.scale(two_parts, 0.5))()
    guide.get_transform()


@cases(bijective=True)
def test_neutra_is_refused_where_pyro_would_be_silently_wrong(case: Case) -> None:
    guide = case(pairs)
    guide()
    with pytest.raises(ValueError, match=r"log-determinant 4 times, once for each row of plate 'unit'"):
        NeuTraReparam(guide).reparam(pairs)()
    guide.get_transform()


@cases(bijective=False)
def test_neutra_refuses_flows_with_auxiliary_variables(case: Case) -> None:
    guide = case(two_parts)
    guide()
    with pytest.raises(NotImplementedError, match=rf"{case.name} is not a bijection of x alone.*such as AutoFlow"):
        guide.get_transform()
    with pytest.raises(ValueError, match="NeuTraReparam only supports guides that implement"):
        NeuTraReparam(guide).reparam(two_parts)()
