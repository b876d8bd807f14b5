r"""Handlers that give latents their values, or take them off again, on the supports and with the masks of this run."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform

from ..system.shapes import broadcast_shapes
from . import checks, enumeration_checks
from .centering import about_location, bijection
from .noncentered import Center, scaled_elsewhere


class Placed(Messenger):
    r"""Latent sites take the images :math:`T(z)` of their unconstrained parts, each on the support it has in this run.

    A support that depends on other latents, such as ``Uniform(0, 1 - a)``'s, is followed so: its ``a`` was placed
    before. Sites are then observed, as by ``poutine.condition``.

    :param name: of the guide's class, for errors.
    :param parts: site to unconstrained value.
    :param shapes: site to the shape of its value, to be checked; or None where particles go along a plate.
    :param filled: masked sites that count with their prior where they are masked; see
        :mod:`~pyro_nflows.model.following`.
    :param enumerates: whether discrete sites are enumerated in this run, so that distributions may be wider.
    :param centering: of sites in prior-informed coordinates.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[str, Tensor],
        shapes: Mapping[str, torch.Size] | None = None,
        filled: Collection[str] = (),
        enumerates: bool = False,
        centering: Mapping[str, Center] = MappingProxyType({}),
    ):
        super().__init__()
        self.centering = centering
        self.name, self.parts, self.shapes, self.filled, self.enumerates = name, parts, shapes, filled, enumerates
        self.names = parts.keys()
        self.values: dict[str, Tensor] = {}
        self.log_dets: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.parts:
            return
        if self.shapes is not None and not self.enumerates:
            checks.check_shape(self.name, msg, self.shapes[name])
        part, transform = self.parts[name], _transform(msg, self.centering.get(name), self.values)
        self.values[name] = value = transform(part)
        if self.shapes is not None and value.shape != self.shapes[name]:
            raise checks.enumerated_support(self.name, name)
        self.log_dets[name] = transform.log_abs_det_jacobian(part, value)
        msg["value"], msg["is_observed"] = value, True
        if name in self.centering:
            msg["fn"] = about_location(msg["fn"], self.centering[name].number, part)
        if name in self.filled:
            self._fill(msg)

    def _fill(self, msg: Any) -> None:
        by_case = isinstance(self.filled, Mapping) and self.filled[msg["name"]]
        if by_case and not _is_one(msg["scale"]):
            raise enumeration_checks.scaled_by_case(self.name, msg["name"])
        fill(msg)


class Lifted(Messenger):
    """Latent sites take given values, and what these are without constraint on this run's supports is noted.

    :param values: site to value.
    :param centering: of sites in prior-informed coordinates.
    """

    def __init__(self, values: Mapping[str, Tensor], centering: Mapping[str, Center] = MappingProxyType({})):
        super().__init__()
        self.values, self.names, self.centering = values, values.keys(), centering
        self.parts: dict[str, Tensor] = {}
        self.log_dets: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.values:
            value, transform = self.values[name], _transform(msg, self.centering.get(name), self.values)
            self.parts[name] = part = transform.inv(value)
            self.log_dets[name] = transform.log_abs_det_jacobian(part, value)
            msg["value"], msg["is_observed"] = value, True


def _transform(msg: Any, center: Center | None, values: Mapping[str, Tensor]) -> Transform:
    """From the part of a site to its value; its distribution is made to know the scale that it has elsewhere."""
    if center is None:
        return bijection(msg["fn"], None)
    msg["fn"] = scaled_elsewhere(msg["fn"], center.scales, values)
    return bijection(msg["fn"], center.number)


class Filled(MaskedDistribution):
    """A masked distribution that counts with its prior where it is masked, and is scaled only where it is not.

    :param site: a site whose distribution is masked, or has a mask around it.
    """

    def __init__(self, site: Any):
        super().__init__(unmasked(site["fn"]), True)
        self._site, self._scale = dict(site), site["scale"]

    def log_prob(self, value: Tensor) -> Tensor:
        """What the site's scale makes of it is the scaled density where it counts, and the prior elsewhere."""
        counted = _counted(self._site, value)
        filled: Tensor = counted + (self.base_dist.log_prob(value) - counted) / self._scale
        return filled


def fill(msg: Any) -> None:
    """Take a site's mask off, so that it counts with its prior where it is masked, whatever its scale."""
    msg["fn"], msg["mask"] = unmasked(msg["fn"]) if _is_one(msg["scale"]) else Filled(msg), None


def _is_one(scale: Any) -> bool:
    return isinstance(scale, float | int) and scale == 1


def prior_where_masked(site: Any, value: Tensor) -> Tensor:
    """Log prior of a site's masked entries at a value, neither masked nor scaled, in its batch shape."""
    return cast(Tensor, unmasked(site["fn"]).log_prob(value) - _counted(site, value))


def _counted(site: Any, value: Tensor) -> Tensor:
    """Log prior of a site's entries that are not masked, without its scale."""
    counted: Tensor = site["fn"].log_prob(value)
    if site["mask"] is None:
        return counted
    return torch.where(torch.as_tensor(site["mask"], device=counted.device), counted, 0.0)


def is_masked(site: Any) -> bool:
    """Whether a site has a mask, of its distribution or around it."""
    return site["mask"] is not None or _own_mask(site["fn"]) is not None


def mask_of(site: Any) -> Tensor:
    """A site's mask, ``True`` where it counts, in its batch shape and that of what is reinterpreted as an event's."""
    fn, num = site["fn"], _num_reinterpreted(site["fn"])
    around, own = torch.as_tensor(True if site["mask"] is None else site["mask"]), _own_mask(fn)
    mask = around.reshape(around.shape + (1,) * num)
    mask = mask if own is None else mask & own
    shape = fn.batch_shape + fn.event_shape[:num]
    return mask.expand(broadcast_shapes(mask.shape, shape))


def unmasked(fn: Any) -> Any:
    """A distribution without the masks in it.

    Example::

        >>> import pyro.distributions as dist
        >>> unmasked(dist.Normal(0.0, 1.0).expand([3]).mask(False).to_event(1)).log_prob(torch.zeros(3))
        tensor(-2.7568)
    """
    if isinstance(fn, MaskedDistribution):
        return unmasked(fn.base_dist).expand(fn.batch_shape)
    if isinstance(fn, torch.distributions.Independent) and _own_mask(fn) is not None:
        return unmasked(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    return fn


def _own_mask(fn: Any) -> Tensor | None:
    """The mask inside a distribution, with the dimensions reinterpreted around it."""
    if isinstance(fn, torch.distributions.Independent):
        return _own_mask(fn.base_dist)
    if not isinstance(fn, MaskedDistribution):
        return None
    mask, inner = torch.as_tensor(fn._mask), _own_mask(fn.base_dist)
    mask = mask.reshape(mask.shape + (1,) * _num_reinterpreted(fn.base_dist))
    return mask if inner is None else mask & inner


def _num_reinterpreted(fn: Any) -> int:
    """How many dimensions of the event are a batch's inside."""
    if isinstance(fn, torch.distributions.Independent):
        return int(fn.reinterpreted_batch_ndims) + _num_reinterpreted(fn.base_dist)
    return _num_reinterpreted(fn.base_dist) if isinstance(fn, MaskedDistribution) else 0
