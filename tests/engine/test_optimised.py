"""Steps by an optimiser of torch's, or of Pyro's, in the place of Adam."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro.optim
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.engine import Choice, Engine, EngineWarning, Round, Trainer
from pyro_nflows.engine.optimised import optimised
from pyro_nflows.engine.program import Inputs, Program
from pyro_nflows.layers import Chain, LocScale
from pyro_nflows.objectives.base import Gradient, Objective
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs

pytestmark = pytest.mark.on_devices

ADAM = functools.partial(torch.optim.Adam, lr=1.0)
ROUND = Round(300, 16, 5e-2)


def normal(z: Tensor) -> Tensor:
    """Two latents of means 1 and variances 1."""
    return -0.5 * (z - 1).square().sum(-1) - math.log(2 * math.pi)


def train(
    optim: Any = None,
    engine: Engine | None = Engine.EAGER,
    log_joint: Callable[[Tensor], Tensor] = normal,
    members: int = 1,
) -> tuple[Trainer, list[Chain]]:
    trainer, layers = (
        Trainer(log_joint, engine=engine, progress_bar=False),
        [Chain(LocScale(2)) for _ in range(members)],
    )
    trainer.optim = None if optim is None else Choice(optim, ROUND.step_size)
    torch.manual_seed(0)
    trainer.run_many(layers, Objective(), Gradient.PATH, ROUND, "")
    return trainer, layers


def params(layer: Chain) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in layer.parameters()])


@pytest.mark.parametrize("engine", [Engine.EAGER, Engine.TRACED])
def test_torchs_adam_takes_the_steps_that_ours_takes(engine: Engine) -> None:
    (ours,), (theirs,) = train()[1], train(torch.optim.Adam, engine)[1]
    assert torch.allclose(params(ours), params(theirs), atol=1e-9)


def test_weights_of_many_inputs_take_smaller_steps_there_too() -> None:
    program = Program(normal, Chain(flows.realnvp(2, 2, (64, 64))), Objective(), Gradient.PATH, 16)
    state, noise = program.init(), torch.randn(1, 16, program.noise_width)
    inputs = Inputs(noise, torch.full((1,), 5e-2), torch.ones(1), torch.zeros(1))
    choice = Choice(functools.partial(torch.optim.SGD, lr=0.1), 5e-2)
    after, _ = optimised(program, choice, Engine.EAGER, inputs).run(state, inputs)
    gradient, _, _ = program.gradient_at(state.params, Inputs(*(part[0] for part in inputs)))
    assert program.factors is not None
    assert program.factors.unique().tolist() == [0.5, 1.0]
    assert torch.allclose(after.params, state.params - 0.1 * program.factors * gradient)


@pytest.mark.parametrize(
    "optim",
    [
        torch.optim.AdamW,
        torch.optim.RMSprop,
        functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        pyro.optim.Adam({"lr": 0.05}),
        pyro.optim.ClippedAdam({"lr": 0.05}),
    ],
    ids=["AdamW", "RMSprop", "SGD", "pyro.Adam", "pyro.ClippedAdam"],
)
def test_each_finds_the_posterior(optim: Any) -> None:
    _, (layer,) = train(optim, Engine.TRACED)
    assert (layer[0].loc - 1).abs().max() < 0.03
    assert layer[0].log_scale.abs().max() < 0.03


def test_a_step_size_of_its_own_takes_the_place_of_the_schedules() -> None:
    (same,), (other,) = train(functools.partial(torch.optim.Adam, lr=5e-2))[1], train(torch.optim.Adam)[1]
    assert torch.allclose(params(same), params(other))
    _, (slow,) = train(functools.partial(torch.optim.Adam, lr=1e-5))
    assert (slow[0].loc).abs().max() < 0.01


def test_steps_that_are_not_finite_are_skipped() -> None:
    def broken(z: Tensor) -> Tensor:
        return normal(z) + torch.where(z[:, 0] > 2.5, torch.nan, 0.0)

    trainer, (layer,) = train(torch.optim.Adam, log_joint=broken)
    assert 0 < trainer.history.skipped < 150
    assert torch.isfinite(params(layer)).all()


def test_several_fits_have_optimisers_of_their_own() -> None:
    _, layers = train(torch.optim.Adam, members=3)
    assert all((layer[0].loc - 1).abs().max() < 0.01 for layer in layers)


def test_what_cannot_be_recorded_runs_eagerly() -> None:
    def branching(z: Tensor) -> Tensor:
        return normal(z) if float(z.detach().sum()) < 1e9 else normal(2 * z)

    with pytest.warns(EngineWarning, match="using the eager engine"):
        trainer, (layer,) = train(torch.optim.Adam, None, branching)
    assert trainer.history.engines == [Engine.EAGER]
    assert (layer[0].loc - 1).abs().max() < 0.01


def fit(optim: Any, **options: Any) -> VI:
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, 2, (4,)))
    return VI(guide, optim=optim, **{"seed": 0, "engine": "traced", "num_steps": 60, "progress_bar": False, **options})


def test_a_fit_by_it_is_judged_like_any_other() -> None:
    vi = fit(torch.optim.AdamW).run(PAIRS)
    assert vi.history.engines == [Engine.TRACED] * 3
    assert vi.diagnostics()["iwae"] == pytest.approx(PAIRS_EVIDENCE, abs=0.01)


def test_where_compiled_code_was_asked_for_it_says_once_that_it_is_not() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        vi = fit(torch.optim.AdamW, engine="compiled", num_steps=4).run(PAIRS)
    said = [str(each.message) for each in told if issubclass(each.category, EngineWarning)]
    assert len(said) == 1
    assert "the compiled engine has steps of Adam only; using the traced engine for AdamW" in said[0]
    assert set(vi.history.engines) == {Engine.TRACED}


def test_by_default_nothing_is_said_and_the_history_knows() -> None:
    vi = fit(torch.optim.AdamW, engine=None, num_steps=4).run(PAIRS)
    assert vi.history.engine_notes == ["compiled: its steps are Adam's, and these are by AdamW"]


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        (3, "VI: optim: got 3; expected a class such as torch.optim.AdamW"),
        (dict, "VI: optim: got <class 'dict'>; expected"),
        (lambda params: 3, "VI: optim: it gave a int in place of an optimiser; expected"),
        (lambda: 3, r"VI: optim: it cannot be made of parameters \(TypeError: .*\); expected"),
        (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), "got an SGD that holds its parameters already"),
        (torch.optim.LBFGS, "LBFGS evaluates the loss several times a step"),
        (pyro.optim.Adam(lambda name: {"lr": 0.1}), "options of each parameter by a function are not for VI"),
        (
            pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.9}),
            "a scheduler has no place here",
        ),
    ],
    ids=["number", "class", "no optimiser", "no parameters", "instance", "LBFGS", "by name", "scheduler"],
)
def test_what_is_no_optimiser_is_refused(optim: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        fit(optim)
