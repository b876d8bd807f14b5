"""The optimiser that a guide gives to a loop of one's own."""

import functools
import itertools
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_nflows import AutoFlow, AutoPlanar
from pyro_nflows.guides.optimizer import DecayingAdam, GuideOptim, decay
from tests.guides.test_amortized import EACH, Mean, groups

Y = torch.tensor([0.4, 1.2, -0.3], dtype=torch.float64)


def pair(y: Tensor = Y) -> None:
    """A latent, and a parameter of the model's own."""
    shift = pyro.param("shift", lambda: y.new_zeros(()))
    z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(shift + 0 * z[..., :1], 1.0), obs=y)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def train(guide: AutoFlow, optimizer: Any, num_steps: int, model: Any = pair) -> dict[str, Tensor]:
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    for _ in range(num_steps):
        svi.step()
    return {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}


def test_steps_are_those_of_adam_with_its_schedule() -> None:
    ours, other = (torch.tensor([3.0, -2.0], requires_grad=True) for _ in range(2))
    optimizer = DecayingAdam([ours], lr=0.1, num_steps=40, average=False)
    adam = torch.optim.Adam([other], lr=0.1, betas=(0.9, 0.99))
    for step in range(1, 61):
        for x, opt in ((ours, optimizer), (other, adam)):
            opt.zero_grad()
            ((x - 1) ** 4).sum().backward()  # type: ignore[no-untyped-call]
        adam.param_groups[0]["lr"] = 0.1 * decay(step, 40)
        optimizer.step()
        adam.step()
        assert torch.allclose(ours, other, atol=1e-6)


def test_at_the_end_each_number_is_the_mean_of_its_last_quarter() -> None:
    path = []
    found = []
    for average in (False, True):
        x = torch.tensor(3.0, requires_grad=True)
        optimizer = DecayingAdam([x], lr=0.1, num_steps=40, average=average)
        for _ in range(40):
            optimizer.zero_grad()
            (x - 1).square().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            path.append(x.item())
        found.append(x.item())
    assert found[1] == pytest.approx(sum(path[30:40]) / 10)
    assert found[0] == path[39] != found[1]


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    optimizer = DecayingAdam([x], lr=0.1)
    x.grad = torch.tensor([1.0, torch.nan])
    optimizer.step()
    assert x.tolist() == [1.0, 2.0]
    x.grad = torch.ones(2)
    optimizer.step()
    assert torch.allclose(x, torch.tensor([0.9, 1.9]))


def test_a_closure_is_run_with_gradients() -> None:
    x = torch.tensor(1.0, requires_grad=True)

    def closure() -> Tensor:
        loss = x.square()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert DecayingAdam([x], lr=0.1).step(closure).item() == 1.0
    assert x.item() == pytest.approx(0.9)


def test_it_trains_guide_and_model_together() -> None:
    guide = AutoPlanar(pair, num_layers=2)
    train(guide, guide.optimizer(lr=0.1, num_steps=120), 120)
    assert pyro.param("shift").item() == pytest.approx(Y.mean().item(), abs=1e-3)
    with torch.no_grad():
        assert (guide.get_posterior().sample((4000,)).std(0) - 1).abs().max() < 0.1


@pytest.mark.parametrize("still", ["end", "flow", "model"])
def test_each_part_has_a_step_size_of_its_own(still: str) -> None:
    guide = AutoPlanar(pair, num_layers=2)
    SVI(pair, guide, guide.optimizer(), Trace_ELBO()).evaluate_loss()
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
    after = train(guide, guide.optimizer(lr={still: 0.0}), 3)
    part = {"shift": "model"} | {
        name: "end" if "layer.layers.1." in name else "flow" for name in before if name != "shift"
    }
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (part[name] == still)


def test_steps_taken_together_are_those_of_each_parameter_by_itself() -> None:
    arguments = {"lr": 0.1, "num_steps": 12}
    found = []
    for optimizer in (GuideOptim(DecayingAdam, arguments), PyroOptim(DecayingAdam, arguments)):
        pyro.clear_param_store()
        values = [torch.tensor([3.0, -2.0]), torch.tensor([[1.0]], dtype=torch.float64), torch.zeros(0), torch.ones(2)]
        params = [pyro.param(f"p{i}", value).unconstrained() for i, value in enumerate(values)]
        for step in range(14):
            for i, param in enumerate(params):
                param.grad = 2 * param.detach() * (step + 1 + i)
            if step in (0, 5):  # one that is not finite moves nothing, the first time too
                params[3].grad = torch.tensor([1.0, float("nan")])
            if step == 7:
                params[0].grad = None
            optimizer(params)
        found.append(([param.detach().clone() for param in params], optimizer.get_state()))
    (ours, our_state), (right, right_state) = found
    assert all(torch.equal(a, b) for a, b in zip(ours, right))
    assert our_state.keys() == right_state.keys()
    for name, state in right_state.items():
        kept, other = our_state[name]["state"][0], state["state"][0]
        assert kept.keys() == other.keys()
        assert all(torch.equal(kept[key], other[key]) for key in kept)
        assert our_state[name]["param_groups"] == state["param_groups"]


