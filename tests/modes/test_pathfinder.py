"""The Gaussian that a fit begins with."""

import math

import pytest
import torch
from torch.distributions import Normal

from pyro_nflows.engine.density_gradient import DensityGradient
from pyro_nflows.modes import pathfinder
from pyro_nflows.modes.averaged import averaged_path
from pyro_nflows.modes.gaussians import Gaussian
from pyro_nflows.modes.pathfinder import best_start

PRECISION = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)


def log_gaussian(z):
    return -0.5 * ((z - 1) @ PRECISION * (z - 1)).sum(-1)


def test_the_best_start_is_the_laplace_approximation_where_that_is_exact():
    init = Gaussian(torch.full((2,), 30.0), 0.1 * torch.eye(2))
    start = best_start(log_gaussian, init)
    assert torch.allclose(start.loc, torch.ones(2), atol=1e-4)
    assert torch.allclose(start.scale_tril @ start.scale_tril.T, torch.linalg.inv(PRECISION), atol=1e-4)


def narrow(dim):
    """A Gaussian whose widths differ by a factor of a thousand, not along the coordinates."""
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.double)).Q
    scale_tril = torch.linalg.cholesky(turned @ torch.logspace(-6, 0, dim, dtype=torch.double).diag() @ turned.T)
    return torch.distributions.MultivariateNormal(torch.full((dim,), 3.0, dtype=torch.double), scale_tril=scale_tril)


def test_a_start_whose_ascent_ended_early_is_moved_by_newtons_steps(monkeypatch):
    """An L-BFGS ascent of three steps is far from the mode of a narrow ridge; the curvature there says where it is."""

    def never(*args, **kwargs):
        raise AssertionError("the ELBO was climbed")

    monkeypatch.setattr(pathfinder, "averaged_path", never)
    exact = narrow(6)
    init = Gaussian(torch.zeros(6, dtype=torch.double), 0.1 * torch.eye(6, dtype=torch.double))
    found = best_start(exact.log_prob, init, num_iterations=3)
    torch.testing.assert_close(found.loc, exact.loc, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.scale_tril, exact.scale_tril, rtol=0, atol=1e-6)


def test_a_start_is_not_moved_to_where_its_elbo_is_lower():
    """The mean gradient of a wide Gaussian over a cliff leaps to where the density is nothing."""
    density, init = lambda z: (z - z.exp()).sum(-1), Gaussian(torch.zeros(1), 3 * torch.eye(1))
    noise = torch.randn(4096, 1, generator=torch.Generator().manual_seed(1))
    found, is_far_off = pathfinder._moved(DensityGradient(density), init, init, init.loc, math.inf)
    assert found.elbo(density, noise) >= init.elbo(density, noise)
    assert is_far_off  # so the ELBO is climbed


def test_a_moved_start_is_still_far_off_where_an_ascent_ended_in_a_denser_place():
    """The Gaussian is moved to the middle of a wide part, and a spike that the ascent has found is not forgotten."""

    def density(z):
        spike = Normal(3.0, 1e-4).log_prob(z) - 2
        return torch.logaddexp(Normal(0.0, 1.0).log_prob(z), spike).sum(-1)

    init = Gaussian(torch.full((1,), 2.0, dtype=torch.double), 0.5 * torch.eye(1, dtype=torch.double))
    spike = torch.full((1,), 3.0, dtype=torch.double)
    found, is_far_off = pathfinder._moved(DensityGradient(density), init, init, spike, math.inf)
    assert abs(float(found.loc)) < 0.5
    assert is_far_off
    assert not pathfinder._moved(DensityGradient(density), init, found, found.loc, math.inf)[1]


def test_the_best_start_is_found_from_where_the_density_overflows():
    """Counts of a Poisson with a log rate of 100: the climb ends where it begins, in steps of no use."""

    def log_joint(z):
        return (3 * z - z.exp()).sum(-1) - 0.5 * z.square().sum(-1) / 1e4

    start = best_start(log_joint, Gaussian(torch.tensor([500.0, 1.0]), 0.1 * torch.eye(2)))
    assert torch.allclose(start.loc, torch.full((2,), math.log(3.0)), atol=0.2)


