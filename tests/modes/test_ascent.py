"""Ascents of a density from many points at once."""

import torch

from pyro_nflows.engine import DensityGradient
from pyro_nflows.modes.ascent import ascend
from pyro_nflows.modes.gaussians import Gaussian


def test_ascents_reach_the_top_of_a_rosenbrock_hill_from_everywhere_in_few_evaluations() -> None:
    def log_joint(z: torch.Tensor) -> torch.Tensor:
        return -((1 - z[:, 0]).square() + 100 * (z[:, 1] - z[:, 0].square()).square())

    torch.manual_seed(0)
    starts = 2 * torch.randn(20, 2, dtype=torch.float64)
    paths = ascend(DensityGradient(log_joint), starts, unit_gaussian(2), 300)
    torch.testing.assert_close(torch.stack([path[0] for path in paths]), starts)
    torch.testing.assert_close(torch.stack([path[-1] for path in paths]), torch.ones_like(starts), atol=0.01, rtol=0)
    heights = [log_joint(path) for path in paths]
    assert all((height.diff() >= 0).all() for height in heights)


def test_in_the_frame_of_a_gaussian_an_ascent_takes_one_step() -> None:
    scale = torch.tensor([[1e-3, 0.0], [5.0, 100.0]], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.ones(2, dtype=torch.float64), scale_tril=scale)
    frame = Gaussian(torch.zeros(2, dtype=torch.float64), scale)
    starts = normal.sample(torch.Size([5]))
    for path in ascend(DensityGradient(normal.log_prob), starts, frame):
        assert len(path) <= 3
        torch.testing.assert_close(path[-1], normal.loc)


def test_ascents_from_where_there_is_no_density_begin_nearer_and_refusals_stop_one_ascent_only() -> None:
    def walled(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z.abs().amax(-1) < 3, -z.square().sum(-1), -torch.inf)

    def refuses(z: torch.Tensor) -> torch.Tensor:
        if (z.abs() > 3).any():
            raise ValueError("out of the support")
        return -z.square().sum(-1)

    starts = torch.tensor([[10.0, 0.0], [1.0, 1.0], [-2.0, 2.0]], dtype=torch.float64)
    for log_joint in (walled, refuses):
        for path in ascend(DensityGradient(log_joint), starts, unit_gaussian(2)):
            torch.testing.assert_close(path[-1], torch.zeros(2, dtype=torch.float64), atol=1e-3, rtol=0)
    nowhere = ascend(DensityGradient(lambda z: torch.full_like(z[:, 0], -torch.inf)), starts, unit_gaussian(2))
    assert [len(path) for path in nowhere] == [1, 1, 1]


def unit_gaussian(dim: int) -> Gaussian:
    return Gaussian(torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64))
