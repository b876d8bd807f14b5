"""Wasserstein gradient flows of Gaussians and mixtures: against exact posteriors, the flow's equation, and autograd."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_nflows.engine.density_gradient import DensityGradient
from pyro_nflows.modes.mixture_em import Clusters, log_densities
from pyro_nflows.modes.wasserstein import descend, even_points, slope, stepped


def gaussian(dim: int, seed: int = 0) -> MultivariateNormal:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(dim, dim, generator=generator, dtype=torch.float64).tril(-1)
    scales = torch.logspace(-2, 1, dim, dtype=torch.float64)
    loc = 3 * torch.randn(dim, generator=generator, dtype=torch.float64)
    return MultivariateNormal(loc, scale_tril=scales[:, None] * (factor + torch.eye(dim)))


def standard(dim: int, num: int = 1) -> Clusters:
    """Components beside one another."""
    locs = torch.linspace(-0.5, 0.5, num)[:, None].expand(num, dim) if num > 1 else torch.zeros(1, dim)
    return Clusters(*(part.double() for part in (torch.full((num,), 1 / num), locs, torch.eye(dim).repeat(num, 1, 1))))


def separate(z: Tensor) -> Tensor:
    """Two normals, 0.3 of N(4, 0.5) and 0.7 of N(-4, 1), in each of two coordinates."""
    parts = [
        MultivariateNormal(z.new_full((2,), m), s**2 * torch.eye(2).to(z)).log_prob(z) for m, s in ((4, 0.5), (-4, 1))
    ]
    return torch.logaddexp(parts[0] + math.log(0.3), parts[1] + math.log(0.7))


def test_points_have_the_moments_of_a_standard_normal() -> None:
    x = even_points(256, 5, torch.zeros(1).double())
    torch.testing.assert_close(x.mean(0), torch.zeros(5).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(x.T @ x / 256, torch.eye(5).double(), atol=1e-12, rtol=0)
    assert torch.equal(x, even_points(256, 5, x))


def test_a_gaussian_posterior_is_reached_whatever_its_units() -> None:
    target = gaussian(5)
    path = descend(DensityGradient(target.log_prob), standard(5), even_points(256, 5, target.loc))
    assert path.arrived
    assert len(path.step_sizes) < 40
    assert path.elbos[-1] == pytest.approx(0.0, abs=1e-3)
    whitened = torch.linalg.solve_triangular(target.scale_tril, path.end.scale_trils[0], upper=False)
    torch.testing.assert_close(whitened, torch.eye(5).double(), atol=0.02, rtol=0)
    away = torch.linalg.solve_triangular(target.scale_tril, (path.end.locs[0] - target.loc)[:, None], upper=False)
    assert float(away.norm()) < 0.02  # standard deviations, as a bound within 1e-3 has it
    assert all(after > before - 1e-3 for before, after in zip(path.elbos, path.elbos[1:]))


def test_small_steps_follow_the_equation_of_the_flow() -> None:
    """m' = E[grad log p], S' = 2 I + S E[hess] + E[hess] S, of a density whose curvature varies."""

    def log_prob(z: Tensor) -> Tensor:
        return -(z - 1).square().sum(-1) - 0.1 * z.pow(4).sum(-1) - 0.3 * z.prod(-1)

    at, noise = standard(2), even_points(4096, 2, torch.zeros(1).double())
    at = at._replace(scale_trils=torch.tensor([[[0.8, 0.0], [0.3, 0.6]]]).double())
    size, eye = 1e-5, torch.eye(2).double()[None]
    ahead = stepped(at, slope(DensityGradient(log_prob), at, noise), size, eye, weighs=False)
    z = (at.locs + noise @ at.scale_trils[0].T).requires_grad_()
    gradient = torch.autograd.grad(log_prob(z).sum(), z, create_graph=True)[0]
    curvature = torch.stack(
        [torch.autograd.grad(gradient[:, i].sum(), z, retain_graph=True)[0].mean(0) for i in (0, 1)]
    )
    assert ahead is not None
    before, after = (c.scale_trils[0] @ c.scale_trils[0].T for c in (at, ahead))
    torch.testing.assert_close((ahead.locs - at.locs)[0] / size, gradient.mean(0).detach(), atol=1e-3, rtol=1e-3)
    moved = 2 * eye[0] + before @ curvature + curvature @ before
    torch.testing.assert_close((after - before) / size, moved, atol=0.03, rtol=0.03)  # Stein's identity over points


@pytest.mark.parametrize("num", [1, 3])
def test_the_slope_is_that_of_autograd(num: int) -> None:
    generator = torch.Generator().manual_seed(1)
    at, noise = standard(3, num), even_points(64, 3, torch.zeros(1).double())
    at = at._replace(scale_trils=at.scale_trils + 0.3 * torch.randn(num, 3, 3, generator=generator).double().tril())
    target = gaussian(3)
    found = slope(DensityGradient(target.log_prob), at, noise)
    assert found.elbo == pytest.approx(float(at.weights @ found.gains))
    for k in range(num):
        z = (at.locs[k] + noise @ at.scale_trils[k].T).requires_grad_()
        own = MultivariateNormal(at.locs[k], scale_tril=at.scale_trils[k]).log_prob(z)
        log_ratio = target.log_prob(z) - log_densities(z, at).logsumexp(-1)
        assert found.gains[k] == pytest.approx(float(log_ratio.detach().mean()))
        gradient = torch.autograd.grad((log_ratio + own).sum(), z)[0]
        torch.testing.assert_close(found.gradient[k], gradient.mean(0))
        stein = torch.linalg.solve(at.scale_trils[k].T, noise.T @ gradient / len(noise))
        torch.testing.assert_close(found.curvature[k], 0.5 * (stein + stein.T))


def test_a_mixture_has_the_modes_and_their_shares() -> None:
    noise = even_points(512, 2, torch.zeros(1).double())
    start = standard(2, 2)._replace(locs=torch.tensor([[2.0, 2], [-2, -2]]).double())
    path = descend(DensityGradient(separate), start, noise)
    assert path.arrived
    torch.testing.assert_close(path.end.weights, torch.tensor([0.3, 0.7]).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(path.end.locs, torch.tensor([[4.0, 4], [-4, -4]]).double(), atol=1e-2, rtol=0)
    scales = path.end.scale_trils.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(scales, torch.tensor([[0.5, 0.5], [1, 1]]).double(), atol=1e-2, rtol=0)
    assert path.elbos[-1] == pytest.approx(0.0, abs=1e-3)


def test_a_fixed_metric_goes_the_same_way_in_smaller_steps() -> None:
    target = MultivariateNormal(torch.ones(2).double(), torch.diag(torch.tensor([1.0, 0.25]).double()))
    eye, noise = torch.eye(2).double(), even_points(64, 2, target.loc)
    path = descend(DensityGradient(target.log_prob), standard(2), noise, 400, eye, step_size=0.1)
    # the mean of a coordinate of precision a goes as exp(-a t)
    t = sum(path.step_sizes[:5])
    assert path.clusters[5].locs[0, 0] == pytest.approx(1 - (1 - 0.1) ** (t / 0.1), abs=1e-9)
    torch.testing.assert_close(path.end.locs[0], target.loc, atol=0.05, rtol=0)


def test_a_density_that_is_nowhere_finite_stays_where_it_is() -> None:
    path = descend(DensityGradient(lambda z: z.sum(-1) * math.nan), standard(2), even_points(64, 2, torch.zeros(1)))
    assert not path.arrived
    assert len(path.clusters) == 1
