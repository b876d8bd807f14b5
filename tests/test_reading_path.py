"""The way from ``vi.run(data)`` to one step is as short as the documentation says, and leads where it says."""

import functools
import importlib
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_nflows
from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.engine.program import Program
from pyro_nflows.engine.threads import restored_threads
from tests.models import PAIRS, pairs

ROOT = Path(pyro_nflows.__file__).parent
MAX_FUNCTIONS = 8


def documented() -> list[tuple[str, str]]:
    """File and function of each line of the list."""
    page = (ROOT.parent / "docs/architecture.md").read_text()
    section = page.split("## From `vi.run(data)` to one step\n")[1].split("\n## ")[0]
    return re.findall(r"^\d\. `([\w/]+\.py)`, `([\w.]+)`: ", section, re.MULTILINE)


def test_the_way_is_short() -> None:
    assert 2 < len(documented()) <= MAX_FUNCTIONS


@pytest.mark.parametrize(("file", "function"), documented())
def test_the_functions_are_there(file: str, function: str) -> None:
    module = importlib.import_module("pyro_nflows." + file.removesuffix(".py").replace("/", "."))
    found = functools.reduce(getattr, function.split("."), module)
    assert callable(found)
    assert found.__module__ == module.__name__


def test_each_function_calls_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: set[tuple[tuple[str, str], ...]] = set()
    step = Program.step

    def watched(self: Program, *args: Any) -> Any:
        frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack()]
        inside = [(path, name) for path, name in frames if path.is_relative_to(ROOT) and name[0] != "<"]
        stacks.add(tuple((str(path.relative_to(ROOT)), name) for path, name in inside))
        return step(self, *args)

    monkeypatch.setattr(Program, "step", watched)
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, 2, (4,)))
    with restored_threads():
        torch.set_num_threads(1)  # with more, steps are timed first
        VI(guide, num_steps=4, engine="eager", seed=0, progress_bar=False).run(PAIRS)
    assert stacks == {tuple((file, function.split(".")[-1]) for file, function in documented()[:-1])}
