"""The table of what a step of a plain loop takes."""

import pytest

from benchmarks import svi_steps


def test_it_times_each_way_that_a_guide_has(capsys: pytest.CaptureFixture[str]) -> None:
    svi_steps.main(["--models", "two_sites", "--guides", "AutoPlanar,Pyro AutoIAFNormal", "--rounds", "1"])
    *_, ours, pyros = capsys.readouterr().out.splitlines()
    assert all(float(cell) > 0 for cell in ours.split("|")[2:-1])
    assert [bool(cell.strip()) for cell in pyros.split("|")[2:-1]] == [True, True, False, False, False]
