"""The pictures of the benchmarks show what the tables of the documentation say."""

from pathlib import Path

import pytest

from benchmarks import redraw


def read(page: str) -> str:
    return (redraw.DOCS / page).read_text(encoding="utf-8")


def test_the_twelve_posteriors_have_three_methods_each() -> None:
    rows = redraw.posteriors(read("benchmarks.md"))
    assert [row["method"] for row in rows] == ["flow", "np-nuts", "nuts"] * 12
    assert len({row["posterior"] for row in rows}) == 12
    assert all(("limit" in row) == (row["method"] == "nuts") for row in rows)


def test_every_layer_is_in_one_panel() -> None:
    rows = redraw.passes(read("benchmarks.md"))
    panels = [name for names in redraw.costs.PANELS.values() for name in names]
    assert sorted(panels) == sorted({row["layer"] for row in rows})
    assert sorted(panels) == sorted(redraw.costs.LAYERS)
    assert {row["dim"] for row in rows if "jacobian" in row} == {32, 512}


def test_a_cell_that_was_not_measured_has_no_point() -> None:
    rows = redraw.steps(read("how_it_is_fast.md"))
    assert [row.get("traced") for row in rows if row.get("dim") == 1000] == [None]
    assert sum("particles" in row for row in rows) == 7


@pytest.mark.parametrize("name", redraw.PICTURES)
def test_a_picture_is_drawn(name: str, tmp_path: Path) -> None:
    redraw.main(["--only", name, "--out", str(tmp_path)])
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
