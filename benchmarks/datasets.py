"""Two-dimensional samples for density estimation, each reproducible from its seed.

Every sampler takes ``(num_samples, seed)`` and returns ``(num_samples, 2)`` in the default dtype.
``ENTROPY`` has, where known, the mean negative log-likelihood that no density estimate can beat.

**References**

[1] M. Johnson et al. (2016). Composing Graphical Models with Neural Networks (the pinwheel).
[2] W. Grathwohl et al. (2019). FFJORD: Free-Form Continuous Dynamics (the others).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class _Draws:
    """A seeded source of float64 arrays, so that the dtype asked for leaves the sample alone."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.generator = torch.Generator().manual_seed(seed)

    def choice(self, num_choices: int) -> Tensor:
        return torch.randint(num_choices, (self.num_samples,), generator=self.generator).double()

    def uniform(self, *shape: int) -> Tensor:
        shape = (self.num_samples, *shape)
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        shape = (self.num_samples, *shape)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)


def _circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)


def _result(x: Tensor) -> Tensor:
    return x.to(torch.get_default_dtype())


def two_moons(num_samples: int, seed: int = 0) -> Tensor:
    """Two interleaved half circles of radius 1, blurred by noise of standard deviation 0.1."""
    draws = _Draws(num_samples, seed)
    lower = draws.choice(2)[:, None]
    upper_moon = _circle(math.pi * draws.uniform())
    lower_moon = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper_moon
    return _result(torch.lerp(upper_moon, lower_moon, lower) + 0.1 * draws.normal(2))


def rings(num_samples: int, seed: int = 0) -> Tensor:
    """Four circles of radius 0.75, 1.5, 2.25 and 3, blurred by noise of standard deviation 0.08."""
    draws = _Draws(num_samples, seed)
    radius = 0.75 * (1 + draws.choice(4)[:, None])
    return _result(radius * _circle(2 * math.pi * draws.uniform()) + 0.08 * draws.normal(2))


def checkerboard(num_samples: int, seed: int = 0) -> Tensor:
    """Uniform on the eight dark unit-step squares, of side 2, of a board on (-4, 4) squared."""
    draws = _Draws(num_samples, seed)
    column = draws.choice(4)
    row = 2 * draws.choice(2) + column % 2
    return _result(2 * (torch.stack([column, row], -1) + draws.uniform(2)) - 4)


def pinwheel(num_samples: int, seed: int = 0) -> Tensor:
    """Five arms, each a stretched normal bent by an angle that grows with the radius [1]."""
    draws = _Draws(num_samples, seed)
    radial, tangential = draws.normal(2).unbind(-1)
    radial, tangential = 1 + 0.3 * radial, 0.1 * tangential
    angle = 2 * math.pi / 5 * draws.choice(5) + 0.25 * radial.exp()
    along, across = _circle(angle), _circle(angle + math.pi / 2)
    return _result(2 * (radial[:, None] * along + tangential[:, None] * across))


def eight_gaussians(num_samples: int, seed: int = 0) -> Tensor:
    """Eight equal normals of standard deviation 0.2, their means on a circle of radius 2."""
    draws = _Draws(num_samples, seed)
    means = 2 * _circle(math.pi / 4 * draws.choice(8))
    return _result(means + 0.2 * draws.normal(2))


DATASETS: dict[str, Callable[[int, int], Tensor]] = {
    "two_moons": two_moons,
    "rings": rings,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    "eight_gaussians": eight_gaussians,
}
"""Every sampler, by name."""

ENTROPY: dict[str, float] = {
    "two_moons": 1.0075843,
    "rings": 2.6231828,
    "checkerboard": math.log(32),
    "eight_gaussians": 1.6980612,
}
"""Differential entropy in nats, where it was computed."""
