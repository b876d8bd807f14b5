r"""The law of prior-informed coordinates: a model in them is the same model.

With :math:`z(v)` the unconstrained latents at coordinates :math:`v` (:mod:`pyro_nflows.model.centering`),

.. math:: \log \tilde p(x, v) = \log p(x, z(v)) + \log \left| \det \frac{dz}{dv} \right| ,

where the determinant is autograd's, so that it shares no formula with what is checked.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..model.bound import BoundModel
from ..model.coordinates import Coordinates
from ..model.following import hierarchical_sites
from ..model.latents import Latents
from ..model.log_joint import LogJoint
from ..model.recovery import recovered_scales
from ..model.values import constrained
from ..system.randomness import forked
from .law import agree

_OWNER = "check_coordinates"
#: Points at which a model is checked.
_NUM_POINTS = 3


def check_coordinates(model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """A model with hierarchical latents is the same in coordinates informed by their priors, however centered.

    At random points and for each centering of 0, 0.4, 1 and one of its own for each entry: the coordinates are a
    bijection; its log-determinant is autograd's; the log joint is the plain model's at the same latents plus that;
    sites have the same values; and centered, coordinates are the latents themselves, or non-centered where they are
    written so. In double precision.

    :param model: a Pyro model, at least one of whose latents has a prior with a location or scale that depends on
        others, or is multiplied by others (:mod:`pyro_nflows.model.recovery`); new kinds of priors go into
        :data:`pyro_nflows.model.centering.KINDS`.
    :param args: its arguments, with ``kwargs``.
    :raises LawError: where one of these does not hold.
    :raises ValueError: if no latent has coordinates of its own.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("z", dist.Laplace(0.0, scale).expand([2]).to_event(1))
        ...
        >>> check_coordinates(model)
    """
    with _double_precision(), forked(0), poutine.block():
        plain, names, elsewhere = _plain(model, args, kwargs)
        shapes = {name: plain.latents.shapes[name] for name in names}
        for centering in (0.0, 0.4, 1.0):
            _check(plain, {name: torch.tensor(centering) for name in names}, f"at a centering of {centering}")
        _check(plain, {name: torch.rand(shape) for name, shape in shapes.items()}, "each entry centered by itself")
        v = torch.randn(_NUM_POINTS, plain.latents.dim)
        as_written = Coordinates(_joint(plain, {name: torch.tensor(float(name not in elsewhere)) for name in names}))
        agree("latents, centered as they are written, beside their coordinates", as_written(v), v)


def _plain(model: Callable[..., Any], args: Any, kwargs: Any) -> tuple[LogJoint, list[str], list[str]]:
    """The model as it is written, its sites that have coordinates of their own, and those written non-centered."""
    bound = BoundModel(model, args, kwargs)
    bound = bound.with_data([data.double() if data.is_floating_point() else data for data in bound.tensors])
    latents = Latents.of(_OWNER, poutine.trace(model).get_trace(*bound.args, **bound.kwargs))
    plain = LogJoint(bound, latents)
    plain.prepare()
    names, found = hierarchical_sites(plain, latents.init_loc()), recovered_scales(plain, latents.init_loc())
    elsewhere = {name: scales for name, scales in found.items() if name not in names}
    plain.latents = plain.latents.scaled(elsewhere)
    if not names and not elsewhere:
        raise ValueError(
            f"{_OWNER}: no latent of the model has a prior of known kind whose location or scale depends on other "
            f"latents; got latents {latents.names}. Expected one such as Normal(mu, tau), where mu or tau is a latent"
        )
    return plain, [*names, *elsewhere], list(elsewhere)


def _joint(plain: LogJoint, centering: dict[str, Tensor]) -> LogJoint:
    joint = plain.on(plain.bound)
    joint.latents = plain.latents.centered(centering)
    return joint


def _check(plain: LogJoint, centering: dict[str, Tensor], where: str) -> None:
    joint = _joint(plain, centering)
    transform = Coordinates(joint)
    for v in torch.randn(_NUM_POINTS, joint.latents.dim):
        z = transform(v)
        agree(f"coordinates there and back, {where}", transform.inv(z), v)
        jacobian = torch.autograd.functional.jacobian(transform, v)
        log_det = torch.linalg.slogdet(jacobian)[1]
        agree(f"the log-determinant, {where}", transform.log_abs_det_jacobian(v, z), log_det)
        agree(f"the log joint, {where}", joint(v[None])[0], plain(z[None])[0] + log_det)
        for name, value in constrained(plain, z[None]).items():
            agree(f"the value of site '{name}', {where}", constrained(joint, v[None])[name], value)


@contextlib.contextmanager
def _double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
