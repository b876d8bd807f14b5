"""P-values and bands of ranks: exact where that can be counted."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from pyro_nflows.diagnostics.ranks import count_band, ecdf_band, rank, symmetry, uniformity

LEVELS = torch.tensor([0.01, 0.05, 0.2, 0.5])


def within(share: Tensor, expected: Tensor, num: int) -> bool:
    """Whether shares of so many trials are at most the expected ones, up to five standard errors."""
    return bool((share <= expected + 5 * (expected * (1 - expected) / num).sqrt()).all())


def test_a_rank_counts_the_draws_below() -> None:
    draws, truth = torch.randn(50, 3, 2), torch.randn(3, 2)
    expected = torch.tensor([[int((draws[:, i, j] < truth[i, j]).sum()) for j in range(2)] for i in range(3)])
    assert torch.equal(rank(draws, truth), expected)


def test_the_rank_of_a_tie_is_uniform_among_the_equal() -> None:
    ranks = torch.stack([rank(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor(2.0)) for _ in range(3000)])
    counts = ranks.bincount(minlength=5)
    assert counts[[0, 4]].sum() == 0
    assert ((counts[1:4] / 3000 - 1 / 3).abs() < 5 * (2 / 9 / 3000) ** 0.5).all()


@pytest.mark.parametrize(("num", "num_samples"), [(3, 2), (4, 3), (6, 1)])
def test_the_p_value_of_uniformity_is_that_of_all_equally_likely_ranks(num: int, num_samples: int) -> None:
    def gamma(ranks: tuple[int, ...]) -> float:
        tails = []
        for j in range(1, num_samples + 1):
            share, below = j / (num_samples + 1), sum(r < j for r in ranks)
            pmf = [math.comb(num, c) * share**c * (1 - share) ** (num - c) for c in range(num + 1)]
            tails.append(min(1.0, 2 * min(sum(pmf[: below + 1]), sum(pmf[below:]))))
        return min(tails)

    everything = list(product(range(num_samples + 1), repeat=num))
    gammas = [gamma(ranks) for ranks in everything]
    for ranks, own in list(zip(everything, gammas))[::7]:
        expected = sum(g <= own * (1 + 1e-9) for g in gammas) / len(gammas)
        assert uniformity(torch.tensor(ranks), num_samples) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("num", "num_samples"), [(50, 9), (60, 49)])
def test_uniform_ranks_have_p_values_that_are_no_smaller_than_uniform(num: int, num_samples: int) -> None:
    p = torch.tensor([uniformity(torch.randint(num_samples + 1, (num,)), num_samples) for _ in range(300)])
    shares = (p[:, None] <= LEVELS).double().mean(0)
    assert within(shares, LEVELS, 300)
    assert shares[-1] > 0.3


def test_the_band_holds_uniform_ranks_as_often_as_it_says_and_where_the_p_value_says() -> None:
    lower, upper = ecdf_band(60, 19)
    assert lower.shape == upper.shape == (19,)
    inside = 0
    for ranks in torch.randint(20, (1000, 60)):
        below = ranks.bincount(minlength=20).cumsum(0)[:-1] / 60
        within_band = bool(((below >= lower) & (below <= upper)).all())
        assert within_band == (uniformity(ranks, 19) > 0.05)
        inside += within_band
    assert inside / 1000 > 0.95 - 5 * (0.95 * 0.05 / 1000) ** 0.5


def test_bars_of_uniform_ranks_are_in_their_band_as_often_as_it_says() -> None:
    low, high = count_band(200, 0.05)
    bars = torch.randint(20, (4000, 200)).eq(3).sum(1)
    assert 0.95 - 5 * (0.05 / 4000) ** 0.5 < ((bars >= low) & (bars <= high)).double().mean() < 0.99


@pytest.mark.parametrize("num", [1, 2, 5, 8])
def test_the_p_value_of_symmetry_is_that_of_all_equally_likely_signs(num: int) -> None:
    far = torch.rand(num) / 2

    def distance(p: Tensor) -> float:
        at = torch.cat([p, 1 - p])[:, None]
        return float(((p <= at).double().mean(1) - (1 - p <= at).double().mean(1)).abs().max())

    everything = [0.5 + far * torch.tensor(signs) for signs in product([-1.0, 1.0], repeat=num)]
    distances = torch.tensor([distance(p) for p in everything])
    for p, own in zip(everything, distances):
        assert symmetry(p) == pytest.approx(float((distances >= own - 1e-9).double().mean()), abs=1e-12)


def test_symmetric_probabilities_have_p_values_that_are_no_smaller_than_uniform() -> None:
    p = torch.tensor([symmetry(torch.rand(100)) for _ in range(2000)])
    coarse = torch.tensor([symmetry(torch.randint(11, (100,)) / 10) for _ in range(2000)])
    assert within((p[:, None] <= LEVELS).double().mean(0), LEVELS, 2000)
    assert within((coarse[:, None] <= LEVELS).double().mean(0), LEVELS, 2000)
    assert (p <= 0.5).double().mean() > 0.4


def test_p_values_far_out_are_tiny_and_positive() -> None:
    assert 0 < uniformity(torch.zeros(300, dtype=torch.long), 99) < 1e-100
    assert 0 < symmetry(torch.full((300,), 0.9)) < 1e-30
    assert symmetry(torch.full((10,), 0.5)) == 1.0
