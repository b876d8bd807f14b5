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


def test_what_are_no_ranks_is_refused() -> None:
    for ranks in (torch.rand(5), torch.tensor([3, 100]), torch.tensor([-1]), torch.zeros(2, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="expected integers from 0 to num_samples = 99"):
            uniformity(ranks, 99)
    for p in (torch.tensor([0.5, 1.5]), torch.tensor([math.nan]), torch.rand(2, 2)):
        with pytest.raises(ValueError, match="all from 0 to 1"):
            symmetry(p)
    with pytest.raises(ValueError, match=r"prob: got 1\.5"):
        ecdf_band(10, 9, 1.5)
