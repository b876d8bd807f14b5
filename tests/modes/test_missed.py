"""Missed modes are found from elsewhere, with their mass; where nothing is missed, nothing is found."""

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.inference.search import NUM_ASCENTS
from pyro_nflows.layers import LocScale, Planar
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.feasible import prior_points
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.modes.gaussians import frame_of
from pyro_nflows.modes.missed import missed_regions, scattered


def two_modes(share: float) -> dist.MixtureSameFamily:
    weights = torch.tensor([1 - share, share], dtype=torch.float64)
    means = torch.tensor([[0.0, 0.0], [6.0, -6.0]], dtype=torch.float64)
    parts = dist.Normal(means, 1.0).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(weights), parts)


def model(share: float) -> None:
    z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
    pyro.factor("modes", two_modes(share).log_prob(z))


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_missed_mode_is_found_with_its_mass(share: float) -> None:
    first = LocScale(2).double()  # the first mode, exactly
    points = [torch.tensor([5.0, -4.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    missed = missed_regions(two_modes(share).log_prob, first, math.log(1 - share), points)[0]
    torch.testing.assert_close(missed.gaussian.loc, torch.tensor([6.0, -6.0], dtype=torch.float64), atol=0.01, rtol=0)
    assert missed.mass == pytest.approx(share / (1 - share), rel=1e-3)


def test_nothing_is_missed_by_the_exact_guide() -> None:
    layer = LocScale(2).double()
    normal = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    draws = torch.randn(1000, 2, dtype=torch.float64)
    assert missed_regions(normal.log_prob, layer, 0.0, scattered(draws, 6)) == []


def test_points_are_scattered_around_the_draws_and_the_origin() -> None:
    torch.manual_seed(0)
    draws = 100 + 2 * torch.randn(1000, 3, dtype=torch.float64)
    points = torch.stack(scattered(draws, 90))
    assert points.shape == (90, 3)
    assert (points[60:].abs() < 2).all()
    for i, sd in enumerate((20, 40, 80)):
        assert (points[i:60:3] - 100).std() == pytest.approx(sd, rel=0.3)


def test_a_mode_far_off_is_found_in_five_dimensions() -> None:
    torch.manual_seed(0)
    away = torch.full((5,), 20 / 5**0.5, dtype=torch.float64)
    parts = dist.Normal(torch.stack([0 * away, away]), 1.0).to_event(1)
    both = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.5, 0.5], dtype=torch.float64)), parts)
    points = scattered(torch.randn(1000, 5, dtype=torch.float64), NUM_ASCENTS)
    missed = missed_regions(both.log_prob, LocScale(5).double(), math.log(0.5), points)
    torch.testing.assert_close(missed[0].gaussian.loc, away, atol=0.01, rtol=0)


def test_a_flow_without_an_inverse_or_evidence_is_left_alone() -> None:
    class OneWay(Planar):
        has_inverse = False  # type: ignore[assignment]

    points = [torch.zeros(2, dtype=torch.float64)]
    assert missed_regions(two_modes(0.5).log_prob, OneWay(2).double(), 0.0, points) == []
    assert missed_regions(two_modes(0.5).log_prob, LocScale(2).double(), -math.inf, points) == []


def test_a_model_that_refuses_points_far_out_is_no_obstacle() -> None:
    def refuses(z: torch.Tensor) -> torch.Tensor:
        if z.abs().max() > 5:
            raise RuntimeError("cholesky failed")
        return dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1).log_prob(z)

    points = [torch.full((2,), 20.0, dtype=torch.float64), torch.full((2,), 4.9, dtype=torch.float64)]
    assert missed_regions(refuses, LocScale(2).double(), 0.0, points) == []


def test_the_verdict_names_a_missed_mode(tmp_path: Path) -> None:
    guide = AutoFlow(model, lambda dim: flows.realnvp(dim, 2, (4,)), init_scale=0.1)
    vi = VI(guide, num_steps=100, engine="eager", seed=0, progress_bar=False).run(0.5)
    assert vi.diagnostics()["ess"] > 0.9  # the draws alone say nothing
    assert vi.diagnostics()["outcome"] is Outcome.MODE_MISSED
    assert "has another mode" in vi.verdict().sentence
    torch.testing.assert_close(vi.posterior.missed.share, 0.5, atol=0.05, rtol=0)


def test_points_are_drawn_from_the_prior_as_far_as_it_has_one() -> None:
    def hierarchy(y: torch.Tensor) -> None:
        tau = pyro.sample("tau", dist.LogNormal(1.0, 0.5))
        with pyro.plate("groups", 3):
            pyro.sample("theta", dist.Normal(10.0, tau))
        flat = pyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(flat, 1.0), obs=y)

    guide = AutoFlow(hierarchy)
    guide(torch.tensor(5.0))
    torch.manual_seed(0)
    points = torch.stack(prior_points(BoundModel(hierarchy, (torch.tensor(5.0),)), guide.latents, 1000))
    assert points.shape == (1000, 5)
    assert points[:, 0].mean() == pytest.approx(1.0, abs=5 * 0.5 / 1000**0.5)
    assert points[:, 0].std() == pytest.approx(0.5, rel=0.15)
    sd = float(((points[:, 1:4] - 10) / points[:, :1].exp()).std())
    assert sd == pytest.approx(1.0, rel=0.1)


