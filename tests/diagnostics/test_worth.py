"""How many independent draws weighted ones are worth, and which draws are chosen by their weights."""

import math

import pytest
import torch
from torch import Tensor

from pyro_nflows.diagnostics.resampling import is_resampled
from pyro_nflows.diagnostics.worth import effective, tail_index, worth_of_each

NUM = 4000


def tail(k: float) -> Tensor:
    """Weights with a Pareto tail on top of ones, so small that the ESS is above 90%."""
    p = (torch.arange(NUM, dtype=torch.float64) + 0.5) / NUM
    return (10 * (p / p[0]) ** -k).log1p()


def weighted(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws of a normal that is twice as wide as the posterior, a standard normal, in three latents."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(num, 3, dtype=torch.float64, generator=generator)
    return z, (z.square() / 4 - z.square()).sum(-1) / 2


def test_equal_weights_are_worth_their_number() -> None:
    z = weighted(NUM, 0)[0]
    torch.testing.assert_close(worth_of_each(torch.zeros(NUM), z), torch.full((3,), NUM, dtype=torch.float64))
    assert (worth_of_each(torch.zeros(NUM), torch.zeros(NUM, 2)) == math.inf).all()  # nothing varies


def test_the_worth_is_that_of_the_errors_of_means_and_standard_deviations() -> None:
    """Over 400 repetitions, the spread of both is what so many independent draws would leave."""
    means, deviations, worth = list[Tensor](), list[Tensor](), list[float]()
    for seed in range(400):
        z, log_weight = weighted(2000, seed)
        weight = log_weight.softmax(0)[:, None]
        mean = (weight * z).sum(0)
        means.append(mean)
        deviations.append((weight * (z - mean).square()).sum(0).sqrt())
        worth.append(float(worth_of_each(log_weight, z).min()))
    expected = sum(worth) / len(worth)
    found = min(float((1 / torch.stack(means).var(0)).min()), float((0.5 / torch.stack(deviations).var(0)).min()))
    assert found == pytest.approx(expected, rel=0.25)  # the least of six; the standard error of a variance is 7%


def test_a_latent_whose_far_draws_have_the_weight_is_worth_least() -> None:
    z = torch.randn(NUM, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_weight = torch.where(z[:, 270].abs() > 2.5, 3.0, 0.0)
    worth = worth_of_each(log_weight, z)
    assert int(worth.argmin()) == 270
    assert float(worth[270]) < 0.8 * effective(log_weight) * NUM < float(worth.median())


@pytest.mark.parametrize(("k", "chosen"), [(0.5, True), (0.85, True), (1.2, False)])
def test_draws_are_resampled_up_to_a_k_hat_of_one_where_few_are_lost(k: float, chosen: bool) -> None:
    log_weight = tail(k)
    assert effective(log_weight) > 0.9
    assert abs(tail_index(log_weight) - k) < 0.15
    assert is_resampled(log_weight) == chosen
    assert not is_resampled(torch.cat([log_weight - 8, log_weight[:400]])) or k < 0.7  # an ESS of a tenth


def test_resampling_widens_a_tail_that_the_guide_has_too_thin() -> None:
    """An exponential whose draws from 3.5 on have a rate of 4.3: k is 1 - 1 / 4.3, and the ESS is about 80%."""
    p = (torch.arange(22_500, dtype=torch.float64) + 0.5) / 22_500
    head = 1 - math.exp(-3.5)
    p = p * (head + math.exp(-3.5) / 4.3)
    beyond = -(1 - ((p - head) * 4.3 * math.exp(3.5)).clamp(0, 1 - 1e-12)).log() / 4.3
    z = torch.where(p < head, -torch.log1p(-p.clamp(max=head)), 3.5 + beyond)
    weight = (3.3 * (z - 3.5).clamp(min=0)).softmax(0)
    sd = float((weight * (z - (weight * z).sum()).square()).sum().sqrt())
    assert abs(sd - 1) < 0.6 * abs(float(z.std()) - 1)
