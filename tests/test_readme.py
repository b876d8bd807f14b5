"""The examples that a reader pastes first: they run, and the first fit is to be trusted."""

from typing import Any

import pyro
import pytest
import torch
from run_readme import README, examples

from pyro_nflows.verdict import Outcome


@pytest.fixture(scope="module")
def session() -> dict[str, Any]:
    """All names of the README's examples, run in order in single precision, as a reader's would be."""
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        for source in examples(README.read_text(encoding="utf-8")):
            exec(compile(source, str(README), "exec"), names)
    finally:
        torch.set_default_dtype(torch.float64)
    return names


def test_the_first_example_is_to_be_trusted(session: dict[str, Any]) -> None:
    assert session["evidence"]["outcome"] in (Outcome.TRUST, Outcome.RESAMPLED)
    assert session["evidence"]["ess"] > 0.9
    assert {name: len(draws) for name, draws in session["draws"].items()} == dict.fromkeys(
        ("intercept", "slope", "sigma"), 1000
    )
