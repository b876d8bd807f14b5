r"""Which site is to blame? Posteriors that have no density to fit, or none that numbers can hold.

A flat prior on what the data do not inform has no posterior: the bound grows as the guide widens, for ever. A latent on
the very edge of its support has a posterior, but numbers of 32 or 64 bits end before it does. And a latent of trillions
beside one of trillionths asks too much of step sizes. The weights see that something is wrong; here it gets a name.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.distributions import constraints

from ..diagnostics.worth import worth_of_each
from ..guides import AutoFlow
from ..model.feasible import first_bad_site
from ..model.log_joint import LogJoint
from ..model.supports import of_one_number
from ..numerics import LogDensity
from ..objectives.draws import Draws

#: How far out, in widths, a density must have fallen: along a coordinate, and across, where a direction has an error.
FAR, FAR_ACROSS = 1e6, 1e3
#: And in a coordinate that is the logarithm of something: farther out, its exponential is no number.
FAR_IN_LOGS = 60.0
#: Directions in which a density is flattest.
NUM_FLATTEST = 3
#: A density that has fallen by less, beside what a tail of one over the distance would, cannot be integrated.
NATS = 5.0
#: A curvature across that is so many times a rounding error of the largest is none.
ROUNDING = 1e3
#: What a density may have fallen by since half the way, for it not to fall: along a logarithm, a share for rounding,
#: but less than a prior's tail falls; else what a tail that can just be integrated falls by, and half of that.
LEVEL, FALL, DOUBLING = 1e-4, 0.25 * FAR_IN_LOGS / 2, 1.5 * math.log(2.0)
#: An error of the way from unconstrained space and back that says a number has no digits left, and how many may.
LOST, FEW = 0.1, 0.01
#: Draws that are looked at for it.
NUM_DRAWS = 2000
#: Scales that step sizes can follow.
SMALLEST, LARGEST = 1e-6, 1e6
#: Supports that end: no density on them is too wide.
BOUNDED = (
    constraints.interval,
    constraints.half_open_interval,
    type(constraints.simplex),
    type(constraints.corr_cholesky),
    type(pyro_constraints.corr_matrix),
    type(pyro_constraints.sphere),
)
#: More coordinates than these are not tried one by one.
MAX_WAYS = 2500
#: Points at once.
ROWS = 250
#: A share of the entries of a site that may be little known.
CHANCE = 0.05
#: The matrix of second derivatives at a point.
Hessian = Callable[[Tensor], Tensor]


@torch.no_grad()
def runs_away(log_joint: LogDensity, hessian: Hessian, guide: AutoFlow, draws: Draws) -> tuple[str, ...]:
    """The sites along which the log density does not fall; none if it does everywhere.

    Along each coordinate, and along the directions in which the density is flattest, both ways.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param hessian: of it, at a point.
    :param guide: knows the sites.
    :param draws: of the fit.
    """
    if guide.latents.dim > MAX_WAYS:
        return ()
    z, top, height = draws.z[torch.isfinite(draws.log_p)], draws.z[draws.log_p.argmax()], float(draws.log_p.max())
    try:
        directions, distances, widths = _ways(hessian(top), guide, z)
        ends = top + distances[:, None] * directions
        half = top + 0.5 * distances[:, None] * directions
        far, near = (_values(log_joint, points) for points in (ends, half))
    except (ValueError, RuntimeError):  # so far out, the model may refuse to be evaluated
        return ()
    there = far + (distances.abs() / widths).log().double() > height - NATS
    fallen = torch.where(distances.abs() == FAR_IN_LOGS, (LEVEL * (1 + near.abs())).clamp(max=FALL), DOUBLING)
    level = far > near - fallen
    moved = (ends - top).norm(dim=-1) > 0.5 * distances.abs()  # or numbers have no digits left for the step
    shares = directions[there & level & moved & (far < torch.inf)].abs()
    endless = [(name, at) for name, at in columns(guide) if not isinstance(_base(guide, name), BOUNDED)]
    return tuple(name for name, at in endless if bool((shares[:, at] > 0.3).any()))


def _values(log_joint: LogDensity, points: Tensor) -> Tensor:
    return torch.cat([log_joint(rows).double() for rows in points.split(ROWS)])


def _ways(hessian: Tensor, guide: AutoFlow, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Directions, how far to go along each, and how wide draws and density are there."""
    dim, hessian = z.shape[1], hessian.nan_to_num(0.0, 0.0, 0.0)
    axes, flattest = torch.eye(dim).to(z), torch.eye(dim).to(z)[:0]
    if not torch.equal(hessian, hessian.diag().diag()):
        values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.T))
        flattest = vectors.T[values.abs().argsort()[:NUM_FLATTEST]]
    directions = torch.cat([axes, flattest])
    curvature = ((directions @ hessian) * directions).sum(-1).abs()
    curvature[dim:] *= curvature[dim:] > ROUNDING * torch.finfo(z.dtype).eps * hessian.abs().max()
    curved = curvature.rsqrt()
    widths = torch.maximum((z @ directions.T).std(0), torch.where(torch.isfinite(curved), curved, 0.0))
    distances = torch.cat([FAR * widths[:dim], FAR_ACROSS * widths[dim:]])
    logs = [i for name, at in columns(guide) if not _is_line(guide, name) for i in range(at.start, at.stop)]
    directions, widths = torch.cat([directions, axes[logs]]), torch.cat([widths, widths[logs]])
    distances = torch.cat([distances, torch.full_like(widths[len(distances) :], FAR_IN_LOGS)])
    return torch.cat([directions, directions]), torch.cat([distances, -distances]), widths.repeat(2)


