"""Diagnostics equal ArviZ's, and mean what they say where the answer is known."""

import math
from collections.abc import Callable
from typing import Any

import arviz
import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_nflows.diagnostics.weights import (
    elbo,
    ess,
    fit_tail,
    gpd_fit,
    k_threshold,
    log_evidence,
    min_num_samples,
    pareto_k,
    psis,
    psis_resample,
    tail_length,
)

# ArviZ 0.2x normalises the weights of its grid by a plain exponential.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning:arviz")

MODERN = int(arviz.__version__.split(".")[0]) >= 1
Measure = Callable[[Tensor], Any]
SIZES = [30, 100, 101, 225, 226, 400, 1000, 2500, 4000, 10_000]


def arviz_psis(log_weight: Tensor, r_eff: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    values = log_weight.numpy().copy()
    if not MODERN:
        return arviz.psislw(values, reff=r_eff)
    from arviz_stats.base import array_stats

    return array_stats.psislw(-values, r_eff=r_eff)  # it takes log-likelihoods, whose negatives are the weights


def arviz_num_tail(num_samples: int, r_eff: float) -> int | None:
    """ArviZ 1.x rounds the length of the tail down, which psis does not unless told."""
    rounded_down = math.floor(min(num_samples / 5, 3 * (num_samples / r_eff) ** 0.5))
    return rounded_down if MODERN else None


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pareto(k: float, num_samples: int, seed: int = 0) -> Tensor:
    """Log-weights with P(w > t) = t^(-1/k)."""
    generator = torch.Generator().manual_seed(seed)
    return -k * torch.rand(num_samples, generator=generator, dtype=torch.float64).log()


@pytest.mark.parametrize("r_eff", [1.0, 0.3])
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("num_samples", SIZES)
def test_psis_equals_arviz(num_samples: int, scale: float, r_eff: float) -> None:
    log_weight = scale * normals(num_samples)
    expected, expected_k = arviz_psis(log_weight, r_eff)
    smoothed, k_hat = psis(log_weight, r_eff, num_tail=arviz_num_tail(num_samples, r_eff))
    assert k_hat.item() == pytest.approx(expected_k.item(), abs=1e-6)
    np.testing.assert_allclose(smoothed.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("num_samples", [100, 225, 400, 2500, 10_000])
def test_both_lines_of_arviz_agree_with_the_default_where_the_tail_is_whole(num_samples: int) -> None:
    log_weight = normals(num_samples)
    expected, expected_k = arviz_psis(log_weight)
    smoothed, k_hat = psis(log_weight)
    assert k_hat.item() == pytest.approx(expected_k.item(), abs=1e-6)
    np.testing.assert_allclose(smoothed.numpy(), expected, atol=1e-6)


def test_psis_equals_arviz_with_weights_of_zero() -> None:
    log_weight = normals(1000)
    log_weight[::7] = -math.inf
    expected, expected_k = arviz_psis(log_weight)
    smoothed, k_hat = psis(log_weight, num_tail=arviz_num_tail(1000, 1.0))
    assert k_hat.item() == pytest.approx(expected_k.item(), abs=1e-6)
    np.testing.assert_allclose(smoothed.exp().numpy(), np.exp(expected), atol=1e-6)
    assert smoothed[::7].isneginf().all()


@pytest.mark.skipif(MODERN, reason="ArviZ 1.x raises, or returns NaN, where there is no tail to fit")
@pytest.mark.parametrize(
    "log_weight",
    [
        pytest.param(torch.zeros(1000, dtype=torch.float64), id="constant"),
        pytest.param(normals(20), id="tail of four"),
        pytest.param(normals(27), id="tail of six"),
        pytest.param(1e5 * normals(1000), id="one weight is all"),
        pytest.param((3 * normals(1000)).round(), id="ties"),
        pytest.param(1e-8 * normals(1000), id="nearly equal"),
    ],
)
def test_edge_cases_equal_arviz(log_weight: Tensor) -> None:
    expected, expected_k = arviz_psis(log_weight)
    smoothed, k_hat = psis(log_weight)
    assert k_hat.item() == pytest.approx(float(expected_k), abs=1e-6)
    # Sorted, since which of two equal weights comes first is not defined.
    np.testing.assert_allclose(np.sort(smoothed), np.sort(expected), atol=1e-6)


def test_weights_that_differ_by_rounding_stay_as_they_are() -> None:
    log_weight = 1e-13 * normals(1000)
    smoothed, k_hat = psis(log_weight)
    assert k_hat.isfinite()
    assert float((smoothed + math.log(1000)).abs().max()) < 1e-12
    assert float(ess(log_weight)) == pytest.approx(1.0)


def test_constant_weights_have_no_tail_and_count_fully() -> None:
    log_weight = torch.full((500,), -7.0)
    smoothed, k_hat = psis(log_weight)
    assert k_hat == math.inf
    assert torch.allclose(smoothed, torch.tensor(-math.log(500), dtype=torch.float64))
    assert ess(log_weight) == 1
    assert log_evidence(log_weight) == (-7, 0)
    assert elbo(log_weight) == (-7, 0)


def test_shift_of_log_weights_changes_nothing_but_the_evidence() -> None:
    log_weight = 2 * normals(1000)
    smoothed, k_hat = psis(log_weight)
    shifted, shifted_k = psis(log_weight + 1e4)
    assert shifted_k.item() == pytest.approx(k_hat.item(), abs=1e-8)
    assert torch.allclose(shifted, smoothed, atol=1e-8)
    torch.testing.assert_close(ess(log_weight + 1e4), ess(log_weight))
    torch.testing.assert_close(log_evidence(log_weight + 1e4).value, log_evidence(log_weight).value + 1e4)


@pytest.mark.parametrize(
    "measure", [ess, pareto_k, lambda w: psis(w)[0], lambda w: elbo(w).se, lambda w: log_evidence(w).se]
)
def test_leading_dimensions_are_separate_problems(measure: Measure) -> None:
    log_weight = normals(2, 3, 400)
    rows = torch.stack([torch.stack([measure(row) for row in rows]) for rows in log_weight])
    torch.testing.assert_close(measure(log_weight), rows)


@pytest.mark.parametrize("measure", [ess, pareto_k, lambda w: psis(w)[0], lambda w: log_evidence(w).value])
def test_float32_is_worked_on_in_float64_without_gradients(measure: Measure) -> None:
    log_weight = normals(400).float().requires_grad_()
    result = measure(log_weight)
    assert result.dtype is torch.float64
    assert not result.requires_grad
    assert torch.equal(result, measure(log_weight.double()))


def test_input_is_left_alone() -> None:
    log_weight = normals(400)
    before = log_weight.clone()
    psis(log_weight)
    assert torch.equal(log_weight, before)


@pytest.mark.parametrize(("k", "sigma"), [(-0.3, 1.0), (0.2, 0.1), (0.7, 5.0)])
def test_gpd_fit_finds_the_law(k: float, sigma: float) -> None:
    p = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    k_hat, sigma_hat = gpd_fit(sigma * torch.expm1(-k * torch.log1p(-p)) / k)
    assert k_hat.item() == pytest.approx(k, abs=0.01)
    assert sigma_hat.item() == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize("k", [0.3, 0.5, 0.8])
def test_pareto_k_finds_the_tail_of_pareto_weights(k: float) -> None:
    k_hats = torch.stack([pareto_k(pareto(k, 40_000, seed)) for seed in range(30)])
    # The prior pulls k towards 0.5 with the weight of 10 observations, against 600 in the tail.
    expected = (600 * k + 10 * 0.5) / 610
    assert abs(k_hats.mean() - expected) < 5 * k_hats.std() / 30**0.5 + 0.01


def test_ess_of_lognormal_weights() -> None:
    # E[w]^2 / E[w^2] = exp(-sigma^2).
    fractions = ess(0.5 * normals(200, 5000))
    assert abs(fractions.mean() - math.exp(-0.25)) < 5 * fractions.std() / 200**0.5


def test_evidence_of_lognormal_weights_and_its_standard_error() -> None:
    # log w ~ N(-sigma^2 / 2, sigma^2): E[w] = 1, so the log evidence is 0 and the ELBO -sigma^2 / 2.
    sigma = 0.5
    log_weight = sigma * normals(400, 2000) - sigma**2 / 2
    evidence, bound = log_evidence(log_weight), elbo(log_weight)
    assert abs(evidence.value.mean()) < 5 * evidence.value.std() / 400**0.5 + 1e-3
    assert abs(bound.value.mean() + sigma**2 / 2) < 5 * bound.value.std() / 400**0.5
    for estimate in (evidence, bound):
        # A standard deviation of 400 has a relative standard error of 1 / sqrt(800).
        torch.testing.assert_close(estimate.se.mean(), estimate.value.std(), rtol=5 / 800**0.5, atol=0.0)


def test_smoothing_helps_where_the_tail_is_heavy() -> None:
    """The mean of an exponential under a proposal with too light a tail (k = 0.75), over many samples."""
    rate, generator = 4.0, torch.Generator().manual_seed(0)
    z = torch.rand(300, 1000, generator=generator, dtype=torch.float64).log().neg() / rate
    log_weight = -z + rate * z
    plain = (log_weight.softmax(-1) * z).sum(-1)
    smoothed = (psis(log_weight)[0].exp() * z).sum(-1)
    assert (smoothed - 1).square().mean() < (plain - 1).square().mean()


def test_elbo_is_minus_infinity_where_the_model_has_no_density() -> None:
    assert elbo(torch.tensor([0.0, -math.inf])) == (-math.inf, math.inf)


def test_resampling_repeats_draws_as_often_as_their_weights_say() -> None:
    log_weight = normals(200)
    expected = 1000 * psis(log_weight)[0].exp()
    counts = psis_resample(log_weight, 1000, torch.Generator().manual_seed(0)).bincount(minlength=200)
    assert ((counts - expected).abs() < 1).all()


def test_resampling_is_unbiased() -> None:
    generator, log_weight = torch.Generator().manual_seed(0), normals(50)
    expected = 7 * psis(log_weight)[0].exp()
    counts = torch.stack([psis_resample(log_weight, 7, generator).bincount(minlength=50) for _ in range(1000)]).double()
    assert ((counts.mean(0) - expected).abs() < 5 * counts.std(0) / 1000**0.5 + 1e-12).all()


def test_resampling_without_need_repeats_nothing_and_mixes_the_order() -> None:
    chosen = psis_resample(torch.zeros(1000), 1000, torch.Generator().manual_seed(0))
    assert len(chosen.unique()) == 1000
    correlation = torch.corrcoef(torch.stack([chosen.double(), torch.arange(1000.0, dtype=torch.float64)]))[0, 1]
    assert abs(correlation) < 5 / 1000**0.5


def test_resampling_follows_its_generator_and_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    first, second = (psis_resample(normals(100), 50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_resampling_never_takes_a_weight_of_zero() -> None:
    log_weight = torch.full((1000,), -math.inf)
    log_weight[3] = 0.0
    assert (psis_resample(log_weight, 5000) == 3).all()


@pytest.mark.parametrize(("num_samples", "expected"), [(10, 0.0), (100, 0.5), (1000, 2 / 3), (10_000, 0.7)])
def test_threshold(num_samples: int, expected: float) -> None:
    assert k_threshold(num_samples) == pytest.approx(expected)


@pytest.mark.parametrize(("k", "expected"), [(-1.0, 10), (0.0, 10), (0.5, 100), (0.75, 1e4), (1.0, math.inf)])
def test_number_of_samples_needed_inverts_the_threshold(k: float, expected: float) -> None:
    assert min_num_samples(k) == pytest.approx(expected)
    assert math.isnan(min_num_samples(math.nan))


@pytest.mark.parametrize(("num_samples", "expected"), [(5, 1), (100, 20), (225, 45), (1000, 95), (10_000, 300)])
def test_tail_length(num_samples: int, expected: int) -> None:
    assert tail_length(num_samples) == expected
    log_weight = normals(num_samples)
    assert torch.equal(fit_tail(log_weight).members, log_weight.argsort()[-expected:])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("measure", [ess, elbo, log_evidence, psis, pareto_k, fit_tail, lambda w: psis_resample(w, 3)])
def test_undefined_weights_are_an_error(measure: Measure, bad: float) -> None:
    with pytest.raises(ValueError, match="expected numbers or -inf"):
        measure(torch.tensor([0.0, bad, 1.0]))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: ess(torch.full((5,), -math.inf)), "got only -inf"),
        (lambda: ess(torch.zeros(0)), "num_samples at least 1"),
        (lambda: ess(torch.tensor(1.0)), "num_samples at least 1"),
        (lambda: elbo(torch.zeros(1)), "num_samples at least 2"),
        (lambda: psis(torch.zeros(9), r_eff=0.0), "r_eff: got 0.0"),
        (lambda: k_threshold(1), "num_samples: got 1"),
        (lambda: psis_resample(torch.zeros(2, 3), 1), "Flatten chains first"),
        (lambda: psis_resample(torch.zeros(3), 0), "num_samples: got 0"),
        (lambda: gpd_fit(torch.tensor([1.0, 2.0, 0.0])), "expected positive"),
    ],
)
def test_mistakes_are_named(mistake: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mistake()
