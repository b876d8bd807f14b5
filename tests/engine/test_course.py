"""What happens to a fit whose steps are too large, or whose model is not finite: nothing is lost."""

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.engine import Engine, Round, Trainer
from pyro_nflows.engine.course import MAX_RESTARTS
from pyro_nflows.engine.given import BLOCK
from pyro_nflows.inference import fit
from pyro_nflows.inference.elbo import ELBO
from pyro_nflows.inference.fitted import weighed
from pyro_nflows.inference.iwae import IWAE
from pyro_nflows.inference.mark import Mark
from pyro_nflows.inference.plan import Plan
from pyro_nflows.layers import LocScale, TriangularAffine
from pyro_nflows.layers.base import Chain
from pyro_nflows.nets.steps import step_factors
from pyro_nflows.objectives.base import Gradient
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs

# ---- steps that know the dimension --------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 32])
def test_in_few_dimensions_all_steps_are_as_they_were(dim: int) -> None:
    assert set(step_factors(Chain(flows.realnvp(dim), TriangularAffine(dim)))) == {1.0}


@pytest.mark.parametrize("engine", [Engine.EAGER, Engine.TRACED])
def test_the_first_step_of_a_weight_shrinks_with_its_fan_in(engine: Engine) -> None:
    """Adam's first step is the step size, whatever the gradient."""
    dim, layer = 64, Chain(TriangularAffine(64))
    trainer = Trainer(lambda z: -(z @ torch.ones(dim)).square() - z.square().sum(-1), engine=engine, progress_bar=False)
    trainer.run(layer, ELBO(), Gradient.PATH, Round(1, 16, 1e-2), "")
    moved = layer[0].lower.tril(-1).abs()
    torch.testing.assert_close(moved.max(), torch.tensor(0.5e-2), rtol=1e-3, atol=0)
    torch.testing.assert_close(layer[0].loc.abs().max(), torch.tensor(1e-2), rtol=1e-3, atol=0)


# ---- a round ------------------------------------------------------------------------------------------------


def cliff(z: Tensor) -> Tensor:
    """A narrow standard normal on a plain that is 1,000 nats lower: large steps fall off."""
    return torch.where(z.abs().amax(-1) < 6, -0.5 * z.square().sum(-1), -1000.0 - 0 * z.sum(-1))


def trained(rate: float, engine: Engine | None = Engine.EAGER, log_joint: Any = cliff) -> tuple[Chain, Trainer, bool]:
    torch.manual_seed(0)
    layer = Chain(LocScale(2, init_scale=0.9))
    trainer = Trainer(log_joint, engine=engine, progress_bar=False)
    well = trainer.run(layer, ELBO(), Gradient.PATH, Round(600, 8, rate), "")
    return layer, trainer, well


def test_small_steps_never_go_back() -> None:
    _, trainer, well = trained(1e-2)
    assert well
    assert trainer.history.restarts == 0


def test_a_round_whose_steps_are_too_large_goes_back_and_ends_well_with_smaller_ones() -> None:
    layer, trainer, well = trained(6.0)
    assert well
    assert 1 <= trainer.history.restarts <= MAX_RESTARTS
    assert layer[0].loc.abs().max() < 0.3
    assert (layer[0].log_scale.abs() < 0.3).all()


@pytest.mark.parametrize("engine", [Engine.TRACED, Engine.COMPILED])
def test_engines_go_back_at_the_same_steps(engine: Engine) -> None:
    layer, trainer, _ = trained(6.0)
    other, again, _ = trained(6.0, engine)
    assert again.history.restarts == trainer.history.restarts
    torch.testing.assert_close(other[0].loc, layer[0].loc, rtol=1e-6, atol=1e-6)


def test_a_member_that_goes_back_leaves_the_others_alone() -> None:
    """Members of an ensemble have steps of their own."""
    scales = [torch.tensor(1.0), torch.tensor(40.0)]

    def at(scale: Tensor) -> Any:
        return lambda z: cliff(scale * z)

    def run(which: list[int]) -> list[tuple[Tensor, int]]:
        first = Trainer(at(scales[0]), engine=Engine.TRACED, progress_bar=False, data=scales[:1])
        members = [first.at(at(scales[i]), [scales[i]], torch.zeros(2), seed=i) for i in which]
        layers = [Chain(LocScale(2, init_scale=0.02)) for _ in which]
        first.run_many(layers, ELBO(), Gradient.PATH, Round(300, 8, 0.3), "", members)
        return [(layer[0].loc.detach(), member.history.restarts) for layer, member in zip(layers, members)]

    together = run([0, 1])
    assert together[0][1] == 0
    assert together[1][1] > 0
    for i in (0, 1):
        ((loc, restarts),) = run([i])
        assert torch.equal(loc, together[i][0])
        assert restarts == together[i][1]


def test_while_log_p_is_annealed_a_falling_bound_is_no_divergence() -> None:
    trainer = Trainer(lambda z: -1e4 - z.square().sum(-1), engine=Engine.EAGER, progress_bar=False)
    trainer.run(Chain(LocScale(2)), ELBO(), Gradient.PATH, Round(600, 8, 1e-2, annealing=0.8), "")
    elbo = trainer.history.trace()
    assert elbo[0] - elbo[-1] > 9000
    assert trainer.history.restarts == 0


