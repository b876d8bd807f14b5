"""What can be asked of a flow guide: medians, quantiles, densities, the posterior itself; and its names."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, init_to_value
from torch import Tensor, nn
from torch.distributions import TransformedDistribution, biject_to

import pyro_nflows
from pyro_nflows import AutoCIF, FlowDistribution, flows
from pyro_nflows.layers.base import Exactness
from tests.guide_registry import CASES, Case, cases, moved
from tests.models import one_of_each, pairs

pytestmark = pytest.mark.on_devices


def two_supports() -> None:
    pyro.sample("real", dist.Normal(1.0, 2.0))
    with pyro.plate("unit", 2):
        pyro.sample("positive", dist.LogNormal(0.0, 1.0))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))


VALUES = {"real": 0.3, "positive": [0.5, 2.0], "simplex": [0.2, 0.5, 0.3]}


def test_the_registry_has_every_guide() -> None:
    shipped = {name for name in pyro_nflows.__all__ if name.startswith("Auto")}
    assert {case.name for case in CASES} == shipped


# ---- medians and quantiles ----------------------------------------------------------------------------------


@cases()
def test_median_of_a_fresh_guide_is_where_it_starts(case: Case) -> None:
    values = {name: torch.tensor(value) for name, value in VALUES.items()}
    guide = case(two_supports, init_loc_fn=init_to_value(values=values))
    torch.testing.assert_close(guide.median(), values, rtol=1e-12, atol=1e-12)


@cases()
def test_median_is_the_middle_quantile(case: Case) -> None:
    guide = case(two_supports)
    guide()
    moved(guide)
    median, quantiles = guide.median(), guide.quantiles([0.1, 0.5, 0.9])
    for name, value in median.items():
        assert torch.equal(value, quantiles[name][1])
        assert torch.equal(value, guide.quantiles(0.5)[name])
        assert not value.requires_grad


@cases()
def test_quantiles_are_those_of_draws(case: Case) -> None:
    """Of sites whose constraint is element-wise; simplices have the image of unconstrained quantiles, as in Pyro."""
    guide = case(two_supports, init_scale=0.5)
    guide()
    moved(guide)
    levels, num_samples = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.95]), 20_000
    quantiles = guide.quantiles(levels)
    with torch.no_grad():
        draws = guide.constrain(guide.get_posterior().sample((num_samples,)))
    for name in ("real", "positive"):
        assert (quantiles[name].diff(dim=0) > 0).all()
        below = (draws[name] < quantiles[name].unsqueeze(1)).double().mean(1)
        level = levels.reshape(-1, *(1,) * (below.dim() - 1))
        # The 8,193 quasi-random points are no better than as many random ones where the flow is steep.
        error = (level * (1 - level) * (1 / num_samples + 1 / 8193)).sqrt()
        assert ((below - level).abs() < 5 * error).all()
    assert guide.prototype_trace.nodes["simplex"]["fn"].support.check(quantiles["simplex"]).all()


@cases()
def test_quantiles_have_a_leading_dimension_of_levels(case: Case) -> None:
    quantiles = case(one_of_each).quantiles([0.25, 0.5, 0.75])
    for name, value in case(one_of_each).median().items():
        assert quantiles[name].shape == (3, *value.shape)


# ---- densities ----------------------------------------------------------------------------------------------


@cases(bijective=True)
def test_log_prob_of_any_point_is_the_transformed_distributions(case: Case) -> None:
    guide = case(two_supports, init_scale=0.5)
    guide()
    moved(guide)
    z = torch.randn(7, guide.latent_dim)
    reference = TransformedDistribution(guide.get_base_dist(), guide.get_transform())
    torch.testing.assert_close(guide.get_posterior().log_prob(z), reference.log_prob(z))
    values = guide.constrain(z)
    log_det: Any = 0.0
    for name, part in guide.latents.unpack(z).items():
        support = guide.prototype_trace.nodes[name]["fn"].support
        step = biject_to(support).log_abs_det_jacobian(part, values[name])
        log_det = log_det + step.reshape(7, -1).sum(-1)
    torch.testing.assert_close(guide.log_prob(values), reference.log_prob(z) - log_det)
    one = {name: value[3] for name, value in values.items()}
    torch.testing.assert_close(guide.log_prob(one), guide.log_prob(values)[3])


@cases(bijective=True)
def test_log_prob_of_a_draw_is_that_of_its_trace(case: Case) -> None:
    guide = case(two_supports)
    guide()
    moved(guide)
    trace = poutine.trace(guide).get_trace()
    values = {name: trace.nodes[name]["value"] for name in guide.latent_names}
    torch.testing.assert_close(guide.log_prob(values), trace.log_prob_sum())


def small_cif(num: int) -> AutoCIF:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(num), 1.0).to_event(1))

    guide = AutoCIF(model, lambda dim: flows.realnvp(dim, 2, (4,)), hidden_dims=(4,), init_scale=1.0)
    guide()
    moved(guide, 0.5)
    return guide


def test_a_cif_bounds_its_density_from_both_sides() -> None:
    """Of a point, the estimate is low on average, less so with more indices; of a draw, high."""
    guide = small_cif(2)
    posterior = guide.get_posterior()
    with torch.no_grad():
        z = posterior.sample((4000,))
        drawn = posterior.log_prob(z)
        estimates = [guide.log_prob({"z": z}, num_samples=num) for num in (1, 4, 64, 256)]
    gaps = [high - low for low, high in zip(estimates, [*estimates[1:], drawn])]
    assert all(gap.mean() > -5 * gap.std() / len(z) ** 0.5 for gap in gaps)
    assert gaps[0].mean() > 5 * gaps[0].std() / len(z) ** 0.5
    assert gaps[3].mean() > 5 * gaps[3].std() / len(z) ** 0.5
    assert abs(gaps[2].mean()) < gaps[0].mean() / 5


def test_a_cif_estimate_is_unbiased_in_probability() -> None:
    """So its integral is one."""
    guide = small_cif(1)
    z = torch.linspace(-12, 12, 601).unsqueeze(-1)
    with torch.no_grad():
        densities = torch.stack([guide.log_prob({"z": z}, num_samples=20).exp() for _ in range(30)])
    integrals = torch.trapezoid(densities, z[:, 0])
    assert abs(integrals.mean() - 1) < 5 * integrals.std() / 30**0.5 + 1e-4


# ---- the posterior ------------------------------------------------------------------------------------------


@cases()
def test_get_posterior(case: Case) -> None:
    guide = case(two_supports)
    with pytest.raises(RuntimeError, match=r"call guide\(\*args\) once with the model's arguments"):
        guide.get_posterior()
    guide()
    posterior = guide.get_posterior()
    assert isinstance(posterior, FlowDistribution)
    assert posterior.event_shape == (guide.latent_dim,)
    assert posterior.layer.exactness is (Exactness.EXACT if case.bijective else Exactness.PROPER)
    draws = posterior.rsample((3, 2))
    assert draws.shape == (3, 2, guide.latent_dim)
    assert draws.requires_grad
    assert posterior.log_prob(draws).shape == (3, 2)
    assert guide.get_base_dist().event_shape == posterior.event_shape
    assert guide.sample_latent().shape == (guide.latent_dim,)


@cases(bijective=True)
def test_get_transform(case: Case) -> None:
    guide = case(two_supports)
    guide()
    moved(guide)
    transform, x = guide.get_transform(), torch.randn(5, guide.latent_dim)
    assert transform.bijective
    torch.testing.assert_close(transform.inv(transform(x)), x)


@cases()
def test_constrain_takes_rows_to_site_values(case: Case) -> None:
    guide = case(one_of_each)
    one = guide()
    values = guide.constrain(torch.randn(5, guide.latent_dim))
    assert {name: value.shape for name, value in values.items()} == {n: (5, *v.shape) for n, v in one.items()}


# ---- the contract -------------------------------------------------------------------------------------------


@cases()
def test_names(case: Case) -> None:
    guide = case(pairs)
    trace = poutine.trace(guide).get_trace()
    assert isinstance(guide, AutoContinuous)
    assert list(trace.stochastic_nodes) == [f"_{case.name}_latent", "unit", "z"]
    assert guide.latent_names == ["z"]
    assert all(name.startswith(f"{case.name}.layer$$$") for name in trace.param_nodes)
    assert len(trace.param_nodes) == len(list(guide.parameters()))
    assert case.name in repr(guide)


@cases()
def test_no_lambdas_are_stored(case: Case) -> None:
    """But for what the user gave: the model, and where to start."""

    def functions(module: nn.Module) -> list[str]:
        kept = {k: v for k, v in vars(module).items() if k not in ("_model", "_bare_model")}
        return [k for k, v in kept.items() if getattr(v, "__name__", "") == "<lambda>"]

    guide = case(two_supports)
    guide()
    assert [found for module in guide.modules() for found in functions(module)] == []


@cases()
def test_a_call_returns_all_sites(case: Case) -> None:
    guide = case(two_supports)
    assert list(guide()) == ["real", "positive", "simplex"]
    names, values = sorted(guide()), guide.call()
    assert [tuple(v.shape) for v in values] == [tuple(guide()[name].shape) for name in names]


@cases()
def test_gradients_reach_every_parameter(case: Case) -> None:
    guide = case(two_supports)
    guide()
    moved(guide)
    z = guide.sample_latent()
    loss: Tensor = z.square().sum() + poutine.trace(guide).get_trace().log_prob_sum()
    loss.backward()
    assert all(param.grad is not None and param.grad.isfinite().all() for param in guide.parameters())
