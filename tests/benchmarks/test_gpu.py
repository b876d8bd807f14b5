"""The benchmark of a GPU runs wherever there is none, too."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu


def test_its_tables_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    sizes = ["--particles", "8", "--dims", "3", "--seconds", "0.01", "--fits", "banded:3", "--no-numpyro", "--no-cpu"]
    gpu.main(["--device", "cpu", *sizes, "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["part"] for row in rows] == ["steps", "steps", "fits"]
    assert all(row["graph"] > 0 and row["traced"] > 0 for row in rows[:2])
    assert rows[2]["verdict"] == "TRUST"
    assert "microseconds a step" in capsys.readouterr().out
