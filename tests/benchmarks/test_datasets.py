"""The data sets for density estimation: their seeds, shapes and entropies."""

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from benchmarks import datasets


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_a_data_set_is_finite_and_reproducible(name: str) -> None:
    sampler = datasets.DATASETS[name]
    x = sampler(100, 5)
    assert x.shape == (100, 2)
    assert x.isfinite().all()
    assert torch.equal(x, sampler(100, 5))
    assert not torch.equal(x, sampler(100, 6))


def test_the_dtype_does_not_change_a_data_set() -> None:
    wide = {name: sampler(100, 5) for name, sampler in datasets.DATASETS.items()}
    torch.set_default_dtype(torch.float32)
    narrow = {name: sampler(100, 5) for name, sampler in datasets.DATASETS.items()}
    torch.set_default_dtype(torch.float64)
    for name, x in wide.items():
        assert torch.equal(narrow[name], x.float())


def moons_log_density(x: Tensor) -> Tensor:
    angle = math.pi * (torch.arange(200) + 0.5) / 200
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    means = torch.cat([upper, torch.tensor([1.0, 0.5]) - upper])
    return mixture_log_density(x, means, 0.1)


def mixture_log_density(x: Tensor, means: Tensor, sd: float) -> Tensor:
    log_densities = dist.Normal(means, sd).to_event(1).log_prob(x[:, None])
    return log_densities.logsumexp(-1) - math.log(len(means))


def gaussians_log_density(x: Tensor) -> Tensor:
    angle = 2 * math.pi * torch.arange(8) / 8
    return mixture_log_density(x, 2 * torch.stack([angle.cos(), angle.sin()], -1), 0.2)


def rings_log_density(x: Tensor) -> Tensor:
    # a circle of radius c blurred by s has density exp(-(r^2 + c^2) / 2s^2) I0(rc / s^2) / 2 pi s^2
    r, c, s = x.norm(dim=-1)[:, None], torch.tensor([0.75, 1.5, 2.25, 3.0]), 0.08
    log_bessel = torch.special.i0e(r * c / s**2).log() - 0.5 * ((r - c) / s) ** 2
    return log_bessel.logsumexp(-1) - math.log(4 * 2 * math.pi * s**2)


def checkerboard_log_density(x: Tensor) -> Tensor:
    column, row = (x / 2).floor().unbind(-1)
    inside = (x.abs() < 4).all(-1) & ((column + row) % 2 == 0)
    return torch.where(inside, -math.log(32), -math.inf)


@pytest.mark.parametrize(
    ("name", "log_density"),
    [
        ("two_moons", moons_log_density),
        ("rings", rings_log_density),
        ("checkerboard", checkerboard_log_density),
        ("eight_gaussians", gaussians_log_density),
    ],
)
def test_entropy_is_the_mean_negative_log_density(name: str, log_density: Callable[[Tensor], Tensor]) -> None:
    nll = -log_density(datasets.DATASETS[name](10_000, 0))
    tolerance = 5 * nll.std().item() / len(nll) ** 0.5 + 1e-6
    assert nll.mean().item() == pytest.approx(datasets.ENTROPY[name], abs=tolerance)


def test_checkerboard_fills_its_eight_squares_evenly() -> None:
    cells = (datasets.checkerboard(20_000) / 2 + 2).floor().long()
    counts = torch.bincount(4 * cells[:, 0] + cells[:, 1], minlength=16)
    assert (counts > 0).sum() == 8
    assert (counts[counts > 0] / 20_000 - 1 / 8).abs().max() < 0.015


def test_pinwheel_has_five_arms_when_unbent() -> None:
    x = datasets.pinwheel(20_000)
    radius = x.norm(dim=-1) / 2
    angle = torch.atan2(x[:, 1], x[:, 0]) - 0.25 * radius.exp()
    turns = angle * 5 / (2 * math.pi)
    far = radius > 0.7  # nearer the hub an arm is wider than its share of the circle
    assert ((turns - turns.round()).abs()[far] < 0.25).double().mean() > 0.95
    arms = torch.bincount(turns.round().long()[far] % 5, minlength=5) / far.sum()
    assert (arms - 0.2).abs().max() < 0.02