def test_a_round_that_cannot_be_helped_ends_where_it_was_best() -> None:
    """Out of a box there is no density, and the gradient leads out of it, however small the steps."""

    def leads_out(z: Tensor) -> Tensor:
        return torch.where(z.abs().amax(-1) < 1, 100 * z.sum(-1), torch.nan)

    torch.manual_seed(0)
    layer = Chain(LocScale(2, init_scale=0.01))
    before = copy.deepcopy(layer.state_dict())
    trainer = Trainer(leads_out, engine=Engine.EAGER, progress_bar=False)
    well = trainer.run(layer, ELBO(), Gradient.PATH, Round(2000, 8, 1.0), "")
    value = (100 * layer[0].loc.sum()).item()
    assert trainer.history.restarts > 0
    assert layer[0].loc.isfinite().all()
    assert layer[0].loc.abs().max() < 1
    assert value >= (100 * before["layers.0.loc"].sum()).item()
    assert trainer.history.failed is not well


def test_a_model_without_any_value_ends_a_round_at_once() -> None:
    _, trainer, well = trained(1e-2, log_joint=lambda z: z.sum(-1) * torch.nan)
    assert not well
    assert trainer.history.failed
    assert trainer.history.num_steps == BLOCK


# ---- a fit --------------------------------------------------------------------------------------------------


def gaussian_trainer() -> tuple[Trainer, Chain]:
    trainer = Trainer(lambda z: -0.5 * z.square().sum(-1), engine=Engine.EAGER, progress_bar=False)
    return trainer, Chain(LocScale(2))


@pytest.mark.parametrize("spoil", [20.0, math.nan])
def test_a_mark_knows_whether_it_was_better_and_goes_back(spoil: float) -> None:
    trainer, layer = gaussian_trainer()
    mark = Mark(trainer, layer, ELBO(), 1)
    with torch.no_grad():
        layer[0].loc += spoil
    spoilt, state = trainer.sampler.sample(layer, 500), torch.get_rng_state()
    assert mark.was_better(spoilt)
    assert torch.equal(torch.get_rng_state(), state)
    assert not (layer[0].loc.abs() < 1).any()
    mark.go_back()
    assert torch.equal(layer[0].loc, torch.zeros(2))
    assert not mark.was_better(trainer.sampler.sample(layer, 500))
    assert trainer.history.restarts == 1


def test_a_mark_of_something_worse_was_not_better() -> None:
    trainer, layer = gaussian_trainer()
    with torch.no_grad():
        layer[0].loc += 20.0
    mark = Mark(trainer, layer, ELBO(), 1)
    with torch.no_grad():
        layer[0].loc -= 17.0
    assert not mark.was_better(trainer.sampler.sample(layer, 500))


@pytest.mark.parametrize(("objective", "better"), [(ELBO(50), True), (IWAE(50), False)], ids=["ELBO", "IWAE"])
def test_what_is_better_is_what_the_objective_says(objective: ELBO, better: bool) -> None:
    """On a banana, a narrow Gaussian has the higher ELBO by 10 nats, and a wide one the higher IWAE of 50."""

    def banana(z: Tensor) -> Tensor:
        return -(z[:, 0] ** 2) / 200 - 0.5 * (z[:, 1] - 0.03 * (z[:, 0] ** 2 - 100)) ** 2

    trainer = Trainer(banana, engine=Engine.EAGER, progress_bar=False)
    layer = Chain(LocScale(2, torch.tensor([0.0, -2.6])))
    with torch.no_grad():
        layer[0].log_scale.copy_(torch.tensor([3.6, 1.15]).log())
        mark = Mark(trainer, layer, objective, 50)
        layer[0].loc.copy_(torch.tensor([0.0, -1.6]))
        layer[0].log_scale.copy_(torch.tensor([9.26, 3.16]).log())
    assert mark.was_better(trainer.sampler.sample(layer, 22_500)) is better


def test_a_flow_that_ends_worse_gives_way_to_the_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    run_many = Trainer.run_many

    def spoilt(self: Trainer, layers: Any, *args: Any) -> list[bool]:
        well = run_many(self, layers, *args)
        for layer in layers:
            if len(layer) > 1:  # the whole flow, not the Gaussian
                layer[1].loc.data += 50.0
        return well

    monkeypatch.setattr(Trainer, "run_many", spoilt)
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, num_layers=2, hidden_dims=(4,)))
    vi = VI(guide, num_steps=80, engine="eager", seed=0, progress_bar=False).run(PAIRS)
    d = vi.diagnostics()
    assert d["elbo"] == pytest.approx(PAIRS_EVIDENCE, abs=0.05)
    assert d["num_restarts"] >= 1
    assert d["ess"] > 0.9


def test_a_start_that_fails_does_not_stop_the_others() -> None:
    """Starts share a history, but each has its own end."""

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def log_joint(z: Tensor) -> Tensor:
        return torch.where(z[:, 0] > 40, torch.nan, -0.5 * z.square().sum(-1))

    guide = AutoFlow(model, lambda dim: flows.realnvp(dim, num_layers=2, hidden_dims=(4,)))
    guide()
    trainer = Trainer(log_joint, engine=Engine.EAGER, progress_bar=False)
    plan = Plan.asked("VI", num_steps=100, objective=ELBO(8))
    bad, good = fit.fit_all(trainer, guide, plan, [torch.tensor([60.0]), torch.zeros(1)])
    assert bad.failed
    assert not good.failed
    assert float(good.elbo.value) == pytest.approx(0.5 * math.log(2 * math.pi), abs=0.05)


def test_a_failed_fit_says_so() -> None:
    trainer, layer = gaussian_trainer()
    draws = trainer.sampler.sample(layer, 10)
    assert weighed(layer, draws, failed=True).failed
    assert not weighed(layer, draws).failed
