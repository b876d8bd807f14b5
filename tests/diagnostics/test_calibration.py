"""P-values are uniform where nothing is wrong, exact where that can be counted, and tiny where something is."""

import math

import pytest
import torch

from pyro_nflows.diagnostics.calibration import Calibration, PValues, judge_ranks
from pyro_nflows.diagnostics.ranks import ecdf_band, symmetry, uniformity


@pytest.mark.parametrize(
    ("shape", "outcome"),
    [
        (lambda u: u, Calibration.CALIBRATED),
        (lambda u: torch.special.ndtr(2 * torch.special.ndtri(u)), Calibration.TOO_NARROW),
        (lambda u: torch.special.ndtr(0.5 * torch.special.ndtri(u)), Calibration.TOO_WIDE),
        (lambda u: u.sqrt(), Calibration.TOO_LOW),
        (lambda u: u.square(), Calibration.TOO_HIGH),
        (lambda u: (4 * u).floor() / 4 + 0.1 + 0.05 * u, Calibration.MISSHAPEN),
    ],
)
def test_the_shape_of_ranks_is_named(shape: object, outcome: Calibration) -> None:
    ranks = {"a": torch.arange(200) // 2, "b": (100 * shape(torch.rand(200))).long().clamp(max=99)}  # type: ignore[operator]
    p_values = {name: PValues(uniformity(r, 99), 1.0) for name, r in ranks.items()}
    judgement = judge_ranks(p_values, ranks, 99, bad=0.4)
    assert judgement.outcome is outcome
    if outcome is not Calibration.CALIBRATED:
        assert "of b" in judgement.sentence
        assert "40% of the fits are bad" in judgement.sentence
        assert "miss a mode" in judge_ranks(p_values, ranks, 99).sentence


def test_one_small_p_value_among_many_is_chance() -> None:
    ranks = {str(i): torch.arange(100) for i in range(50)}
    p_values = {name: PValues(0.5, 0.5) for name in ranks} | {"7": PValues(0.001, 0.5)}
    assert judge_ranks(p_values, ranks, 99).outcome is Calibration.CALIBRATED
    assert judge_ranks(p_values | {"7": PValues(0.5, 0.00005)}, ranks, 99).outcome is not Calibration.CALIBRATED


@pytest.mark.parametrize(
    ("num", "num_samples", "few"), [(1, 99, True), (19, 99, True), (20, 99, False), (200, 1, False)]
)
def test_too_few_simulations_to_say_are_called_so(num: int, num_samples: int, few: bool) -> None:
    ranks = {"a": torch.arange(num) % (num_samples + 1)}
    judgement = judge_ranks({"a": PValues(0.5, 0.5)}, ranks, num_samples)
    assert judgement.outcome is (Calibration.TOO_FEW if few else Calibration.CALIBRATED)
    assert ("take num_simulations=200" in judgement.sentence) is few
    assert "1 simulations" not in judgement.sentence


def test_ranks_that_cannot_be_told_from_uniform_ones_show_nothing() -> None:
    """Of 20 ranks that are 0 or 1, the worst have the p-value 2 / 2**20, which so many tests explain."""
    ranks = {str(i): torch.arange(20) % 2 for i in range(5000)}
    p_values = dict.fromkeys(ranks, PValues(0.5, 0.5))
    assert judge_ranks(p_values, ranks, 1).outcome is Calibration.TOO_FEW


def test_gross_faults_show_in_few_simulations() -> None:
    ranks = {"a": torch.zeros(10, dtype=torch.long)}
    p_values = {"a": PValues(uniformity(ranks["a"], 99), symmetry(torch.zeros(10)))}
    assert judge_ranks(p_values, ranks, 99).sentence.startswith("Not calibrated")


def test_what_are_no_ranks_is_refused() -> None:
    for ranks in (torch.rand(5), torch.tensor([3, 100]), torch.tensor([-1]), torch.zeros(2, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="expected integers from 0 to num_samples = 99"):
            uniformity(ranks, 99)
    for p in (torch.tensor([0.5, 1.5]), torch.tensor([math.nan]), torch.rand(2, 2)):
        with pytest.raises(ValueError, match="all from 0 to 1"):
            symmetry(p)
    with pytest.raises(ValueError, match=r"prob: got 1\.5"):
        ecdf_band(10, 9, 1.5)
