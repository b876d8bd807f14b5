r"""Synthetic targets whose normaliser, moments or mode masses are known.

Each function returns a :class:`Target`: a Pyro model, its arguments and the answer. Constants hold
what has no closed form; all are checked by quadrature or simulation in the tests. Tensors have the
default dtype of the moment the target is made.

**References**

[1] D. Rezende, S. Mohamed (2015). Variational Inference with Normalizing Flows.
[2] A. Caterini et al. (2021). Variational Inference with Continuously-Indexed Normalizing Flows.
[3] R. Neal (2003). Slice Sampling.
[4] F. Noe et al. (2019). Boltzmann Generators.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks.posteriordb_models import flat

Samples = Mapping[str, Tensor]


@dataclass(frozen=True)
class Target:
    """A Pyro model with a known answer; what is not known is ``None`` or absent.

    :param model: a Pyro model, called with ``args``.
    :param args: its arguments.
    :param log_z: log of the integral of the joint density over the latent variables.
    :param mean: site to mean, of the shape of the site.
    :param sd: site to standard deviation.
    :param modes: maps draws, site to ``(S, ...)``, to each mode's share, the modes last.
    :param mode_masses: the shares under the target itself.
    """

    model: Callable[..., None]
    args: tuple[Any, ...] = ()
    log_z: float | None = None
    mean: dict[str, Tensor] = field(default_factory=dict)
    sd: dict[str, Tensor] = field(default_factory=dict)
    modes: Callable[[Samples], Tensor] | None = None
    mode_masses: Tensor | None = None


def _moments(**values: Any) -> dict[str, Tensor]:
    return {name: torch.as_tensor(v, dtype=torch.get_default_dtype()) for name, v in values.items()}


def _half_shares(samples: Samples, site: str) -> Tensor:
    positive = (samples[site] > 0).double().mean(0)
    return torch.stack([1 - positive, positive], -1)


def _nearest_shares(samples: Samples, means: Tensor) -> Tensor:
    nearest = torch.cdist(samples["z"].to(means), means).argmin(-1)
    return torch.bincount(nearest, minlength=len(means)) / len(nearest)


# Rezende and Mohamed's four energies


def _u1(z1: Tensor, z2: Tensor) -> Tensor:
    # vector_norm, for its gradient at the origin is 0 where that of sqrt and hypot is not a number
    radius = torch.linalg.vector_norm(torch.stack([z1, z2]), dim=0)
    lobes = torch.logaddexp(-0.5 * ((z1 - 2) / 0.6) ** 2, -0.5 * ((z1 + 2) / 0.6) ** 2)
    return 0.5 * ((radius - 2) / 0.4) ** 2 - lobes


def _wave(z1: Tensor) -> Tensor:
    return torch.sin(0.5 * math.pi * z1)


def _u2(z1: Tensor, z2: Tensor) -> Tensor:
    return 0.5 * ((z2 - _wave(z1)) / 0.4) ** 2


def _u3(z1: Tensor, z2: Tensor) -> Tensor:
    offset, bump = z2 - _wave(z1), 3 * torch.exp(-0.5 * ((z1 - 1) / 0.6) ** 2)
    return -torch.logaddexp(-0.5 * (offset / 0.35) ** 2, -0.5 * ((offset + bump) / 0.35) ** 2)


def _u4(z1: Tensor, z2: Tensor) -> Tensor:
    offset, step = z2 - _wave(z1), 3 * torch.sigmoid((z1 - 1) / 0.3)
    return -torch.logaddexp(-0.5 * (offset / 0.4) ** 2, -0.5 * ((offset + step) / 0.35) ** 2)


_ENERGIES = {1: _u1, 2: _u2, 3: _u3, 4: _u4}
_STRIP = 8 * math.sqrt(2 * math.pi)  # the length of |z1| <= 4 times a unit normal's integral
_ENERGY_LOG_Z = {
    1: 1.8775016261100201,
    2: math.log(_STRIP * 0.4),
    3: math.log(_STRIP * (0.35 + 0.35)),
    4: math.log(_STRIP * (0.4 + 0.35)),
}
_ENERGY_Z2 = {
    2: (0.0, math.sqrt(0.66)),
    3: (-0.2819956000614823, 0.882863835028347),
    4: (-0.5250023804088908, 1.4167575236705905),
}


def _energy_model(index: int) -> None:
    support = constraints.real if index == 1 else constraints.interval(-4.0, 4.0)
    z1 = pyro.sample("z1", flat(support))
    z2 = pyro.sample("z2", flat())
    pyro.factor("energy", -_ENERGIES[index](z1, z2))


def energy(index: int) -> Target:
    r"""One of the energies :math:`U_1` to :math:`U_4` [1], density :math:`\exp(-U) / Z`.

    The first has two modes, near :math:`z_1 = \pm 2`. The others are kept to
    :math:`|z_1| \le 4`, on which :math:`z_1` is uniform.

    :param index: 1, 2, 3 or 4.
    """
    if index > 1:
        mean, sd = _ENERGY_Z2[index]
        mean_and_sd = _moments(z1=0.0, z2=mean), _moments(z1=8 / math.sqrt(12), z2=sd)
        return Target(_energy_model, (index,), _ENERGY_LOG_Z[index], *mean_and_sd)
    return Target(
        _energy_model,
        (1,),
        _ENERGY_LOG_Z[1],
        _moments(z1=0.0, z2=0.0),
        _moments(z1=1.817553740972617, z2=1.1812187898133972),
        partial(_half_shares, site="z1"),
        torch.tensor([0.5, 0.5]),
    )


# Many modes


def _lattice_model(means: Tensor, scale: float) -> None:
    # not MixtureSameFamily: biject_to has no transform for its support
    scales, logits = torch.full_like(means, scale), torch.zeros_like(means[:, 0])
    pyro.sample("z", dist.MixtureOfDiagNormals(means, scales, logits))


def lattice(side: int) -> Target:
    """An equal mixture of ``side ** 2`` normals of standard deviation 0.25 on a square lattice [2].

    A fit that misses all but ``m`` of ``K`` modes has an ELBO of ``-log(K / m)`` at best.

    :param side: 3 for means on (-2, 0, 2), or 4 for means on (-3, -1, 1, 3).
    """
    ticks = torch.arange(side) * 2.0 - (side - 1)
    means = torch.cartesian_prod(ticks, ticks)
    sd = math.sqrt(0.25**2 + (side**2 - 1) / 3)
    return Target(
        _lattice_model,
        (means, 0.25),
        0.0,
        _moments(z=[0.0, 0.0]),
        _moments(z=[sd, sd]),
        partial(_nearest_shares, means=means),
        torch.full((side**2,), 1 / side**2),
    )


def _many_well_model(num_pairs: int) -> None:
    with pyro.plate("pair", num_pairs):
        x = pyro.sample("x", flat())
        pyro.factor("well", 0.5 * x + 6 * x**2 - x**4 + 0.5 * math.log(2 * math.pi))
        pyro.sample("v", dist.Normal(0.0, 1.0))


def many_well(num_pairs: int) -> Target:
    r"""Pairs of density :math:`\exp(x / 2 + 6 x^2 - x^4 - v^2 / 2)`, two wells in each ``x`` [4].

    ``modes`` returns ``(num_pairs, 2)``: the shares of the left and right well of each pair.
    """
    ones = torch.ones(num_pairs)
    right = 0.8443070962111392
    return Target(
        _many_well_model,
        (num_pairs,),
        10.293479707073868 * num_pairs,
        {"x": 1.1879609833761464 * ones, "v": 0 * ones},
        {"x": 1.244409415130292 * ones, "v": ones},
        partial(_half_shares, site="x"),
        torch.tensor([1 - right, right]).expand(num_pairs, 2),
    )


# One mode, awkward shapes


def _funnel_model(dim: int) -> None:
    z0 = pyro.sample("z0", dist.Normal(0.0, 3.0))
    with pyro.plate("coordinate", dim - 1):
        pyro.sample("z", dist.Normal(0.0, torch.exp(0.5 * z0)))


def funnel(dim: int = 10) -> Target:
    r"""Neal's funnel [3]: :math:`z_0 \sim N(0, 3)`, the others :math:`N(0, \exp(z_0 / 2))`."""
    ones = torch.ones(dim - 1)
    sd = {**_moments(z0=3.0), "z": math.exp(9 / 4) * ones}
    return Target(_funnel_model, (dim,), 0.0, {**_moments(z0=0.0), "z": 0 * ones}, sd)


