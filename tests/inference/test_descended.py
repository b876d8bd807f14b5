"""The Gaussian that a fit begins from, and guides that are Gaussians, by a Wasserstein gradient flow."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow, AutoWasserstein, flows
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.engine import Look, Round
from pyro_nflows.flows.whitened import Whitened
from pyro_nflows.inference.descended import can_descend, clusters_of, descended, place
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.running import Fitter
from pyro_nflows.inference.schedule import Schedule
from pyro_nflows.layers import TriangularAffine
from pyro_nflows.modes.mixture_em import Clusters
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs

DATA = torch.tensor([0.5, 2.0, 1.2, 0.1, 0.7], dtype=torch.float64)


def skewed(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(y.new_tensor(2.0), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Exponential(rate), obs=y)


def located(y: Tensor) -> None:
    loc = pyro.param("loc", lambda: y.new_tensor(0.0))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y[0])


def two_modes(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(y.new_zeros(2), 10.0).to_event(1))
    parts = [-0.5 * ((z - m) / s).square().sum() - 2 * torch.tensor(s).log() for m, s in ((3.0, 0.5), (-3.0, 1.0))]
    pyro.factor("modes", torch.logaddexp(*parts))


def line(guide: AutoFlow, **options: Any) -> VI:
    return VI(guide, **{"seed": 0, "engine": "traced", "progress_bar": False, **options})


def test_a_gaussian_posterior_is_exact() -> None:
    vi = line(AutoWasserstein(pairs)).run(PAIRS)
    assert vi.diagnostics()["outcome"] is Outcome.TRUST
    assert vi.diagnostics()["iwae"] == pytest.approx(PAIRS_EVIDENCE, abs=1e-3)
    torch.testing.assert_close(vi.guide.median()["z"], PAIRS / 2, atol=0.02, rtol=0)


def test_the_way_is_kept_and_its_bound_rises() -> None:
    vi = line(AutoWasserstein(skewed)).run(DATA)
    trace = vi.history.trace()
    assert len(vi.history.path) == len(trace) + 1 >= 3
    assert bool((trace.diff() > -1e-3).all())
    weights, locs, scales = vi.history.path[-1]
    assert weights.tolist() == [1.0]
    assert (locs.shape, scales.shape) == ((1, 1), (1, 1, 1))
    # the best Gaussian of a log rate whose density is that of a gamma of shape a = 7: m = log(a / b) - s / 2, s = 1 / a
    a, b = 7.0, 1.0 + float(DATA.sum())
    assert float(scales) ** 2 == pytest.approx(1 / a, rel=1e-3)
    assert float(locs) == pytest.approx(float(torch.tensor(a / b).log()) - 0.5 / a, abs=1e-3)


def test_a_flow_begins_from_the_best_gaussian_without_a_step_of_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schedule, "of", lambda *_: Schedule(rounds=(Round(20, 16, 1e-3),), num_samples=1000))
    looks: list[Look] = []
    vi = line(AutoFlow(skewed, lambda dim: flows.realnvp(dim, 2, (4,))), callback=looks.append).run(DATA)
    assert (looks[0].title, looks[0].step) == ("flow", 20)
    assert vi.history.descent >= 1
    assert not vi.history.path


def test_a_sentence_says_that_the_gaussian_was_right() -> None:
    def nearly(y: Tensor) -> None:
        z = pyro.sample("z", dist.StudentT(y.new_full((3,), 60.0), 1.0, 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 0.2).to_event(1), obs=y[:3])

    vi = line(AutoFlow(nearly)).run(DATA)
    assert vi.diagnostics()["num_steps"] == 0
    assert vi.diagnostics()["outcome"] is Outcome.TRUST


def test_counts_on_a_field_of_many_cells_have_the_best_gaussian() -> None:
    """Its precision is the prior's and the mean rates, and its gradient is zero (Opper and Archambeau, 2009)."""
    at = torch.linspace(0.0, 1.0, 70, dtype=torch.float64)
    covariance = (-(at[:, None] - at).abs() / 0.3).exp()
    counts = torch.poisson((2 * (6 * at).sin()).exp(), torch.Generator().manual_seed(0))

    def cox(y: Tensor) -> None:
        field = pyro.sample("field", dist.MultivariateNormal(torch.zeros_like(y), covariance))
        pyro.sample("y", dist.Poisson(field.exp()).to_event(1), obs=y)

    guide, plan = AutoFlow(cox, end="full"), Plan.asked("VI", engine="eager", seed=0, progress_bar=False)
    with Fitter(guide).ready(plan, ((counts,), {}), lambda _: None) as ready:
        layer = guide.plain_layer()
        path = descended(ready.trainer, layer)
    assert path is not None
    assert path.arrived
    end = layer.end
    loc, scale = end.loc.detach(), end.scale_tril().detach()
    found = scale @ scale.T
    rate = (loc + found.diagonal() / 2).exp()
    precision = torch.linalg.inv(covariance) + rate.diag()
    torch.testing.assert_close(found.diagonal(), torch.linalg.inv(precision).diagonal(), rtol=0.05, atol=0.0)
    off = torch.linalg.solve(precision, counts - rate - torch.linalg.solve(covariance, loc))
    assert float((off / found.diagonal().sqrt()).abs().max()) < 0.05


