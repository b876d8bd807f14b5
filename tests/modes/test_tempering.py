"""Sequential Monte Carlo reaches the posterior: its evidence, its moments, and every mode by its share."""

import copy
import itertools
import math
import time
from dataclasses import replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from benchmarks.targets import lattice
from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.diagnostics.worth import effective, is_heavy
from pyro_nflows.engine import DensityGradient, Engine, Trainer
from pyro_nflows.flows.whitened import Whitened
from pyro_nflows.inference.fitted import Fit
from pyro_nflows.inference.search import may_help, search
from pyro_nflows.layers import LocScale, Mixture, RowCoupling
from pyro_nflows.model.hierarchy import Hierarchy
from pyro_nflows.modes.gaussians import Gaussian
from pyro_nflows.modes.mixture_em import Clusters, log_densities
from pyro_nflows.modes.mixtures import Modes, find_modes, hull, place_mixture
from pyro_nflows.modes.tempering import temper
from pyro_nflows.numerics import standard_normal_log_prob
from pyro_nflows.objectives.draws import base_noise, draw


def wide(dim: int, scale: float = 3.0) -> Gaussian:
    return Gaussian(torch.zeros(dim, dtype=torch.float64), scale * torch.eye(dim, dtype=torch.float64))


def three_modes(z: torch.Tensor) -> torch.Tensor:
    """Shares 0.6, 0.3, 0.1; the integral is 5."""
    locs = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    log_share = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    parts = -0.5 * (z[:, None] - locs).square().sum(-1) / 0.25 - math.log(2 * math.pi * 0.25)
    return (parts + log_share).logsumexp(-1) + math.log(5.0)


def shares(z: torch.Tensor) -> torch.Tensor:
    nearest = torch.cdist(z, torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]], dtype=z.dtype)).argmin(-1)
    return torch.bincount(nearest, minlength=3) / len(z)


def test_particles_find_the_evidence_and_the_moments_of_a_gaussian() -> None:
    torch.manual_seed(0)
    scale = torch.tensor([[0.1, 0.0], [0.3, 2.0]], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.tensor([5.0, -3.0], dtype=torch.float64), scale_tril=scale)
    tempered = temper(DensityGradient(normal.log_prob), wide(2, 5.0), 4000)
    assert tempered is not None
    assert abs(tempered.log_evidence) < 0.15
    torch.testing.assert_close(tempered.draws.mean(0), normal.loc, atol=0.3, rtol=0)
    torch.testing.assert_close(torch.cov(tempered.draws.T), scale @ scale.T, atol=0.5, rtol=0.2)


def test_particles_find_every_mode_by_its_share() -> None:
    torch.manual_seed(0)
    tempered = temper(DensityGradient(three_modes), wide(2), 4000)
    assert tempered is not None
    assert tempered.log_evidence == pytest.approx(math.log(5.0), abs=0.15)
    torch.testing.assert_close(shares(tempered.draws), torch.tensor([0.6, 0.3, 0.1]), atol=0.08, rtol=0)


def test_particles_give_up_where_there_is_no_density_and_when_time_is_up() -> None:
    nowhere = DensityGradient(lambda z: torch.full_like(z[:, 0], -torch.inf) + 0 * z.sum(-1))
    assert temper(nowhere, wide(2), 100) is None
    assert temper(DensityGradient(three_modes), wide(2), 100, max_seconds=0.0) is None
    assert temper(DensityGradient(three_modes), wide(2), 100, until=time.perf_counter()) is None


