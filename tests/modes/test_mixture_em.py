"""Mixtures of Gaussians fitted to draws: how many components, and their density."""

import math

import pytest
import torch

from pyro_nflows.modes.mixture_em import criterion, fit_clusters, log_densities


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_as_many_as_there_are(seed: int) -> None:
    torch.manual_seed(seed)
    means = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    draws = means[torch.randint(3, (1500,))] + torch.randn(1500, 2, dtype=torch.float64)
    found = fit_clusters(draws)
    assert len(found.weights) == 3
    torch.testing.assert_close(found.weights.sort().values, torch.full((3,), 1 / 3).double(), atol=0.06, rtol=0)
    order = torch.cdist(means, found.locs).argmin(-1)
    torch.testing.assert_close(found.locs[order], means, atol=0.25, rtol=0)


def test_one_cluster_is_the_maximum_likelihood_gaussian() -> None:
    torch.manual_seed(0)
    draws = torch.randn(500, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    found = fit_clusters(draws, max_components=1)
    torch.testing.assert_close(found.locs[0], draws.mean(0))
    covariance = found.scale_trils[0] @ found.scale_trils[0].T
    torch.testing.assert_close(covariance, torch.cov(draws.T, correction=0), rtol=1e-4, atol=1e-5)
    normal = torch.distributions.MultivariateNormal(found.locs[0], scale_tril=found.scale_trils[0])
    torch.testing.assert_close(log_densities(draws, found)[:, 0], normal.log_prob(draws))
    price = 0.5 * 10 * math.log(500)
    assert criterion(draws, found) == pytest.approx(float(normal.log_prob(draws).sum()) - price)


@pytest.mark.parametrize(("dim", "num"), [(13, 512), (40, 600)])
def test_few_draws_in_many_dimensions_show_two_classes_that_change_places(dim: int, num: int) -> None:
    """Too few for two covariances; one cluster stays one."""
    torch.manual_seed(0)
    turn = torch.randn(dim, dim, dtype=torch.float64) / dim**0.5
    draws = torch.randn(num, dim, dtype=torch.float64) @ turn
    assert len(fit_clusters(draws).weights) == 1
    away = torch.zeros(dim, dtype=torch.float64).index_fill(0, torch.arange(dim // 2), 8.0)
    is_there = torch.rand(num) < 0.3
    found = fit_clusters(draws + torch.where(is_there[:, None], away, 0.0))
    assert len(found.weights) == 2
    assert float(found.weights.min()) == pytest.approx(float(is_there.double().mean()), abs=0.01)
