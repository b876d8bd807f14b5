"""The Gaussian that a fit begins with."""

import torch

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
