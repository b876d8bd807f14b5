r"""Hierarchies whose posterior is known, mean and standard deviation of every row too.

Rows :math:`z_i \sim N(\mu, \tau)` are observed with noise of a known sd, and of some only the size is known, not the
sign: :math:`y_i \sim N(\pm z_i, s)`. Given :math:`\mu` and :math:`\tau` a row is a mixture of two normals, whose mass,
mean and variance are known; these are integrated over a grid of :math:`\mu` and :math:`\log \tau`.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

#: Points of the grid along each of its sides, and half of its width in standard deviations.
NUM_POINTS, HALF_WIDTH = 160, 7.0

#: Mean and standard deviation of each site, in unconstrained space.
Truth = dict[str, tuple[Tensor, Tensor]]


class Rows(NamedTuple):
    """Data of rows: what is observed, with which noise, and which of them have no sign."""

    y: Tensor
    sd: float
    unsigned: Tensor | None = None

    @staticmethod
    def simulated(num: int, sd: float, tau: float = 1.0, unsigned: tuple[int, ...] = ()) -> "Rows":
        """Rows around 1; of those that are listed, whose size is made 2.5, the sign is not known."""
        generator = torch.Generator().manual_seed(0)
        y = 1 + tau * torch.randn(num, generator=generator) + sd * torch.randn(num, generator=generator)
        if not unsigned:
            return Rows(y, sd)
        no_sign = torch.zeros(num, dtype=torch.bool)
        y[list(unsigned)], no_sign[list(unsigned)] = 2.5, True
        return Rows(y, sd, no_sign)


def model(rows: Rows, size: int | None = None) -> None:
    """The hierarchy, of which a run takes so many rows; all for None."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(rows.y), subsample_size=size) as i:
        z = pyro.sample("z", dist.Normal(mu, tau))
        if rows.unsigned is None:
            pyro.sample("y", dist.Normal(z, rows.sd), obs=rows.y[i])
            return
        signs = dist.Normal(torch.stack([z, torch.where(rows.unsigned[i], -z, z)], -1), rows.sd)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.full((2,), 0.5)), signs), obs=rows.y[i])


def exact(rows: Rows) -> Truth:
    """Of mu, log tau and every row."""
    y = rows.y.double()
    no_sign = torch.zeros(len(y), dtype=torch.bool) if rows.unsigned is None else rows.unsigned
    chance = torch.where(no_sign, 0.5, 0.0).double()
    signed, log_chance = torch.stack([y, -y]), torch.stack([(1 - chance).log(), chance.log()])

    def log_density(mu: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """At a grid: the log density, and of each row that of each sign."""
        total = (2 * t).exp() + rows.sd**2
        parts = log_chance - 0.5 * (total.log()[..., None, None] + _square(signed, mu) / total[..., None, None])
        return parts.logsumexp(-2).sum(-1) - 0.5 * (mu / 5) ** 2 - 0.5 * t**2, parts

    mu, t = _grid(lambda mu, t: log_density(mu, t)[0], float(y.mean()), float(y.std()) / len(y) ** 0.5)
    log_p, parts = log_density(mu, t)
    weight, share = log_p.softmax(0)[:, None], parts.softmax(-2)
    tau2 = (2 * t).exp()[:, None, None]
    variance = tau2 * rows.sd**2 / (tau2 + rows.sd**2)
    mean = (tau2 * signed + rows.sd**2 * mu[:, None, None]) / (tau2 + rows.sd**2)
    first, second = (share * mean).sum(-2), (share * (mean**2 + variance)).sum(-2)
    row = (weight * first).sum(0), (weight * second).sum(0)
    found = {"z": (row[0], (row[1] - row[0] ** 2).sqrt())}
    for name, value in (("mu", mu), ("tau", t)):
        center = (weight[:, 0] * value).sum()
        found[name] = center, (weight[:, 0] * (value - center) ** 2).sum().sqrt()
    return found


def _square(signed: Tensor, mu: Tensor) -> Tensor:
    return (signed - mu[..., None, None]).square()


def _grid(log_density: Callable[[Tensor, Tensor], Tensor], center: float, width: float) -> tuple[Tensor, Tensor]:
    """Points of mu and log tau that cover the posterior: a wide grid first, then one about its mean."""
    places, widths = [center, 0.0], [width, 0.5]
    for _ in range(4):
        sides = [
            place + HALF_WIDTH * wide * torch.linspace(-1, 1, NUM_POINTS // 2, dtype=torch.float64)
            for place, wide in zip(places, widths)
        ]
        mu, t = (side.reshape(-1) for side in torch.meshgrid(*sides, indexing="ij"))
        weight = torch.cat([log_density(a, b) for a, b in zip(mu.split(500), t.split(500))]).softmax(0)
        places = [float(weight @ value) for value in (mu, t)]
        widths = [float((weight @ (value - place) ** 2).sqrt()) for value, place in zip((mu, t), places)]
    return mu, t
