"""Where there is not enough memory, the message says what to do, and nothing is lost."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.engine.program import Program
from pyro_nflows.inference.running import Fitter
from tests.models import PAIRS, pairs

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
LACKING = (
    "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
)


def line(**options: Any) -> VI:
    return VI(AutoFlow(pairs, TWO), seed=0, num_steps=60, engine="eager", progress_bar=False, **options)


def lacks(*_: Any, **__: Any) -> Any:
    raise RuntimeError(LACKING)


def test_training_that_lacks_memory_ends_and_what_was_reached_is_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step, done = Program.step, list[int]()

    def some(self: Program, *given: Any) -> Any:
        done.append(1)
        return lacks() if len(done) > 40 else step(self, *given)

    monkeypatch.setattr(Program, "step", some)
    vi = line(checkpoint=tmp_path / "fit.pt").run(PAIRS)
    sentence = str(vi.verdict())
    assert "a step had not enough memory" in sentence
    assert "num_particles=16" in sentence
    assert vi.history.num_steps > 0
    assert vi.history.interrupted
    assert all(value.isfinite().all() for value in vi.get_samples(20).values())
    monkeypatch.setattr(Program, "step", step)
    assert line(checkpoint=tmp_path / "fit.pt").run(PAIRS).history.out_of_memory is False  # goes on from there


def test_a_start_that_lacks_memory_leaves_guide_and_draws_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    vi = line().run(PAIRS)
    before = vi.posterior
    monkeypatch.setattr(Fitter, "ready", lacks)
    with pytest.raises(MemoryError, match="not enough memory for this fit; give VI fewer particles"):
        vi.run(PAIRS)
    assert vi.posterior is before


def test_a_search_that_lacks_memory_loses_no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fitter, "_search", lacks)
    with pytest.warns(UserWarning, match="its draws and their weights are kept"):
        vi = line().run(PAIRS)
    assert len(vi.posterior.draws.z) > 100
    assert torch.isfinite(torch.tensor(vi.diagnostics()["elbo"]))