@torch.no_grad()
def on_the_edge(guide: AutoFlow, z: Tensor) -> tuple[str, float] | None:
    """The first site whose draws lie so close to the edge of its support that numbers end there, and their share."""
    for name, at in columns(guide):
        latent = guide.latents.sites[name]
        transform, part = latent.transform, z[:NUM_DRAWS, at].reshape(-1, *latent.shape)
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            error = (transform.inv(transform(part)) - part).abs() - 1e-3 * part.abs()
            share = float((error.nan_to_num(torch.inf) > LOST).reshape(len(part), -1).double().mean(0).max())
            if share > FEW:
                return name, share
    return None


def not_finite_at(
    joint: LogJoint, guide: AutoFlow, z: Tensor, until: float = math.inf
) -> tuple[str | None, tuple[str, float] | None]:
    """Which site's density is not finite; or, where it is one on the edge of its support, that one and its share.

    A density that grows without bound at an edge, such as that of ``Gamma(0.01, 0.01)`` at zero, is infinite where
    numbers end, and neither its parameters nor other units are to blame.

    :param joint: the model.
    :param guide: knows the sites.
    :param z: draws, some of which have no finite density.
    :param until: when to look at no further draw, by ``time.perf_counter``.
    """
    site, edge = first_bad_site(joint, z, until), on_the_edge(guide, z)
    return (None, edge) if edge is not None and edge[0] == site else (site, None)


@torch.no_grad()
def out_of_scale(hessian: Hessian, guide: AutoFlow, draws: Draws) -> tuple[str, float] | None:
    """The first site that varies on a scale beyond what step sizes can follow, and the scale."""
    try:
        curvature = hessian(draws.z[draws.log_p.argmax()]).diagonal().abs()
    except (ValueError, RuntimeError):
        return None
    for name, at in columns(guide):
        widths = curvature[at if _is_line(guide, name) else slice(0)].rsqrt()
        bad = (widths < SMALLEST) | (widths > LARGEST) & (widths < torch.inf)
        if bool(bad.any()):
            return name, float(widths[bad][0])
    return None


def vaguest(guide: AutoFlow, draws: Draws) -> tuple[str, float]:
    """The site of which weighted draws tell least, and how many independent draws they are worth for it.

    Of a site of many entries that is what all but a twentieth of these have, some of which are little known by chance.
    """
    worths = worth_of_each(draws.log_weight, draws.z)
    each = [(name, worths[at].sort().values) for name, at in columns(guide)]
    found = [(name, float(values[int(CHANCE * len(values))])) for name, values in each]
    return min(found, key=lambda pair: pair[1])


def columns(guide: AutoFlow) -> Iterator[tuple[str, slice]]:
    """Every site with its place in the flat latent, less those of no numbers."""
    for name, latent in guide.latents.sites.items():
        if latent.shape.numel():
            yield name, latent.columns


def _base(guide: AutoFlow, name: str) -> Any:
    """A site's support, of one number where it is a stack of these."""
    return of_one_number(guide.latents.sites[name].transform.codomain)


def _is_line(guide: AutoFlow, name: str) -> bool:
    return isinstance(_base(guide, name), type(constraints.real))