def test_a_gaussian_that_is_the_best_already_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh draws may put the end of its way below it by their noise; it was then trained by Adam, for nothing."""
    guide, plan = AutoFlow(skewed), Plan.asked("VI", engine="eager", seed=0, progress_bar=False)
    with Fitter(guide).ready(plan, ((DATA,), {}), lambda _: None) as ready:
        layer, bounds = guide.plain_layer(), iter([0.0, 1.0, 0.0, -1.0])
        monkeypatch.setattr("pyro_nflows.inference.descended._bound", lambda *_: next(bounds))
        assert descended(ready.trainer, layer) is not None
        before = [parameter.detach().clone() for parameter in layer.parameters()]
        again = descended(ready.trainer, layer)
    assert again is not None
    assert again.arrived
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


def test_as_many_steps_are_taken_as_are_asked_for() -> None:
    vi = line(AutoWasserstein(skewed), num_steps=2).run(DATA)
    assert vi.history.num_steps == 2


@pytest.mark.slow
def test_a_mixture_has_both_modes() -> None:
    vi = line(AutoWasserstein(two_modes, num_components=4)).run(DATA)
    assert vi.diagnostics()["outcome"] is Outcome.TRUST
    z = vi.get_samples(4000)["z"]
    share = float((z[:, 0] > 0).double().mean())
    assert share == pytest.approx(0.5, abs=5 * (0.25 / 4000) ** 0.5 + 0.01)
    assert float(z[z[:, 0] > 0].std(0).mean()) == pytest.approx(0.5, rel=0.06)


def test_it_applies_to_full_rank_ends_of_models_without_parameters() -> None:
    for model, guide, applies in (
        (skewed, AutoFlow(skewed), True),
        (located, AutoFlow(located), False),
        (skewed, AutoFlow(skewed, structure="joint", build=flows.iaf), True),
    ):
        pyro.clear_param_store()
        plan = Plan.asked("VI", engine="eager", seed=0, progress_bar=False)
        with Fitter(guide).ready(plan, ((DATA,), {}), lambda _: None) as ready:
            assert can_descend(ready.trainer, guide.plain_layer()) is applies, model


def test_a_model_that_is_random_given_its_latents_is_left_to_adam() -> None:
    def noisy(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 1.0))
        pyro.factor("noise", z * torch.randn(()).double())

    guide, plan = AutoFlow(noisy), Plan.asked("VI", engine="eager", seed=0, progress_bar=False)
    with Fitter(guide).ready(plan, ((DATA,), {}), lambda _: None) as ready:
        assert not can_descend(ready.trainer, guide.plain_layer())


@pytest.mark.parametrize("num", [1, 3])
def test_a_layer_is_the_mixture_that_it_is_put_at(num: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Whitened(flows.gaussians(2, num), TriangularAffine(2)).double()
    locs, factors = torch.randn(num, 2, generator=generator), torch.randn(num, 2, 2, generator=generator)
    scales = factors.tril(-1) + torch.diag_embed(factors.diagonal(dim1=-2, dim2=-1).exp())
    given = Clusters(*(part.double() for part in (torch.rand(num, generator=generator).softmax(0), locs, scales)))
    with torch.no_grad():
        layer.end.loc.add_(0.3)
        layer.end.log_scale.sub_(0.2)
    place(layer, given)
    for found, expected in zip(clusters_of(layer), given):
        torch.testing.assert_close(found, expected)


def test_components_that_are_fresh_begin_apart() -> None:
    found = clusters_of(Whitened(flows.gaussians(2, 3), TriangularAffine(2)))
    assert len(found.locs.unique(dim=0)) == 3


def test_a_run_that_is_killed_and_run_again_comes_to_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = line(AutoWasserstein(skewed)).run(DATA)
    judge = Fitter.judge

    def killed(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(Fitter, "judge", killed)
    with pytest.raises(SystemExit):
        line(AutoWasserstein(skewed), checkpoint=tmp_path / "fit.pt").run(DATA)
    monkeypatch.setattr(Fitter, "judge", judge)
    again = line(AutoWasserstein(skewed), checkpoint=tmp_path / "fit.pt").run(DATA)
    assert torch.equal(again.log_weight, expected.log_weight)
    assert torch.equal(again.history.trace(), expected.history.trace())


def test_six_hundred_latents_that_are_all_tied_need_no_training() -> None:
    dim, generator = 600, torch.Generator().manual_seed(0)
    factors = torch.randn(200, dim, generator=generator, dtype=torch.float64) / 20
    y = factors @ torch.randn(dim, generator=generator, dtype=torch.float64)

    def model(factors: Tensor, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(y.new_zeros(dim), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(factors @ z, 1.0).to_event(1), obs=y)

    vi = VI(AutoFlow(model), seed=0, progress_bar=False).run(factors, y)
    assert isinstance(vi.guide.plain_layer().end, TriangularAffine)
    found = vi.diagnostics()
    assert found["outcome"] is Outcome.TRUST
    assert found["num_steps"] == 0
    covariance = torch.linalg.inv(torch.eye(dim, dtype=torch.float64) + factors.T @ factors)
    z, sd = vi.get_samples(4000)["z"], covariance.diagonal().sqrt()
    assert float(((z.mean(0) - covariance @ factors.T @ y) / sd).abs().max()) < 5 / 4000**0.5
    assert float((z.std(0) / sd - 1).abs().max()) < 5 / 8000**0.5