def test_the_best_start_is_not_fooled_by_a_density_without_a_mode():
    """A centered hierarchy: the density grows without bound as the scale falls, but its mass does not."""

    def log_joint(z):
        log_tau, theta = z[..., 0], z[..., 1:]
        return log_tau - 0.5 * log_tau**2 / 9 - 8 * log_tau - 0.5 * (theta / log_tau.exp()[..., None]).square().sum(-1)

    init = Gaussian(torch.zeros(9), 0.1 * torch.eye(9))
    start = best_start(log_joint, init)
    noise = torch.randn(1000, 9)
    assert start.elbo(log_joint, noise) >= init.elbo(log_joint, noise)
    assert torch.isfinite(start.scale_tril).all()


def test_the_start_is_next_to_the_posterior_where_noise_of_unknown_scale_could_be_met_exactly():
    """Rows with a latent each, ``y ~ N(x, s)``: the density has no bound where all ``y = x`` and ``s`` is zero."""
    y = 1.5 * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def log_joint(z):
        log_s, x = z[..., :1], z[..., 1:]
        noise = Normal(x, log_s.exp()).log_prob(y).sum(-1)
        return noise + Normal(0.0, 1.0).log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(log_s[..., 0])

    log_s, step = torch.linspace(-6, 4, 2001, dtype=torch.float64), 10 / 2000
    rows = Normal(torch.zeros(()), (1 + (2 * log_s).exp()).sqrt()).log_prob(y[:, None]).sum(0)
    log_evidence = float((rows + Normal(0.0, 1.0).log_prob(log_s)).logsumexp(0) + math.log(step))

    dim = 1 + len(y)
    start = best_start(log_joint, Gaussian(torch.zeros(dim), 0.1 * torch.eye(dim)))
    elbo = float(start.elbo(log_joint, torch.randn(2000, dim))) + dim / 2 * math.log(2 * math.pi * math.e)
    assert log_evidence - 3 < elbo < log_evidence + 0.1


@pytest.mark.parametrize("seed", [1, 4])
def test_the_start_of_a_non_centered_hierarchy_is_next_to_the_posterior(seed):
    """Rows ``z ~ N(0, 1)`` and ``y ~ N(mu + s z, e)``: at the mode, ``s`` is several times what the posterior has."""
    num, e = 150, 0.24
    y = 1 + 0.7 * torch.randn(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def prior(mu, log_s):
        return Normal(0.0, 5.0).log_prob(mu) + Normal(0.0, 1.0).log_prob(log_s)

    def log_joint(z):
        mu, log_s, rows = z[..., :1], z[..., 1:2], z[..., 2:]
        noise = Normal(mu + log_s.exp() * rows, e).log_prob(y) + Normal(0.0, 1.0).log_prob(rows)
        return noise.sum(-1) + prior(mu, log_s)[..., 0]

    points = torch.linspace(0.5, 1.5, 300, dtype=torch.float64), torch.linspace(-1.2, 0.5, 300, dtype=torch.float64)
    mu, log_s = torch.meshgrid(*points, indexing="ij")
    both = Normal(mu[..., None], ((2 * log_s).exp() + e**2).sqrt()[..., None]).log_prob(y).sum(-1) + prior(mu, log_s)
    log_evidence = float(both.reshape(-1).logsumexp(0) + math.log(1.0 / 299 * 1.7 / 299))

    torch.manual_seed(seed)
    dim = 2 + num
    start = best_start(log_joint, Gaussian(2 * (2 * torch.rand(dim) - 1), 0.1 * torch.eye(dim)))
    elbo = float(start.elbo(log_joint, torch.randn(1000, dim))) + dim / 2 * math.log(2 * math.pi * math.e)
    assert log_evidence - 3 < elbo < log_evidence + 0.1


def test_the_averaged_climb_ends_at_the_best_gaussian_with_independent_coordinates():
    """Its means are a Gaussian posterior's own, whatever the correlations, since draws come in pairs."""
    density = DensityGradient(log_gaussian)
    (*_, last), widths = averaged_path(density, torch.full((2,), -4.0), torch.full((2,), 0.1))
    assert torch.allclose(last, torch.ones(2), atol=1e-3)
    assert (widths * PRECISION.diagonal().sqrt()).log().abs().max() < 5 * 2**-0.5 * 16**-0.5  # of 16 squares


def test_the_averaged_climb_leaves_random_numbers_as_they_were():
    before = torch.get_rng_state()
    averaged_path(DensityGradient(log_gaussian), torch.zeros(2), torch.ones(2), num_iterations=2)
    assert torch.equal(torch.get_rng_state(), before)