def _banana_model() -> None:
    z0 = pyro.sample("z0", dist.Normal(0.0, 10.0))
    pyro.sample("z1", dist.Normal(0.03 * (z0**2 - 100), 1.0))


def banana() -> Target:
    r"""A parabola: :math:`z_0 \sim N(0, 10)`, :math:`z_1 \sim N(0.03 (z_0^2 - 100), 1)`."""
    return Target(_banana_model, (), 0.0, _moments(z0=0, z1=0), _moments(z0=10, z1=math.sqrt(19)))


def _student_t_model(df: Tensor, dim: int) -> None:
    pyro.sample("z", dist.MultivariateStudentT(df, torch.zeros(dim), torch.eye(dim)))


def student_t(df: float, dim: int) -> Target:
    """A multivariate Student-t with unit scale; its moments are left out where infinite."""
    mean = {"z": torch.zeros(dim)} if df > 1 else {}
    sd = {"z": torch.full((dim,), math.sqrt(df / (df - 2)))} if df > 2 else {}
    return Target(_student_t_model, (torch.tensor(float(df)), dim), 0.0, mean, sd)


def _gaussian_model(scale_tril: Tensor) -> None:
    loc = torch.zeros(len(scale_tril))
    pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))


def gaussian(dim: int, condition_number: float, seed: int = 0) -> Target:
    """A rotated Gaussian whose variances along its axes run from 1 to ``condition_number``."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    variances = torch.logspace(0, math.log10(condition_number), dim, dtype=torch.float64)
    covariance = (rotation * variances) @ rotation.T
    scale_tril = torch.linalg.cholesky(covariance).to(torch.get_default_dtype())
    sd = _moments(z=covariance.diagonal().sqrt())
    return Target(_gaussian_model, (scale_tril,), 0.0, {"z": torch.zeros(dim)}, sd)
