r"""Is there a point to start from? And if not, which site is to blame?"""

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .log_joint import LogJoint, _constrain

#: Points tried before giving up.
NUM_TRIES = 100


def check_start(joint: LogJoint, args: Any, kwargs: Any) -> Tensor:
    """A point of finite log density: the guide's own start, or one drawn around zero as Stan does.

    :raises ValueError: if there is none in :data:`NUM_TRIES` tries; it names the first site that is not finite.
    """
    loc = joint.guide._init_loc()
    if _finite(joint, loc, args, kwargs):
        return loc
    for _ in range(NUM_TRIES):
        point = 4 * torch.rand_like(loc) - 2
        if _finite(joint, point, args, kwargs):
            return point
    site = first_bad_site(joint, loc[None], args, kwargs)
    raise ValueError(
        f"the model's log density is not finite at its start, nor at {NUM_TRIES} random points; at the start, site "
        f"'{site}' is the first with -inf or NaN. Check its distribution's parameters and its data, or give a "
        "feasible init_loc_fn, such as init_to_value(values={...})"
    )


def dispersed_start(joint: LogJoint, loc: Tensor, args: Any, kwargs: Any) -> Tensor:
    """A random point of finite density, uniform on (-2, 2) in unconstrained space; ``loc`` if none is found."""
    for _ in range(NUM_TRIES):
        point = 4 * torch.rand_like(loc) - 2
        if _finite(joint, point, args, kwargs):
            return point
    return loc


def _finite(joint: LogJoint, point: Tensor, args: Any, kwargs: Any) -> bool:
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            return bool(torch.isfinite(joint(point[None], *args, **kwargs)).all())
        except (ValueError, RuntimeError):  # a Cholesky that failed, say
            return False


def first_bad_site(joint: LogJoint, draws: Tensor, args: Any, kwargs: Any) -> str | None:
    """The first site, in the model's order, whose log density is not finite at any of some draws."""
    with torch.no_grad(), pyro.validation_enabled(False):
        for row in draws[:100]:
            values = {s["name"]: _constrain(s, part)[0] for s, part in joint.guide._unpack_rows(row)}
            with poutine.block(hide_fn=lambda msg: msg["type"] == "sample"):
                trace = poutine.trace(poutine.condition(joint.model, values)).get_trace(*args, **kwargs)
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and not _is_finite(site):
                    return str(name)
    return None


def _is_finite(site: Any) -> bool:
    try:
        return bool(torch.isfinite(site["fn"].log_prob(site["value"])).all())
    except (ValueError, RuntimeError):
        return False
