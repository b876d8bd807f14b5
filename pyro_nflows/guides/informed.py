"""The posterior of a guide whose flat latent is in coordinates informed by the prior."""

from collections.abc import Callable
from typing import Any

from torch.distributions import Transform

from ..flows.distribution import FlowDistribution
from ..layers.base import Layer


class InformedPosterior(FlowDistribution):
    r"""A :class:`~pyro_nflows.FlowDistribution` over prior-informed coordinates :math:`v`, which knows of the sites.

    Draws and densities are of :math:`v`. Its :attr:`transforms` lead on to the sites' unconstrained values, as
    :meth:`~pyro_nflows.AutoFlow.get_transform` does: what is run in the base's coordinates needs the log-determinant
    of the whole way.

    :param layer: from the base to :math:`v`.
    :param whole_way: makes the transform from the base to the sites.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_nflows import AutoFlow
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("z", dist.Normal(3.0, scale))
        ...
        >>> guide = AutoFlow(model, init_scale=1e-6)
        >>> values = guide()
        >>> (transform,) = guide.get_posterior().transforms
        >>> transform(torch.zeros(2))
        tensor([0., 3.], grad_fn=<ViewBackward0>)
    """

    def __init__(self, layer: Layer, whole_way: Callable[[], Transform], *, path_gradient: bool = False):
        super().__init__(layer, path_gradient=path_gradient)
        self.whole_way: Callable[[], Transform] | None = whole_way

    @property
    def transforms(self) -> list[Transform]:
        """One transform, from the base to the sites' unconstrained values.

        :raises NotImplementedError: if the layer has auxiliary variables.
        """
        return super().transforms if self.whole_way is None else [self.whole_way()]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "whole_way": None}
