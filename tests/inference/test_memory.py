"""Where there is not enough memory, the message says what to do, and nothing is lost."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from pyro_nflows import ELBO, IWAE, SBC, VI, AutoCIF, AutoFlow, FlowDistribution, flows
from pyro_nflows.diagnostics.bounds import elbo_bounds
from pyro_nflows.diagnostics.ranks import ecdf_band
from pyro_nflows.diagnostics.weights import psis_resample
from pyro_nflows.engine.program import Program
from pyro_nflows.inference.running import Fitter
from pyro_nflows.model.predictive import Run, each_draw
from tests.models import PAIRS, pairs

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
#: Draws that no machine has memory for, and such as torch has no number for.
ABSURD = 10**15, 10**30
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
    with pytest.raises(MemoryError, match=r"not enough memory for this fit: 8 bytes .*; give VI fewer particles"):
        vi.run(PAIRS)
    assert vi.posterior is before


def test_a_search_that_lacks_memory_loses_no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fitter, "_search", lacks)
    with pytest.warns(UserWarning, match="its draws and their weights are kept"):
        vi = line().run(PAIRS)
    assert len(vi.posterior.draws.z) > 100
    assert torch.isfinite(torch.tensor(vi.diagnostics()["elbo"]))


@pytest.fixture(scope="module")
def fitted() -> VI:
    pyro.clear_param_store()
    torch.manual_seed(0)
    return line().run(PAIRS)


ASKED: dict[str, Callable[[VI, int], Any]] = {
    "get_samples": lambda vi, num: vi.get_samples(num),
    "get_samples: ": lambda vi, num: vi.get_samples(num, resample=False),
    "get_samples: there": lambda vi, num: vi.posterior.get_samples(num),
    "predict": lambda vi, num: vi.predict(PAIRS, num_samples=num),
    "to_arviz": lambda vi, num: vi.to_arviz(num),
    "refine": lambda vi, num: vi.refine(num),
    "refine: there": lambda vi, num: vi.refine(10, num_chains=num),
    "leave_one_group_out": lambda vi, num: vi.leave_one_group_out("group", num),
    "FittedPrior.sample": lambda vi, num: vi.posterior.as_prior(untrusted=True).sample((num,)),
}


@pytest.mark.parametrize("num", ABSURD)
@pytest.mark.parametrize("asked", ASKED)
def test_more_draws_than_there_is_memory_for_are_refused_and_none_are_lost(fitted: VI, asked: str, num: int) -> None:
    before = fitted.posterior
    with pytest.raises((MemoryError, ValueError), match=f"^{asked}.*memory"):
        ASKED[asked](fitted, num)
    assert fitted.posterior is before
    assert len(fitted.get_samples(20)["z"]) == 20


@pytest.mark.parametrize("num", ABSURD)
def test_more_than_there_is_memory_for_is_refused_of_guides_flows_objectives_and_diagnostics(num: int) -> None:
    guide, cif, layer = AutoFlow(pairs, TWO), AutoCIF(pairs, inner=TWO), flows.realnvp(3)
    guide(PAIRS), cif(PAIRS)
    flow = FlowDistribution(layer)
    asked: dict[str, Callable[[], Any]] = {
        "FlowDistribution.sample": lambda: flow.sample((num, 2)),
        "FlowDistribution.sample: ": lambda: guide.get_posterior(PAIRS).rsample((num,)),
        "FlowDistribution.log_prob": lambda: cif.log_prob(cif.median(PAIRS), num, PAIRS),
        "ELBO": lambda: ELBO(num).loss(pairs, guide, PAIRS),
        "ELBO: ": lambda: ELBO(num).loss_and_grads(pairs, guide, PAIRS),
        "IWAE": lambda: IWAE(num)(pairs, guide)(PAIRS),
        "VI.run": lambda: VI(guide, objective=ELBO(num), progress_bar=False).run(PAIRS),
        "SBC": lambda: SBC(guide, num_simulations=num, progress_bar=False).run(PAIRS),
        "elbo_bounds": lambda: elbo_bounds(lambda z: z.sum(-1), layer, num_samples=num),
        "psis_resample": lambda: psis_resample(torch.randn(100), num),
        "ranks": lambda: ecdf_band(100, num),
        "AutoFlow": lambda: AutoFlow(pairs, partial(flows.realnvp, hidden_dims=(num, num)))(PAIRS),
    }
    for name, ask in asked.items():
        with pytest.raises(MemoryError, match=f"^{name}.*not enough memory.*(fewer|smaller)"):
            ask()


def test_memory_that_gives_out_while_draws_are_made_loses_none(fitted: VI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as where other processes take it."""
    before = fitted.posterior
    with monkeypatch.context() as patch:
        patch.setattr("pyro_nflows.inference.posterior.sample", lacks)
        with pytest.raises(MemoryError, match=r"^predict: .* draws of \d+ numbers: 8 bytes were asked for at once"):
            fitted.predict(PAIRS, num_samples=10**5)
    assert fitted.posterior is before


def test_data_sets_that_do_not_fit_are_refused_once_the_first_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_nflows.system.memory.SMALL", 0)
    monkeypatch.setattr("pyro_nflows.system.memory.bytes_left", lambda _: 10_000)
    run = Run(pairs, (torch.zeros(1000),))
    with pytest.raises(MemoryError, match=r"^predict: .* for 2 draws with 'z' of shape \(1000,\): .* 10 kB are left"):
        each_draw(run.prior, {"": torch.arange(2)}, "predict")
