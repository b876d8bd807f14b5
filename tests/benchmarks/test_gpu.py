"""The benchmark of a GPU runs wherever there is none, too."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu


def test_its_table_of_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    gpu.main(["--device", "cpu", "--parts", "fits", "--fits", "diagonal:2", "--no-cpu", "--json", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    assert row["verdict"] == "TRUST"
    assert row["seconds"] > 0
    assert "seconds to an answer" in capsys.readouterr().out
