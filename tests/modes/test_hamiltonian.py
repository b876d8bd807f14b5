"""Hamiltonian trajectories leave the density as it is."""

import torch

from pyro_nflows.modes.hamiltonian import Points, move
from pyro_nflows.numerics import finite


def test_a_trajectory_leaves_the_density_as_it_is():
    torch.manual_seed(0)
    scale = torch.tensor([0.5, 2.0])

    def evaluate(x):
        return -0.5 * (x / scale).square().sum(-1), -x / scale**2

    for beta, variance in ((1.0, scale**2), (0.5, 1 / (0.5 + 0.5 / scale**2))):
        x = variance.sqrt() * torch.randn(20_000, 2)
        points, accepted = move(evaluate, Points(x, *evaluate(x)), 0.4, 4, beta)
        assert 0.8 < accepted < 1
        assert ((points.x.var(0) / variance - 1).abs() < 5 * (2 / 20_000) ** 0.5).all()
        assert torch.allclose(points.log_p, evaluate(points.x)[0])


def test_where_nothing_is_finite_no_trajectory_is_taken():
    x = torch.ones(3, 2)
    points = Points(x, *finite(torch.zeros(3), -x))
    moved, accepted = move(lambda x: finite(torch.full((3,), torch.nan), -x), points, 0.1, 3)
    assert accepted == 0
    assert torch.equal(moved.x, x)
