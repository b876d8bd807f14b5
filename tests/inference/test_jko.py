"""Densities of data and posteriors by mass that is moved block by block."""

import copy
import functools
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import IWAE, VI, AutoFlow, AutoJKO, FlowDistribution, fit_jko, flows
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.engine import History, Journal, Look
from pyro_nflows.flows.whitened import Whitened
from pyro_nflows.inference.jko import JKOFit
from pyro_nflows.inference.moved import can_move, move
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.running import Fitter
from pyro_nflows.layers import Elementwise
from pyro_nflows.testing import perturbed
from pyro_nflows.transformers import RationalQuadratic

#: Blocks that are quick to train, of the plane and of coordinates by themselves.
SMALL = functools.partial(flows.realnvp, num_layers=2, hidden_dims=(8,))
ALONE = functools.partial(Elementwise, transformer=RationalQuadratic(16, 4.0))


def two_modes(share: float = 0.3) -> None:
    """Of one coordinate, at -2 and 2."""
    shares, locs = torch.tensor([share, 1 - share]).double(), torch.tensor([-2.0, 2.0]).double()
    pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(shares), dist.Normal(locs, 0.5)))


def skewed(num: int) -> torch.Tensor:
    """A banana, turned and moved."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, num, generator=generator, dtype=torch.float64)
    return torch.stack([3 * x + 1, y + x**2], -1)


def fit(x: Any, **kwargs: Any) -> JKOFit:
    flow = flows.jko(2, 3, build=SMALL, inverted=True).double()
    return fit_jko(x, flow, **{"num_steps": 150, "seed": 0, "engine": "traced", "progress_bar": False, **kwargs})


def test_data_are_moved_to_a_normal_and_their_density_is_found() -> None:
    x = skewed(6000)
    found = fit(x[:5000])
    assert len(found.log_probs) == len(found.path) == len(found.distances) + 1 >= 2
    assert all(after > before for before, after in zip(found.log_probs, found.log_probs[1:]))
    with torch.no_grad():
        log_prob = FlowDistribution(found.layer).log_prob(x[5000:])
    truth = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    u = (x[5000:, 0] - 1) / 3
    exact = truth.log_prob(torch.stack([u, x[5000:, 1] - u**2], -1)) - torch.tensor(3.0).log()
    assert 0 < float((exact - log_prob).mean()) < 0.15
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x[5000:])
    assert float((log_prob - gaussian).mean()) > 0.3
    whitened = found.path[0][0]
    torch.testing.assert_close(whitened.T.cov(), torch.eye(2).double(), atol=0.35, rtol=0)


def test_the_first_bound_is_that_of_the_gaussian_and_data_may_be_arrays() -> None:
    x = skewed(400)
    found = fit(x.numpy(), num_steps=1, lr=1e-9)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x)
    assert found.log_probs[0] == pytest.approx(float(gaussian.mean()), abs=5 * float(gaussian.std()) / 80**0.5)
    assert found.arrived


def test_data_may_be_a_data_frame_and_a_fit_prints_a_line() -> None:
    pandas = pytest.importorskip("pandas")
    x = skewed(60)
    frame = pandas.DataFrame(x.numpy(), columns=["a", "b"])
    found, same = (fit(data, num_steps=1, lr=1e-9) for data in (x, frame))
    assert found.log_probs == same.log_probs
    assert repr(found).startswith("JKOFit(")
    assert len(repr(found)) < 150


def test_the_same_seed_gives_the_same_fit() -> None:
    x = skewed(400)
    flow = flows.jko(2, 1, build=SMALL, inverted=True).double()
    results = [
        fit_jko(x, copy.deepcopy(flow), num_steps=20, seed=seed, engine="eager", progress_bar=False).log_probs
        for seed in (0, 0, 1)
    ]
    assert results[0] == results[1] != results[2]


def test_an_interrupt_leaves_the_blocks_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_nflows.inference import transport

    train, calls = transport.Mover._train, []

    def interrupted(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return train(self, *args)

    monkeypatch.setattr(transport.Mover, "_train", interrupted)
    found = fit(skewed(2000))
    assert len(found.distances) == 1
    assert not found.arrived


def test_mistakes_in_data_and_flow_are_told() -> None:
    x, flow = skewed(50), flows.jko(2, 1, (4,), inverted=True).double()
    for data, message in (
        (x[:, 0], r"shape \(N, D\) with more than 2 D rows, got \(50,\)"),
        (x[:4], r"got \(4, 2\)"),
        (torch.where(x == x[3], torch.nan, x), "1 rows of the data have no finite values"),
        (torch.stack([x[:, 0], 2 * x[:, 0]], -1), "constant or depends linearly"),
        (torch.stack([x[:, 0], torch.ones(50)], -1), "constant or depends linearly"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_jko(data, flow)
    with pytest.raises(TypeError, match=r"expected flows\.jko\(2, inverted=True\), got Chain"):
        fit_jko(x, flows.realnvp(2))  # type: ignore[arg-type]
    for wrong, message in (
        (flows.jko(3, 1, inverted=True), "2 columns, but the flow 3 dimensions"),
        (flows.jko(2, 1), r"use flows\.jko\(\.\.\., inverted=True\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_jko(x, wrong)
    for kwargs, message in (({"lr": 0}, "lr"), ({"num_steps": 0}, "num_steps"), ({"engine": "fast"}, "engine")):
        with pytest.raises(ValueError, match=message):
            fit_jko(x, flow, **kwargs)  # type: ignore[arg-type]
    with torch.no_grad():
        flow.in_order()[0].net.bias.fill_(1.0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="trained already"):
        fit_jko(x, flow)


def test_data_as_they_are_and_other_dtypes() -> None:
    flow = flows.jko(1, 1, (4,), whitened=False, inverted=True)
    x = np.random.default_rng(0).integers(0, 9, (300, 1))
    found = fit_jko(x, flow, num_steps=2, seed=0, engine="eager", progress_bar=False)
    assert found.path[0][0].max() > 7
    assert found.layer.end.loc.item() == 0


def guide(model: Any = two_modes, **kwargs: Any) -> AutoJKO:
    return AutoJKO(model, 4, build=ALONE, init_loc_fn=lambda site: torch.zeros(()).double(), **kwargs)


def asked(**kwargs: Any) -> Plan:
    return Plan.asked("VI", **{"engine": "eager", "seed": 0, "progress_bar": False, **kwargs})


def moved(each: AutoFlow, plan: Plan, journal: Journal | None = None) -> tuple[Whitened, History]:
    """A guide's flow after its blocks are trained, without all that comes before and after in a fit."""
    with Fitter(each).ready(plan, ((), {}), lambda _: None) as ready:
        layer, trainer = each.plain_layer(), ready.trainer
        trainer.journal = journal or trainer.journal
        torch.manual_seed(0)
        move(trainer, layer, plan)
        trainer.journal.write()
    return layer, trainer.history


