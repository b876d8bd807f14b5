"""ELBO and IWAE at work: in SVI and with torch optimisers, on flow guides and on any other of Pyro's."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_nflows import ELBO, IWAE, AutoFlow, AutoIAF, AutoNICE
from pyro_nflows.inference.elbo import Gradient, GradientWarning
from pyro_nflows.layers import LocScale
from pyro_nflows.layers.base import Exactness, Layer
from tests.guide_registry import Case, cases, exact_pairs
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs

# ---- any guide of Pyro's ------------------------------------------------------------------------------------


def two_parts() -> None:
    x = pyro.sample("x", dist.Normal(1.0, 2.0))
    with pyro.plate("unit", 3):
        y = pyro.sample("y", dist.LogNormal(x, 1.0))
        pyro.sample("data", dist.Normal(y, 1.0), obs=torch.tensor([1.0, 2.0, 0.5]))


def custom() -> None:
    loc = pyro.param("loc", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
    x = pyro.sample("x", dist.Normal(loc, scale))
    with pyro.plate("unit", 3):
        pyro.sample("y", dist.LogNormal(0.1 * x, scale))


def with_a_flow_inside() -> AutoGuideList:
    guide = AutoGuideList(two_parts)
    guide.append(AutoIAF(poutine.block(two_parts, expose=["y"]), 2, (4,)))
    guide.append(AutoNormal(poutine.block(two_parts, hide=["y"])))
    return guide


GENERIC: dict[str, Callable[[], Any]] = {
    "AutoNormal": lambda: AutoNormal(two_parts),
    "AutoMultivariateNormal": lambda: AutoMultivariateNormal(two_parts),
    "AutoDelta": lambda: AutoDelta(two_parts),
    "function": lambda: custom,
    "list with a flow inside": with_a_flow_inside,
}


def value_and_grads(objective: Any, guide: Any, seed: int) -> tuple[float, dict[str, Tensor]]:
    """Of all parameters in the store."""
    store = pyro.get_param_store()
    for param in store._params.values():
        param.grad = None
    pyro.set_rng_seed(seed)
    value = objective.loss_and_grads(two_parts, guide)
    return value, {name: param.grad.clone() for name, param in store._params.items()}


@pytest.mark.parametrize("name", GENERIC)
def test_any_guide_agrees_with_pyros_elbo(name: str) -> None:
    guide = GENERIC[name]()
    guide()
    for seed in range(3):
        value, grads = value_and_grads(ELBO(4), guide, seed)
        expected, expected_grads = value_and_grads(Trace_ELBO(num_particles=4), guide, seed)
        assert value == pytest.approx(expected)
        torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("name", GENERIC)
def test_iwae_of_any_guide_is_the_log_mean_weight(name: str) -> None:
    guide = GENERIC[name]()
    guide()
    pyro.set_rng_seed(3)
    singles = torch.tensor([-Trace_ELBO().loss(two_parts, guide) for _ in range(5)])
    pyro.set_rng_seed(3)
    assert -IWAE(5).loss(two_parts, guide) == pytest.approx(float(singles.logsumexp(0)) - math.log(5))


def test_a_mean_field_normal_at_the_posterior_is_exact() -> None:
    """Where all sites share a plate, too, unlike ``RenyiELBO``."""
    guide = AutoNormal(pairs, init_loc_fn=lambda site: PAIRS / 2, init_scale=0.5**0.5)
    for objective in (ELBO(1), ELBO(3), IWAE(1), IWAE(3)):
        assert objective.loss_and_grads(pairs, guide) == pytest.approx(-PAIRS_EVIDENCE, abs=1e-6)


@pytest.mark.parametrize("objective", [ELBO(2), IWAE(2)])
def test_score_function_guides_are_refused_by_name(objective: ELBO) -> None:
    def guide() -> None:
        loc = pyro.param("loc", torch.tensor(0.5))
        pyro.sample("x", dist.Normal(loc, 1.0).has_rsample_(False))
        with pyro.plate("unit", 3):
            pyro.sample("y", dist.LogNormal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"guide site 'x' \(Normal\) is not reparameterised.*Pyro's Trace_ELBO"):
        objective.loss_and_grads(two_parts, guide)


# ---- which gradient -----------------------------------------------------------------------------------------


def test_other_guides_fall_back_to_total_and_say_so_if_asked_for_more() -> None:
    guide = AutoNormal(pairs)
    assert ELBO(2).loss_and_grads(pairs, guide) < math.inf
    for objective in (ELBO(2, "path"), IWAE(2, "dreg")):
        with pytest.warns(GradientWarning, match=r"AutoNormal is not a flow guide.*using gradient='total'"):
            objective.loss_and_grads(pairs, guide)
        objective.loss_and_grads(pairs, guide)
        assert objective.gradient is Gradient.TOTAL


class Stochastic(Layer):
    """A layer with noise of its own and no word on path gradients."""

    exactness = Exactness.PROPER
    noise_dim = 1

    def __init__(self, dim: int):
        super().__init__(dim)
        self.size = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x + self.size * (noise if noise is not None else 0), x.new_zeros(x.shape[:-1])


def test_layers_without_a_path_gradient_fall_back_to_total_and_say_so() -> None:
    guide, objective = AutoFlow(pairs, Stochastic), ELBO(2)
    with pytest.warns(GradientWarning, match=r"Stochastic has no path gradient.*using gradient='total'"):
        objective.loss_and_grads(pairs, guide)
    assert objective.loss_and_grads(pairs, guide) < math.inf


class Roulette(LocScale):
    """Its log-weight is right in log space only."""

    exactness = Exactness.UNBIASED


def test_iwae_refuses_weights_that_are_right_in_log_space_only() -> None:
    guide = AutoFlow(pairs, Roulette)
    assert ELBO(2).loss_and_grads(pairs, guide) < math.inf
    with pytest.raises(ValueError, match=r"unbiased in log space only.*train on ELBO"):
        IWAE(2).loss_and_grads(pairs, guide)


# ---- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [ELBO(8), IWAE(8), ELBO(8, "total")])
def test_a_torch_optimiser_trains_through_the_loss(objective: ELBO) -> None:
    guide = AutoNICE(pairs, 2, (4,), init_scale=0.5)
    guide()
    loss = objective(pairs, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 150)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert ELBO(1000).loss(pairs, guide) == pytest.approx(-PAIRS_EVIDENCE, abs=0.05)


def test_models_with_params_train_in_the_same_loss() -> None:
    """The best variance of ``x`` given its mean is that of the data: maximum likelihood."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.tensor(0.0))

        def forward(self) -> None:
            pyro.module("model", self)
            with pyro.plate("unit", 4):
                z = pyro.sample("z", dist.Normal(0.0, self.log_scale.exp()))
                pyro.sample("x", dist.Normal(z, 0.1), obs=3 * PAIRS)

    model = Scaled()
    guide = AutoNICE(model, 2, (4,), init_loc_fn=lambda site: 3 * PAIRS)
    guide()
    loss = ELBO(8)(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    best = math.sqrt(9 * PAIRS.square().mean() - 0.01)
    assert float(model.log_scale.detach().exp()) == pytest.approx(best, rel=0.1)


@cases()
def test_svi_evaluates_and_steps(case: Case) -> None:
    guide = exact_pairs(case)
    svi = SVI(pairs, guide, Adam({"lr": 1e-3}), IWAE(4))
    assert svi.step() == pytest.approx(-PAIRS_EVIDENCE)
    assert svi.evaluate_loss() == pytest.approx(-PAIRS_EVIDENCE, abs=0.01)


def test_loss_needs_no_gradients_and_leaves_none() -> None:
    guide = AutoFlow(pairs)
    assert isinstance(ELBO(3).loss(pairs, guide), float)
    assert all(param.grad is None for param in guide.parameters())
    loss = ELBO(3).differentiable_loss(pairs, guide)
    assert loss.shape == ()
    assert loss.requires_grad


# ---- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_objective", [ELBO, IWAE])
@pytest.mark.parametrize("num_particles", [0, -1, 1.5, "3", True, None])
def test_num_particles_must_be_a_positive_integer(make_objective: Callable[..., ELBO], num_particles: Any) -> None:
    with pytest.raises(ValueError, match=r"num_particles must be a positive integer, got "):
        make_objective(num_particles)


@pytest.mark.parametrize(
    ("make_objective", "gradient", "allowed"),
    [
        (ELBO, "dreg", r"\['total', 'path'\]"),
        (ELBO, "stl", r"\['total', 'path'\]"),
        (IWAE, "stl", r"\['total', 'path', 'dreg'\]"),
        (IWAE, 3, r"\['total', 'path', 'dreg'\]"),
    ],
)
def test_unknown_gradients_are_refused(make_objective: Callable[..., ELBO], gradient: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"gradient must be one of {allowed}, got {gradient!r}"):
        make_objective(4, gradient)


def test_gradients_may_be_given_as_members() -> None:
    assert IWAE(4, Gradient.DREG).gradient is Gradient.DREG
