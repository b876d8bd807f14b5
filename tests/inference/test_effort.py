"""How much work a fit may be: a Gaussian and its verdict, the default, or more of everything."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import IWAE, VI, AutoFlow, flows
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.schedule import EFFORTS, Schedule
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs


def fit(model: Any = pairs, **options: Any) -> VI:
    guide = AutoFlow(model, lambda dim: flows.realnvp(dim, 2, (4,)))
    return VI(guide, **{"seed": 0, "engine": "eager", "progress_bar": False, **options})


def banana() -> None:
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
    y = pyro.sample("y", dist.Normal(torch.tensor(0.0), 10.0))
    pyro.factor("near", -0.5 * ((y - x**2) / 0.3) ** 2)


def two_modes() -> None:
    pyro.sample(
        "z",
        dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(torch.tensor([-8.0, 8.0]), torch.ones(2))
        ),
    )


def tuned(y: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), scale))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_quick_is_a_gaussian_with_its_evidence_and_verdict() -> None:
    vi = fit(effort="quick").run(PAIRS)
    assert vi.verdict().outcome is Outcome.TRUST
    assert vi.diagnostics()["iwae"] == pytest.approx(PAIRS_EVIDENCE, abs=0.02)
    assert vi.history.num_steps == 0
    assert 1000 < len(vi.log_weight) <= 4000


def test_quick_says_what_follows_where_a_gaussian_is_not_enough() -> None:
    vi = fit(banana, effort="quick").run()
    said = str(vi.verdict())
    assert "Only a Gaussian was fitted, by effort='quick'; effort='default' trains a flow." in said
    assert "more steps" not in said
    assert vi.history.num_steps == 0
    assert vi.history.quick


def test_quick_sees_another_mode_and_does_not_fit_again() -> None:
    guide = AutoFlow(two_modes, lambda dim: flows.realnvp(dim, 2, (4,)), init_loc_fn=lambda site: torch.tensor(8.0))
    vi = VI(guide, seed=0, effort="quick", progress_bar=False).run()
    assert vi.verdict().outcome is Outcome.MODE_MISSED
    assert "effort='default' trains a flow." in str(vi.verdict())
    assert "num_steps" not in str(vi.verdict())
    assert vi.history.num_steps == 0


def test_quick_trains_parameters_of_the_model() -> None:
    y = torch.tensor([2.0, 3.0, 2.5, 2.8, 3.2])
    vi = fit(tuned, effort="quick", engine="traced").run(y)
    best = math.sqrt(float(y.mean()) ** 2 - 1 / len(y))  # of the scale: where the evidence is highest
    assert float(pyro.param("scale").detach()) == pytest.approx(best, rel=0.05)
    assert vi.history.num_steps > 0


def test_quick_has_no_flow_by_minibatches_either() -> None:
    def rows(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
        with pyro.plate("rows", len(y), subsample_size=10) as index:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[index])

    vi = VI(AutoFlow(rows), seed=0, effort="quick", progress_bar=False).run(torch.linspace(-1, 1, 40))
    assert vi.history.rounds == [400, 1000]  # what is outside of the plate, and the affine end
    assert vi.verdict().outcome is Outcome.TRUST


def test_each_effort_is_more_work_than_the_one_before() -> None:
    quick, default, thorough = (Plan.asked("VI", effort=effort) for effort in EFFORTS)
    assert default.schedule == Schedule()
    assert (quick.starts, default.starts, thorough.starts) == (1, 1, 3)
    steps = [sum(part.num_steps for part in plan.schedule.rounds) for plan in (quick, default, thorough)]
    draws = [plan.schedule.num_samples for plan in (quick, default, thorough)]
    assert steps[0] == 0 < steps[1] < steps[2]
    assert draws == sorted(draws)
    assert thorough.schedule.good_ess > default.schedule.good_ess


def test_starts_that_are_asked_for_are_taken() -> None:
    assert Plan.asked("VI", effort="thorough", num_starts=1).starts == 1
    assert Plan.asked("VI", num_starts=4).starts == 4


def test_thorough_has_three_starts_that_agree() -> None:
    vi = fit(effort="thorough").run(PAIRS)
    assert len(vi.posterior.starts) == 3
    assert vi.verdict().outcome is Outcome.TRUST
    assert len(vi.log_weight) == 4 * Schedule().num_samples


TWICE: list[dict[str, Any]] = [{"num_steps": 100}, {"annealing": 0.5}, {"objective": IWAE(num_particles=16)}]


@pytest.mark.parametrize("options", TWICE, ids=["num_steps", "annealing", "num_particles"])
def test_what_chooses_the_rounds_twice_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"effort='quick' chooses the rounds of .*; leave out one or the other"):
        fit(effort="quick", **options)


def test_an_unknown_effort_is_refused() -> None:
    with pytest.raises(ValueError, match=r"VI: effort must be one of \['quick', 'default', 'thorough'\], got 'fast'"):
        fit(effort="fast")
