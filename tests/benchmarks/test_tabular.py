"""The benchmark of tables: continuous columns, disjoint folds, equal parameters, paired differences."""

import pytest
import torch

from benchmarks.tables import NUM_COPIES, NUM_FOLDS, TABLES, in_folds, split, step
from benchmarks.tabular import FAMILIES, Best, baseline, difference, indexed, log_probs
from pyro_nflows.flows import num_params
from pyro_nflows.layers import LocScale
from pyro_nflows.numerics import standard_normal_log_prob

pytest.importorskip("sklearn")

#: Columns that are left of 13, 11, 30, 64 and 24.
DIMS = {"wine": 13, "diabetes": 10, "cancer": 26, "digits": 51, "patches": 24}


def test_columns_of_few_values_and_copies_of_others_are_left_out() -> None:
    column = torch.randperm(60).double()
    rows = torch.stack([column % 9, column, -2 * column + 1e-3 * torch.rand(60), torch.rand(60)], 1)
    table = in_folds(rows)
    assert torch.equal(table.rows, rows[:, [1, 3]])
    assert table.folds.bincount().tolist() == [12] * NUM_FOLDS
    assert step(column) == 1


@pytest.mark.parametrize("name", TABLES)
def test_each_row_is_tested_once_and_columns_are_standardised(name: str) -> None:
    table = TABLES[name]()
    assert table.rows.shape[1] == DIMS[name]
    splits = [split(table, fold) for fold in range(NUM_FOLDS)]
    assert sum(len(part.test) for part in splits) == len(table.rows)
    copies = NUM_COPIES if table.steps.any() else 1
    for part in splits:
        assert len(part.train) // copies + len(part.valid) + len(part.test) == len(table.rows)
        torch.testing.assert_close(part.train.mean(0), torch.zeros(DIMS[name]), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.train.std(0), torch.ones(DIMS[name]))
    assert torch.equal(split(table, 1).test, splits[1].test)


@pytest.mark.parametrize("dim", sorted(set(DIMS.values())))
@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_have_equally_many_parameters(name: str, dim: int) -> None:
    ours, theirs = num_params(indexed(FAMILIES[name], dim)), num_params(baseline(FAMILIES[name], dim))
    assert abs(theirs / ours - 1) < 0.02


def test_the_best_parameters_on_rows_to_choose_by_are_kept() -> None:
    valid = torch.randn(50, 2)
    layer = LocScale(2)
    best = Best(layer, valid)
    for loc in (1.0, 0.0, 2.0):
        with torch.no_grad():
            layer.loc.fill_(loc)
        best.look()
    best.restore()
    assert layer.loc.tolist() == [0.0, 0.0]
    expected = standard_normal_log_prob(valid).double().expand(3, 50)
    torch.testing.assert_close(log_probs(layer, valid, 3), expected)


def test_a_difference_is_paired_and_its_error_is_that_of_folds() -> None:
    ours = [torch.zeros(10), torch.ones(10)]
    found = difference("wine", "maf", ours, [ours[0] + 1, ours[1] + 3])
    assert (found.mean, found.se) == (2.0, pytest.approx(1.0))
    assert str(found).endswith("neither")
