"""What the benchmark of hierarchies compares with: quadrature that covers the posterior."""

import pytest
import torch

from benchmarks import structure


@pytest.mark.parametrize("name", ["funnel_100", "groups_400"])
def test_quadrature_covers_the_posterior(name: str) -> None:
    """By another grid, of tau itself, with mu integrated out in closed form."""
    means = structure.case(name).means
    assert means is not None
    y, tau = means.double(), torch.linspace(0, 4, 40_001, dtype=torch.float64)[1:]
    total, num = tau**2 + 1, len(y)
    precision = num / total + 1 / 25
    square = y.square().sum() / total - (y.sum() / total) ** 2 / precision
    log_p = -0.5 * (num * total.log() + precision.log() + square) + torch.distributions.LogNormal(0.0, 1.0).log_prob(
        tau
    )
    weight, log_tau = log_p.softmax(0), tau.log()
    mean = float(weight @ log_tau)
    sd = float(weight @ (log_tau - mean) ** 2) ** 0.5
    assert structure.exact(means, 1.0)["tau"] == pytest.approx((mean, sd), rel=1e-4)


def test_a_grid_that_cuts_the_posterior_off_is_refused() -> None:
    with pytest.raises(ValueError, match="log tau has mass beyond the grid"):
        structure.grid(torch.linspace(-0.01, 0.01, 2000), 1.0)
