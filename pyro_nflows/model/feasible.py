r"""Is there a point to start from? And if not, which site is to blame?"""

import contextlib
import math
import time
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import init_to_sample
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor

from ..system.exclusive import validation
from .bound import BoundModel
from .data_checks import is_deterministic
from .initialization import FlatPriors
from .latents import Latents, unconstrained_value
from .log_joint import LogJoint

#: Points tried before giving up.
NUM_TRIES = 100


def check_start(joint: LogJoint) -> Tensor:
    """A point of finite log density: the latents' own start, or one drawn around zero as Stan does.

    It becomes ``joint.start``.

    :raises ValueError: if the model's sites are not those; or if there is no such point in :data:`NUM_TRIES`
        tries: it names the first site that is not finite.
    """
    joint.look()
    loc = joint.latents.init_loc()
    for point in (loc, *(_random(loc) for _ in range(NUM_TRIES))):
        if is_feasible(joint, point):
            joint.start = point
            return point
    site = first_bad_site(joint, loc[None])
    raise ValueError(
        f"the model's log density is not finite at its start, nor at {NUM_TRIES} random points; at the start, site "
        f"'{site}' is the first with -inf or NaN. Check its distribution's parameters and its data, or give a "
        "feasible init_loc_fn, such as init_to_value(values={...})"
    )


@contextlib.contextmanager
def named_plates() -> Iterator[None]:
    """Name the plate that Pyro refuses because it is empty.

    :raises ValueError: in place of Pyro's ``ZeroDivisionError``.
    """
    try:
        yield
    except ZeroDivisionError as error:
        frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
        plates = [found.get("name") for found in frames if isinstance(found.get("self"), IndepMessenger)]
        if not plates:
            raise
        raise ValueError(
            f"plate '{plates[-1]}' has a size of 0, which Pyro refuses; expected one row at least. Leave the plate out "
            "of the model where there is nothing in it"
        ) from error


def dispersed_start(joint: LogJoint, loc: Tensor) -> Tensor:
    """A random point of finite density, uniform on (-2, 2) in unconstrained space; ``loc`` if none is found."""
    points = (_random(loc) for _ in range(NUM_TRIES))
    return next((point for point in points if is_feasible(joint, point)), loc)


@torch.no_grad()
def prior_points(bound: BoundModel, latents: Latents, num: int, until: float = math.inf) -> list[Tensor]:
    """Draws of the latents from their prior, in unconstrained space; as many as can be had.

    :param until: when to make do with fewer, by ``time.perf_counter``.
    """
    points, shapes = [], latents.shapes.items()
    with contextlib.suppress(ValueError, RuntimeError), validation(False):
        for _ in range(num):
            if time.perf_counter() > until:
                break
            draw = poutine.trace(InitMessenger(FlatPriors(init_to_sample))(bound.model))
            nodes: Any = draw.get_trace(*bound.args, **bound.kwargs).nodes
            parts = [unconstrained_value(nodes[n], nodes[n]["value"], len(s))[0] for n, s in shapes]
            points.append(torch.cat(parts))
    return [point for point in points if bool(torch.isfinite(point).all())]


def _random(like: Tensor) -> Tensor:
    return 4 * torch.rand_like(like) - 2


@torch.no_grad()
def is_feasible(joint: LogJoint, point: Tensor) -> bool:
    """Whether the log density at a point is a number."""
    try:
        return bool(torch.isfinite(joint.single(point)))
    except (ValueError, RuntimeError):  # a value out of its support, or a Cholesky that failed
        return False


@torch.no_grad()
def first_bad_site(joint: LogJoint, draws: Tensor, until: float = math.inf) -> str | None:
    """The first site, in the model's order, whose log density is not finite at any of some draws.

    :param until: when to look at no further draw, by ``time.perf_counter``.
    """
    with validation(False):
        for number, row in enumerate(draws[:100]):
            if number and time.perf_counter() > until:
                break
            for name, site in joint.run(row).nodes.items():
                if site["type"] == "sample" and not _is_finite(site):
                    return str(name)
    return None


def _is_finite(site: Any) -> bool:
    if is_deterministic(site):
        return True
    with validation(True):  # or data out of the support might get a number
        try:
            log_prob = site["fn"].log_prob(site["value"])
        except (ValueError, RuntimeError):
            return False
    return bool(torch.isfinite(scale_and_mask(log_prob, site["scale"], site["mask"])).all())
