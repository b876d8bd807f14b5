r"""Starting points: Pyro's ``init_to_*`` functions made to work on priors that cannot be drawn from too."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import ImproperUniform
from torch import Tensor
from torch.distributions import transform_to

from .supports import bijection


class _Feasible:
    """A distribution whose ``sample`` gives a feasible point; all else is the distribution's own."""

    def __init__(self, fn: Any):
        self._fn = fn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fn, name)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self._fn.batch_shape + self._fn.event_shape
        try:
            transform = bijection(self._fn)
        except NotImplementedError:  # the guide refuses such a site by name, once it has seen it
            transform = transform_to(self._fn.support)
        is_elementwise = transform.domain.event_dim == transform.codomain.event_dim == 0
        value: Tensor = transform(torch.zeros(shape if is_elementwise else transform.inverse_shape(shape)))
        return value.expand(shape).clone()


class FlatPriors:
    """An init function that also starts sites whose prior has no sampler, such as ``ImproperUniform``.

    :param init_loc_fn: any of Pyro's init functions.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import init_to_sample
        >>> fn = dist.ImproperUniform(dist.constraints.positive, (), ())
        >>> FlatPriors(init_to_sample)({"name": "tau", "fn": fn})
        tensor(1.0000)
    """

    def __init__(self, init_loc_fn: Callable[..., Any]):
        self.init_loc_fn = init_loc_fn

    def __call__(self, site: dict[str, Any]) -> Tensor:
        if is_flat(site["fn"]):
            site = {**site, "fn": _Feasible(site["fn"])}
        try:
            return self.init_loc_fn(site)
        except NotImplementedError:
            if site["fn"].support.is_discrete:
                raise
        return _Feasible(site["fn"]).sample()


def is_flat(fn: Any) -> bool:
    """Whether a distribution is an ``ImproperUniform``, perhaps masked, expanded or reinterpreted.

    Example::

        >>> import pyro.distributions as dist
        >>> is_flat(dist.ImproperUniform(dist.constraints.real, (), ()).expand([3]).mask(True))
        True
    """
    while not isinstance(fn, ImproperUniform) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, ImproperUniform)