def test_mass_that_begins_on_both_sides_finds_both_modes() -> None:
    wide = guide(functools.partial(two_modes, 0.5), whitened=False, init_scale=2.0)
    layer, history = moved(wide, asked(num_steps=900, engine="traced"))
    assert all(after > before for before, after in zip(history.bounds, history.bounds[1:]))
    assert history.bounds[-1] > -0.15
    with torch.no_grad():
        z = FlowDistribution(layer).sample((4000,))
    assert float((z > 0).double().mean()) == pytest.approx(0.5, abs=5 * (0.25 / 4000) ** 0.5 + 0.02)
    first, last = history.path[0][0], history.path[-1][0]
    assert first.std().item() == pytest.approx(2.0, rel=0.15)
    assert (last.abs() - 2).abs().mean() < 0.6


@pytest.mark.slow
def test_a_fit_is_judged_and_misses_nothing() -> None:
    vi = VI(guide(whitened=False, init_scale=2.0), seed=0, engine="traced", progress_bar=False).run()
    assert vi.diagnostics()["outcome"] is Outcome.TRUST
    share = float((vi.get_samples(4000)["z"] > 0).double().mean())
    assert share == pytest.approx(0.7, abs=5 * (0.21 / 4000) ** 0.5)


def located(y: torch.Tensor) -> None:
    loc = pyro.param("loc", y.new_tensor(0.0))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_blocks_are_trained_one_by_one_where_they_can_be() -> None:
    one = torch.tensor(1.0).double()
    for model, data, plan, applies in (
        (two_modes, (), asked(), True),
        (two_modes, (), asked(annealing=0.5), False),
        (two_modes, (), asked(objective=IWAE(4)), False),
        (two_modes, (), asked(optim=torch.optim.SGD), False),
        (located, (one,), asked(), False),
    ):
        each = guide(model)
        with Fitter(each).ready(plan, (data, {}), lambda _: None) as ready:
            layer = each.plain_layer()
            assert can_move(ready.trainer, layer, plan) is applies
            assert not can_move(ready.trainer, perturbed(lambda: layer, 0.1), plan)  # noqa: B023


def test_steps_are_shared_out_and_a_callback_ends_them() -> None:
    looks: list[Look] = []

    def look(at: Look) -> bool:
        looks.append(at)
        return at.title == "block 2"

    _, history = moved(guide(whitened=False, init_scale=2.0), asked(num_steps=400, callback=look))
    assert [(at.title, at.step) for at in looks] == [("block 1", 50), ("block 1", 100), ("block 2", 50)]
    assert history.rounds == [100, 150]
    assert history.stopped
    assert 2 <= len(history.bounds) <= 3


def test_a_run_that_is_killed_goes_on_from_the_block_that_it_was_at() -> None:
    plan, kept = asked(num_steps=60), list[Any]()
    each = AutoFlow(two_modes, functools.partial(flows.jko, num_blocks=2, build=ALONE, whitened=False))
    first = moved(each, plan, Journal(kept.append))
    again = moved(each, plan, Journal(kept.append, state=kept[0]))
    for before, after in zip(first[0].parameters(), again[0].parameters()):
        assert torch.equal(before, after)
    assert torch.equal(first[1].trace(), again[1].trace())
    assert first[1].bounds == again[1].bounds
    assert len(first[1].bounds) > 1
