"""Each flow guide learns a correlated Gaussian: the exact ELBO is zero, and a mean-field guide stops short of it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_registry import CASES, Case, Training
from pyro.infer import SVI
from pyro.optim import ClippedAdam

from pyro_nflows import ELBO, AutoIAF, AutoRadial
from pyro_nflows.guides import AutoFlow

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
    """Adam with a step size that falls to zero, in plain torch."""
    guide()
    loss = ELBO(num_particles)(correlated, guide)
    optimizer = torch.optim.Adam(guide.parameters(), lr=rate)
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
    optimizer = ClippedAdam({"lr": 4e-2, "lrd": 0.98})
    svi = SVI(correlated, guide, optimizer, ELBO(16))
    losses = [svi.step() for _ in range(150)]
    assert elbo_of(guide) > -0.02
    assert losses[-1] < losses[0]
