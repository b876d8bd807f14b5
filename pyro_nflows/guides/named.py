r"""Guides by the name of their flow: :class:`~pyro_nflows.AutoFlow` with that flow, whose options they take."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from pyro.infer.autoguide import init_to_median
from torch import nn

from ..layers.base import Layer
from ..system.randomness import forked
from .centers import Centers
from .flow import AutoFlow
from .structure import Structure

#: Options of flows that mean nothing for a guide: it has no context, and its base comes first.
NOT_FOR_GUIDES = {"context_dim", "inverted"}


class NamedGuide(AutoFlow):
    r"""A guide whose flow is declared with its class; its arguments are the flow's, after the model.

    :param model: a Pyro model.
    :param args: the flow's options, in the order of its signature, or by name.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.
    :raises TypeError: if the flow has no such option.
    :raises ValueError: if it refuses the value of one.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_nflows import flows
        >>> class AutoSmallPlanar(NamedGuide, flow=flows.planar, num_layers=2):
        ...     "Two planar layers, where the flow's own default is 16."
        ...
        >>> guide = AutoSmallPlanar(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])
        >>> list(inspect.signature(AutoSmallPlanar).parameters)[:5]
        ['model', 'num_layers', 'init_loc_fn', 'init_scale', 'create_plates']
    """

    _flow: ClassVar[Callable[..., Layer]]
    _options: ClassVar[inspect.Signature]
    __signature__: ClassVar[inspect.Signature | None]

    def __init_subclass__(cls, flow: Callable[..., Layer] | None = None, **defaults: Any):
        """Declare the flow, ``(latent_dim, options) -> Layer``, and the options whose default is not the flow's."""
        super().__init_subclass__()
        if flow is None:
            if "__init__" in vars(cls):
                cls.__signature__ = None  # so that Python looks at that one
            return
        options = [
            parameter.replace(default=defaults.get(name, parameter.default))
            for name, parameter in list(inspect.signature(flow).parameters.items())[1:]
            if name not in NOT_FOR_GUIDES
        ]
        cls._flow, cls._options = staticmethod(flow), inspect.Signature(options)
        shared = list(inspect.signature(NamedGuide.__init__).parameters.values())
        own = [shared[1], *options, *(parameter for parameter in shared if parameter.kind is parameter.KEYWORD_ONLY)]
        cls.__signature__ = inspect.Signature(sorted(own, key=lambda parameter: parameter.kind))

    def __init__(
        self,
        model: Callable[..., Any],
        *args: Any,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
        centering: Centers | None = "auto",
        structure: Structure = "auto",
        amortize: bool | nn.Module = False,
        **options: Any,
    ):
        try:
            bound = self._options.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}; it takes {inspect.signature(type(self))}") from None
        given = list(bound.arguments.values())
        bound.apply_defaults()
        build = functools.partial(type(self)._flow, **bound.arguments)
        if given and not any(map(callable, given)):  # a user's function may be for the model's dimension only
            with forked():
                build(2)  # a mistake is told here
        super().__init__(
            model,
            build,
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
            create_plates=create_plates,
            centering=centering,
            structure=structure,
            amortize=amortize,
        )