def test_particles_take_as_long_as_they_need_where_the_machine_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of processor time, or a verdict would depend on what else runs."""
    clock = itertools.count(0.0, 1e6)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert temper(DensityGradient(three_modes), wide(2), 100, max_seconds=60.0) is not None


def test_particles_keep_away_from_where_the_density_is_not_finite() -> None:
    torch.manual_seed(0)
    half = DensityGradient(lambda z: torch.where(z[:, 0] > 0, torch.nan, -0.5 * z.square().sum(-1)))
    tempered = temper(half, wide(2, 2.0), 2000)
    assert tempered is not None
    assert (tempered.draws[:, 0] <= 0).all()
    assert tempered.log_evidence == pytest.approx(math.log(math.pi), abs=0.2)


def test_a_mixture_layer_has_the_density_of_the_clusters() -> None:
    torch.manual_seed(0)
    scales = torch.linalg.cholesky(torch.eye(2) + 0.5 * torch.ones(2, 2)).double().repeat(3, 1, 1)
    clusters = Clusters(torch.tensor([0.5, 0.3, 0.2]).double(), 4 * torch.randn(3, 2).double(), scales)
    layer = Mixture(2, 3).double()
    place_mixture(layer, Clusters(*(part[None] for part in clusters)))
    drawn = draw(lambda z: log_densities(z, clusters).logsumexp(-1), layer, base_noise(layer, 2000))
    torch.testing.assert_close(drawn.log_weight, torch.zeros_like(drawn.log_weight), atol=1e-10, rtol=0)
    counts = (torch.cdist(drawn.z, clusters.locs).argmin(-1)[:, None] == torch.arange(3)).double().mean(0)
    torch.testing.assert_close(counts, clusters.weights, atol=0.06, rtol=0)


def test_modes_are_taken_jointly_or_one_by_one_as_the_draws_bear_out() -> None:
    torch.manual_seed(0)
    sign = torch.randint(2, (2000, 8)) * 2.0 - 1
    product = 3 * sign + 0.5 * torch.randn(2000, 8)
    assert (find_modes(product).block_dim, find_modes(product).num_components) == (1, 2)
    together = 3 * sign[:, :1] + 0.5 * torch.randn(2000, 8)
    assert (find_modes(together).block_dim, find_modes(together).num_components) == (8, 2)
    assert find_modes(torch.randn(2000, 3) @ torch.randn(3, 3)).num_components == 1


def test_the_hull_holds_the_draws_and_the_modes() -> None:
    torch.manual_seed(0)
    draws = torch.randn(1000, 2, dtype=torch.float64)
    far = Gaussian(torch.tensor([20.0, 0.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    found = hull(draws, [far])
    torch.testing.assert_close(found.loc, torch.tensor([10.0, 0.0], dtype=torch.float64), atol=0.1, rtol=0)
    covariance = found.scale_tril @ found.scale_tril.T / 1.5**2
    torch.testing.assert_close(covariance, torch.tensor([[101.0, 0.0], [0.0, 1.0]]).double(), atol=1.0, rtol=0.02)


@pytest.mark.slow
def test_the_default_finds_the_nine_modes_of_the_lattice_and_a_fresh_guide_takes_the_fit(tmp_path: Path) -> None:
    target = lattice(3)
    vi = VI(AutoFlow(target.model), seed=0, progress_bar=False).run(*target.args)
    found = vi.diagnostics()
    assert found["outcome"] is Outcome.TRUST
    assert found["elbo"] > -0.1
    share = target.modes(vi.get_samples(20_000, resample=False))  # type: ignore[misc]
    assert (share > 1 / 9 / 1.5).all()
    assert (share < 1.5 / 9).all()
    vi.save(tmp_path / "fit.pt")
    loaded = VI.load(tmp_path / "fit.pt", AutoFlow(target.model), *target.args)
    torch.testing.assert_close(loaded.guide.median()["z"], vi.guide.median()["z"])
    assert loaded.get_samples(30_000)["z"].shape == (30_000, 2)


def two_modes(locs: torch.Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 100.0).expand([2]).to_event(1))
    pyro.factor("modes", -0.5 * (z - locs[:, None]).square().sum(-1).amin(0))


@pytest.mark.slow
def test_a_second_run_that_finds_other_modes_puts_the_flow_on_one_mixture_still(tmp_path: Path) -> None:
    guide = AutoFlow(two_modes)
    vi = VI(guide, seed=0, progress_bar=False).run(torch.tensor([-5.0, 5.0]))
    found = vi.run(torch.tensor([-30.0, 60.0])).diagnostics()
    assert found["outcome"] in (Outcome.TRUST, Outcome.TAILS)  # of so even weights, k-hat is noise
    assert found["ess"] > 0.9
    assert sum(isinstance(part, Mixture) for part in guide.modules()) == 1
    first = vi.get_samples(10_000)["z"][:, 0]
    below, above = math.exp(-0.09), math.exp(-0.36)
    assert (first < 0).double().mean() == pytest.approx(below / (below + above), abs=5 * 0.005)
    vi.save(tmp_path / "fit.pt")
    fresh = AutoFlow(two_modes)
    VI.load(tmp_path / "fit.pt", fresh, torch.tensor([-30.0, 60.0]))
    torch.testing.assert_close(fresh.median()["z"], guide.median()["z"])


def test_a_state_decides_whether_a_guide_has_modes() -> None:
    plain, modal = AutoFlow(two_modes), AutoFlow(two_modes)
    for guide in (plain, modal):
        guide(torch.tensor([-5.0, 5.0]))
    modal.modes = (2, 2)
    modal.adopt(modal.make_layer(torch.zeros(2), modal.modes))
    states = [copy.deepcopy(guide.state_dict()) for guide in (plain, modal)]
    plain.load_state_dict(states[1])
    modal.load_state_dict(states[0])
    assert (plain.modes, modal.modes) == ((2, 2), None)
    assert [any(isinstance(part, Mixture) for part in guide.modules()) for guide in (plain, modal)] == [True, False]


@pytest.mark.parametrize("refusal", [ValueError("out of support"), torch.linalg.LinAlgError("not positive-definite")])
def test_a_second_fit_that_fails_leaves_the_first(refusal: Exception) -> None:
    def refit(modes: Modes) -> Fit:
        raise refusal

    torch.manual_seed(0)
    layer = Whitened(LocScale(2), LocScale(2)).double()
    trainer, guide = Trainer(three_modes, [], Engine.EAGER, False), AutoFlow(two_modes)
    guide(torch.tensor([-5.0, 5.0]))
    fit = Fit(layer, trainer.sampler.sample(layer, 1000), torch.zeros(1000, dtype=torch.bool))
    assert search(trainer, guide, fit, False, refit).fit is fit


def test_particles_that_collapsed_have_no_modes() -> None:
    one = torch.zeros(100, 2, dtype=torch.float64)
    with pytest.raises((RuntimeError, ValueError)):
        find_modes(one)


def rows_of_two() -> None:
    with pyro.plate("rows", 10):
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


@pytest.mark.parametrize(("slope", "expected"), [(0.3, True), (3.0, False)])
def test_a_mixture_that_is_far_worse_than_a_poor_fit_is_not_tried(slope: float, expected: bool) -> None:
    """The logarithm of a width follows another coordinate: a little, so that a mixture does as well, or steeply."""
    torch.manual_seed(0)
    guide = AutoFlow(rows_of_two)
    guide()
    rows = RowCoupling(Hierarchy.of(guide.latents)).double()
    with torch.no_grad():
        rows.nets["0"].skip.copy_(torch.tensor([[0.0], [slope]]).expand(10, 2, 1))
    layer = Whitened(rows, LocScale(20).double())
    draws = draw(lambda z: torch.zeros(len(z), dtype=z.dtype), layer, base_noise(layer, 4000))
    fit = Fit(layer, replace(draws, log_p=draws.log_q), torch.zeros(4000, dtype=torch.bool))
    assert may_help(guide, fit) is expected


@pytest.mark.parametrize("is_far", [False, True])
def test_one_gaussian_is_begun_at_again_only_where_weights_cannot_be_relied_on(is_far: bool) -> None:
    """Of a fit that is a little too wide they can be, and not where a coordinate has a Cauchy's tails."""
    torch.manual_seed(0)
    guide = AutoFlow(rows_of_two)
    guide()
    layer = Whitened(LocScale(20), LocScale(20, init_scale=1.1)).double()
    more = torch.distributions.Cauchy(0.0, 1.0).log_prob if is_far else lambda x: -0.5 * x.square()
    with torch.no_grad():
        draws = draw(lambda z: standard_normal_log_prob(z[:, 1:]) + more(z[:, 0]), layer, base_noise(layer, 4000))
    assert is_heavy(draws.log_weight, effective(draws.log_weight)) is is_far
    assert may_help(guide, Fit(layer, draws, torch.zeros(4000, dtype=torch.bool))) is is_far


def many() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([100]).to_event(1))


@pytest.mark.parametrize(("width", "expected"), [(1.1, False), (3.0, True)])
def test_a_fit_of_many_latents_begins_again_only_where_its_draws_say_nothing(width: float, expected: bool) -> None:
    guide = AutoFlow(many)
    guide()
    layer = Whitened(LocScale(100), LocScale(100, init_scale=width)).double()
    torch.manual_seed(0)
    draws = draw(standard_normal_log_prob, layer, base_noise(layer, 4000))
    assert may_help(guide, Fit(layer, draws, torch.zeros(4000, dtype=torch.bool))) is expected
