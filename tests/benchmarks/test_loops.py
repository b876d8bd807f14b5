"""The table of models that are written as loops."""

import pytest

from benchmarks import loops


def test_it_counts_and_times_the_operations_of_a_loop(capsys: pytest.CaptureFixture[str]) -> None:
    loops.main(["--models", "groups", "--sizes", "150", "--no-fits"])
    *_, row = capsys.readouterr().out.splitlines()
    name, size, operations, left, as_written, at_once = row.split()
    assert (name, size) == ("groups", "150")
    assert int(left) < 50 < 500 < int(operations.replace(",", ""))
    assert min(float(as_written), float(at_once)) > 0


def test_models_can_be_fitted_as_they_are_written() -> None:
    with loops.as_written():
        assert loops.gradients("groups", 150)["left"] == 0
    assert loops.gradients("groups", 150)["left"] > 0
