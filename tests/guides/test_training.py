"""Each flow guide learns a correlated Gaussian: the exact ELBO is zero, and a mean-field guide stops short of it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import init_to_feasible
from pyro.optim import ClippedAdam

from pyro_nflows import ELBO, AutoIAF, AutoRadial
from pyro_nflows.guides import AutoFlow
from tests.guide_registry import CASES, Case, Training, cases

DIM, CORRELATION = 4, 0.7


def correlated() -> None:
    covariance = torch.full((DIM, DIM), CORRELATION) + (1 - CORRELATION) * torch.eye(DIM)
    pyro.sample("z", dist.MultivariateNormal(torch.zeros(DIM), covariance))


def mean_field_gap() -> float:
    """How far below zero the best product of Gaussians is."""
    covariance = torch.full((DIM, DIM), CORRELATION) + (1 - CORRELATION) * torch.eye(DIM)
    precision = torch.linalg.inv(covariance)
    return 0.5 * float(precision.diagonal().log().sum() + torch.logdet(covariance))


def train(guide: AutoFlow, num_steps: int, rate: float, num_particles: int = 16) -> None:
    """Adam with a step size that falls to zero, in plain torch, and steps of the flow's own units."""
    guide()
    assert guide.layer is not None
    loss, factors = ELBO(num_particles)(correlated, guide), guide.layer.factors
    named = guide.layer.layer.named_parameters()
    optimizer = torch.optim.Adam([{"params": [p], "lr": rate / factors[name]} for name, p in named])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def elbo_of(guide: AutoFlow) -> float:
    return -ELBO(20_000).loss(correlated, guide)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] * c.training.slow) for c in CASES]
)
def test_every_guide_reaches_the_exact_elbo(case: Case) -> None:
    plan: Training = case.training
    guide = case.guide(correlated, **plan.sizes, init_scale=0.5)
    train(guide, plan.num_steps, plan.rate)
    assert -plan.gap < elbo_of(guide) < 0.01


def test_radial_layers_soon_beat_a_mean_field() -> None:
    """They bend space around points, so they approach a correlation slowly, layer by layer, but without a limit."""
    guide = AutoRadial(correlated, num_layers=8, init_scale=0.5)
    train(guide, 300, 5e-2)
    assert elbo_of(guide) > 0.05 - mean_field_gap()


def test_svi_trains_as_well() -> None:
    guide = AutoIAF(correlated, 2, (8,), init_scale=0.5)
    optimizer = ClippedAdam({"lr": 5e-2, "lrd": 0.1 ** (1 / 500)})
    svi = SVI(correlated, guide, optimizer, ELBO(16))
    losses = [svi.step() for _ in range(500)]
    assert elbo_of(guide) > -0.02
    assert losses[-1] < losses[0]


def three_supports() -> None:
    pyro.sample("real", dist.Normal(0.0, 1.0))
    pyro.sample("positive", dist.LogNormal(0.0, 1.0))
    pyro.sample("unit", dist.Beta(2.0, 2.0))


@cases()
def test_medians_and_quantiles_after_a_short_svi_with_pyros_elbo(case: Case) -> None:
    guide = case(three_supports, init_scale=0.5, init_loc_fn=init_to_feasible)
    elbo = Trace_ELBO(num_particles=30, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(three_supports, guide, ClippedAdam({"lr": 0.02, "lrd": 0.98}), elbo)
    for _ in range(80):
        svi.step()
    quantiles = {name: value.tolist() for name, value in guide.quantiles([0.1, 0.5, 0.9]).items()}
    assert quantiles["real"] == pytest.approx([-1.28, 0.0, 1.28], abs=0.4)
    assert quantiles["positive"] == pytest.approx([0.28, 1.0, 3.6], rel=0.4)
    assert quantiles["unit"] == pytest.approx([0.2, 0.5, 0.8], abs=0.12)