def test_one_call_moves_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = AutoPlanar(pair, num_layers=2)
    optimizer = guide.optimizer()
    train(guide, optimizer, 1)  # its first step makes the state of each parameter
    calls = []
    monkeypatch.setattr(DecayingAdam, "step", lambda self: calls.append(self))
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
    after = train(guide, optimizer, 1)
    assert not calls
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_an_encoder_is_a_part() -> None:
    y = torch.randn(20, EACH, dtype=torch.float64)
    guide = AutoFlow(groups, amortize=True)
    guide(y)
    before = [parameter.detach().clone() for parameter in guide.amortizer.parameters()]  # type: ignore[union-attr]
    svi = SVI(groups, guide, guide.optimizer(lr={"encoder": 0.0}), Trace_ELBO())
    svi.step(y)
    after = list(guide.amortizer.parameters())  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_training_goes_on_from_a_saved_state_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    guide = AutoPlanar(pair, num_layers=2)
    optimizer = guide.optimizer(num_steps=40)
    train(guide, optimizer, 35)
    optimizer.save(str(tmp_path / "optimizer.pt"))
    pyro.get_param_store().save(str(tmp_path / "params.pt"))
    torch.manual_seed(1)
    right = train(guide, optimizer, 10)

    pyro.clear_param_store()
    again = AutoPlanar(pair, num_layers=2)
    again()
    pyro.get_param_store().load(str(tmp_path / "params.pt"))
    optimizer = again.optimizer(lr=0.5, num_steps=99)
    optimizer.load(str(tmp_path / "optimizer.pt"))
    torch.manual_seed(1)
    found = train(again, optimizer, 10)
    assert found.keys() == right.keys()
    assert all(torch.equal(found[name], right[name]) for name in right)


def test_parameters_that_appear_later_are_trained() -> None:
    calls = itertools.count()

    def model() -> None:
        pair()
        if next(calls) > 20:
            pyro.factor("late_factor", -pyro.param("late", torch.tensor(1.0)).square())

    guide = AutoPlanar(model, num_layers=2)
    optimizer = guide.optimizer(num_steps=30)
    train(guide, optimizer, 30, model)
    assert pyro.param("late").item() < 0.95


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": "fast"}, TypeError, "expected lr to be a number, or a dict of them, got 'fast'"),
        ({"lr": -0.1}, ValueError, "lr must be finite and not negative, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be finite and not negative, got nan"),
        ({"lr": {"base": 0.1}}, ValueError, "lr has no part base; the parts are end, flow, encoder, model"),
        ({"num_steps": 2.5}, TypeError, "num_steps must be a whole number or None, got 2.5"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"average": 3}, TypeError, "average must be True or False, got 3"),
    ],
)
def test_wrong_arguments_are_told(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"AutoPlanar.optimizer: {message}"):
        AutoPlanar(pair, num_layers=2).optimizer(**arguments)


@pytest.mark.slow
def test_minibatches_of_each_row_equally_often_end_at_the_exact_posterior() -> None:
    """200 rows, 20 a step. With one particle, the sd of mu is off by 4% at random."""
    num, size, num_epochs = 200, 20, 300
    y = 1.5 + torch.randn(num, 1, dtype=torch.float64) + torch.randn(num, EACH, dtype=torch.float64)
    model = functools.partial(groups, size=size)
    guide = AutoFlow(model, amortize=Mean())
    loss = Trace_ELBO(8, vectorize_particles=True)
    svi = SVI(model, guide, guide.optimizer(num_steps=num_epochs * num // size), loss)
    for _ in range(num_epochs):
        for index in torch.randperm(num).split(size):
            svi.step(y, index=index)
    with torch.no_grad():
        draws = guide.for_rows(y, size=num, num_samples=40_000)
    mu, z = draws["mu"].reshape(-1), draws["z"][..., 0]

    precision, shrink = num / (1 + 1 / EACH) + 1 / 4, EACH / (EACH + 1)
    mean, sd = y.mean(-1).sum() / (1 + 1 / EACH) / precision, precision**-0.5
    means = shrink * y.mean(-1) + (1 - shrink) * mean
    row_sd = (1 / (EACH + 1) + (1 - shrink) ** 2 / precision) ** 0.5
    correlations = ((z - z.mean(0)) * (mu - mu.mean())[:, None]).mean(0) / z.std(0) / mu.std()
    assert abs(mu.mean() - mean) < 0.05 * sd
    assert abs(mu.std() / sd - 1) < 0.01 + 5 * 0.5**0.5 / len(mu) ** 0.5
    assert ((z.mean(0) - means) / row_sd).square().mean().sqrt() < 0.02
    assert (z.std(0) / row_sd - 1).square().mean().sqrt() < 0.01
    assert (correlations - (1 - shrink) * sd / row_sd).abs().mean() < 0.01
