"""A script that uses every public name: type checkers understand it, and it runs."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_nflows

SCRIPT = Path(__file__).with_name("user_script.py")


def test_it_uses_every_public_name() -> None:
    used = set(re.findall(r"\w+", SCRIPT.read_text().split("import (\n", 1)[1].split(")\n\n", 1)[1]))
    assert set(pyro_nflows.__all__) <= used


@pytest.mark.slow
def test_mypy_understands_it() -> None:
    """As a user would run it, whose own code is held to everything that mypy checks; Pyro's functions are untyped."""
    pytest.importorskip("mypy")
    options = ["--config-file=", "--strict", "--allow-untyped-calls", "--follow-imports=silent"]
    command = [sys.executable, "-m", "mypy", *options, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")  # of LOO on four rows
def test_it_runs(tmp_path: Path) -> None:
    runpy.run_path(str(SCRIPT))["main"](tmp_path)
