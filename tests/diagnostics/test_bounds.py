import math

import pytest
import torch

from pyro_nflows import flows
from pyro_nflows.diagnostics.bounds import elbo_bounds
from pyro_nflows.layers import Coupling, Indexed


def log_normal(z):
    return -0.5 * z.square().sum(-1) - math.log(2 * math.pi)


def wild(layer, scale=0.5):
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(scale * torch.randn_like(p))
    return layer


@pytest.mark.parametrize("num_samples", [1, 4, 32])
@pytest.mark.parametrize("index_dim", [1, 2])
def test_the_bounds_come_in_their_order(index_dim, num_samples):
    layer = wild(Indexed(Coupling(2), index_dim))
    auxiliary, lower, estimate = elbo_bounds(log_normal, layer, num_samples, 4000)
    noise = 5 * (lower.se + estimate.se)
    assert auxiliary.value <= lower.value + noise
    assert lower.value <= estimate.value + noise


def test_the_bounds_close_in_on_the_elbo_as_samples_are_added():
    layer = wild(Indexed(Coupling(2)))
    few, many = (elbo_bounds(log_normal, layer, m, 4000) for m in (1, 200))
    assert many.estimate.value - many.lower.value < 0.1 * (few.estimate.value - few.lower.value)


def test_the_three_are_one_for_an_exact_flow():
    layer = wild(flows.realnvp(2, 2))
    auxiliary, lower, estimate = elbo_bounds(log_normal, layer, 3, 100)
    assert float(lower.value) == pytest.approx(float(auxiliary.value), abs=1e-9)
    assert float(estimate.value) == pytest.approx(float(auxiliary.value), abs=1e-9)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="num_inner must be a positive integer, got 0"):
        elbo_bounds(log_normal, Coupling(2), num_inner=0)
