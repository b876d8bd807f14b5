"""Sums over conditionals of a block: what is said where few candidates, or none, have any weight."""

import math

import pytest
import torch
from torch import Tensor

from pyro_nflows.diagnostics.crossed_verdict import with_blocks
from pyro_nflows.diagnostics.findings import Block
from pyro_nflows.diagnostics.verdict import Outcome, Verdict
from pyro_nflows.inference.block_sums import BlockSums, Part

ROWS, DRAWS, CANDIDATES = 3, 200, 8


def judged(log_weights: Tensor) -> Block:
    """Of candidates that are standard normal, as the guide has them, with these log-weights."""
    part = Part(0, ("rows",), torch.arange(ROWS)[:, None])
    shared = torch.full((ROWS, 1), ROWS**-0.5)
    sums = BlockSums(part, torch.ones(ROWS, 1), shared, torch.ones(1, 1))
    sums.add(list(torch.randn(CANDIDATES, DRAWS, ROWS, 1)), list(log_weights), torch.zeros(DRAWS, ROWS, 1))
    return sums.fit(False)


def outcome(block: Block) -> Outcome:
    return with_blocks(Verdict(Outcome.DISTRUST, "No."), [block]).outcome


def test_equal_weights_are_trusted() -> None:
    block = judged(torch.zeros(CANDIDATES, DRAWS, ROWS))
    assert outcome(block) is Outcome.TRUST
    assert block.ess == pytest.approx(1.0)


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_row_that_no_candidate_makes_possible_is_not_trusted(value: float) -> None:
    log_weights = torch.zeros(CANDIDATES, DRAWS, ROWS)
    log_weights[:, :, 1] = value
    block = judged(log_weights)
    assert block.row == 1
    assert block.ess == pytest.approx(0.0, abs=1e-12)
    assert outcome(block) is Outcome.ROWS


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_few_impossible_candidates_change_little(value: float) -> None:
    """Among them draws of which one half of the candidates, by which the other is checked, is impossible."""
    log_weights = torch.zeros(CANDIDATES, DRAWS, ROWS)
    log_weights[: CANDIDATES // 2, 0] = value
    log_weights[-1, :20] = value
    block = judged(log_weights)
    assert outcome(block) is Outcome.TRUST
    assert block.ess > 0.95
    assert all(map(math.isfinite, (block.variance, block.between, block.noise, block.shift, block.shared_ratio)))


def test_a_block_whose_weights_are_all_on_one_candidate_is_too_wide() -> None:
    log_weights = torch.full((CANDIDATES, DRAWS, ROWS), -1e4)
    log_weights[2] = 0.0
    assert outcome(judged(log_weights)) is Outcome.ROWS