def test_two_modes_ninety_standard_deviations_apart_are_both_found_where_the_prior_says_how_far_to_look() -> None:
    def wide(locs: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 100.0).expand([2]).to_event(1))
        pyro.factor("modes", -0.5 * (z - locs[:, None]).square().sum(-1).amin(0))

    torch.manual_seed(0)
    guide, locs = AutoFlow(wide), torch.tensor([-30.0, 60.0])
    guide(locs)
    layer = LocScale(2, init_loc=-30.0)
    points = prior_points(BoundModel(wide, (locs,)), guide.latents, NUM_ASCENTS // 4)
    joint = LogJoint(BoundModel(wide, (locs,)), guide.latents)
    missed = missed_regions(joint, layer, 0.0, points)
    torch.testing.assert_close(missed[0].gaussian.loc, torch.tensor([60.0, 60.0]), atol=0.1, rtol=0)


@pytest.mark.parametrize("num", [1, 2, 500])
def test_the_frame_of_few_or_flat_draws_is_a_gaussian_still(num: int) -> None:
    torch.manual_seed(0)
    draws = torch.randn(num, 4) * torch.tensor([1.0, 1.0, 0.0, 1e-3])
    frame = frame_of(draws)
    assert torch.isfinite(frame.scale_tril).all()
    assert (frame.scale_tril.diagonal() > 0).all()
    torch.testing.assert_close(frame.whitened(frame.points(torch.ones(3, 4))), torch.ones(3, 4), atol=1e-2, rtol=0)


def rounded(z: torch.Tensor) -> torch.Tensor:
    """Two modes in single precision, the second of them nothing but rounding."""
    right = dist.Normal(torch.zeros(2, dtype=z.dtype), 1.0).to_event(1).log_prob(z)
    return right if z.dtype == torch.float64 else two_modes(0.5).log_prob(z.double()).to(z)


def test_a_region_that_double_precision_does_not_know_is_not_missed() -> None:
    points, layer = [torch.tensor([5.0, -4.0], dtype=torch.float32)], LocScale(2).float()
    assert missed_regions(rounded, layer, math.log(0.5), points) != []
    assert missed_regions(rounded, layer, math.log(0.5), points, precise=lambda z: rounded(z.double())) == []


def cancelling(z: torch.Tensor) -> torch.Tensor:
    """A standard normal with huge terms that cancel far below zero, but for rounding; in double precision too."""
    huge = (-4 * z[:, 1]).exp()
    left = huge * (z[:, 0] + 0.1) - huge * z[:, 0] - huge * 0.1
    return dist.Normal(torch.zeros(2, dtype=z.dtype), 1.0).to_event(1).log_prob(z) + left


def test_a_region_of_rounding_is_not_missed_though_double_precision_has_it_too() -> None:
    torch.manual_seed(0)
    points = [torch.tensor([0.3 * i, -12.0], dtype=torch.float32) for i in range(12)]
    assert missed_regions(cancelling, LocScale(2).float(), 0.0, points, precise=lambda z: cancelling(z.double())) == []
    assert missed_regions(cancelling, LocScale(2), 0.0, [point.double() for point in points]) == []


def test_a_real_mode_is_missed_in_double_precision_too() -> None:
    points, layer = [torch.tensor([5.0, -4.0], dtype=torch.float32)], LocScale(2).float()
    real = two_modes(0.5).log_prob
    single, double = (lambda z: real(z.double()).to(z)), (lambda z: real(z.double()))
    precise = missed_regions(single, layer, math.log(0.5), points, precise=double)
    assert precise[0].mass == pytest.approx(1.0, rel=1e-3)


def test_a_density_that_overflows_is_not_believed() -> None:
    def overflows(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > 4.9, torch.inf, two_modes(0.5).log_prob(z))

    points = [torch.tensor([5.0, -4.0], dtype=torch.float64)]
    assert missed_regions(overflows, LocScale(2).double(), math.log(0.5), points) == []


def far_apart() -> None:
    """Modes of exp(1/2) : 1, as people write them; the second derivative of ``logaddexp`` is NaN at both."""
    x = pyro.sample("x", dist.Normal(torch.zeros(6, dtype=torch.float64), 1.0).to_event(1))
    first, second = (-0.5 * ((x[..., 0] - at) / 0.3).square() for at in (-4.0, 4.0))
    pyro.factor("modes", torch.logaddexp(first + 0.5, second))


def test_a_mode_is_found_where_the_density_cannot_be_derived_twice() -> None:
    vi = VI(AutoFlow(far_apart), seed=0, progress_bar=False).run()
    share = (vi.get_samples(4000)["x"][:, 0] > 0).double().mean()
    assert vi.verdict().outcome.is_trusted
    assert float(share) == pytest.approx(1 / (1 + math.exp(0.5)), abs=5 * (0.24 / 4000) ** 0.5)
