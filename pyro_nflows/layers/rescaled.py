import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.stateless import _reparametrize_module

from ..model.rows import Rows
from ..nets.context import Methods
from ..nets.steps import step_factor
from ..nets.views import on_rows, parameters_in, with_parameters
from .base import Layer, Scored
from .shapes import need_layers

#: How far an optimiser's step moves a number that a layer holds itself, and a number in a network, in units of the
#: step. The affine end of a guide (:class:`LocScale`, :class:`TriangularAffine`) keeps the whole step, as Pyro's own
#: guides do.
LAYER_STEP, NETWORK_STEP = 0.3, 0.03


class Rescaled(Layer):
    r"""A layer whose parameters are stored in larger units, so that an optimiser's step moves the flow by less.

    .. math:: y = f(x; c \odot \phi)

    with :math:`\phi` what is stored and trained, and :math:`c` fixed. Adam moves each stored number by about the
    learning rate :math:`\eta`, whatever its gradient, and so the layer's own by :math:`c \eta`. A network adds up many
    such moves, layer after layer: with :math:`c = 1` a flow takes steps a hundred times as long as a Gaussian
    guide does at the same learning rate, and diverges where the Gaussian trains.

    :math:`c` is 0.03 for matrices and in networks, and 0.3 for vectors that a layer holds itself; for a unit that adds
    up :math:`n > 32` inputs, :math:`32 / n` of that (:mod:`~pyro_nflows.nets.steps`), all times the ``step`` of the
    layer that holds it, if that has one. A gradient that is not finite
    becomes zero: such a step does not move the flow.

    The layer is taken as it is, and starts as the same map. Noise, exactness and inverse are the layer's own.

    :param layer: :math:`f`; it is copied.
    :param end: a part of it, by its name, that keeps the whole step (but for wide matrices).

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> layer = Planar(3)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(Rescaled(layer)(x)[0], layer(x)[0])
        True
    """

    steps: Tensor
    methods: Methods

    def __init__(self, layer: Layer, end: str | None = None):
        need_layers("Rescaled", layer)
        super().__init__(layer.input_dim, layer.output_dim)
        self.layer, self.end = copy.deepcopy(layer), end
        self.factors = _factors(self.layer, end)
        self._multiply(self.layer, {name: 1 / factor for name, factor in self.factors.items()})
        self.exactness = layer.exactness
        self.noise_dim, self.inverse_noise_dim = layer.noise_dim, layer.inverse_noise_dim
        sizes = dict(self.layer.named_parameters())
        parts = [
            sizes[name].new_full((sizes[name].numel(),), factor)
            for name, factor in self.factors.items()
            if name in sizes
        ]
        self.register_buffer("steps", torch.cat(parts) if parts else torch.ones(0), persistent=False)
        self._know_methods()

    def _know_methods(self) -> None:
        # Not a submodule, which would register the layer twice.
        self.__dict__["methods"] = Methods(self.layer)

    @property
    def has_inverse(self) -> bool:
        return self.layer.has_inverse

    def plain(self) -> Layer:
        """A copy of the layer itself, its parameters in their own units."""
        layer = copy.deepcopy(self.layer)
        self._multiply(layer, self.factors)
        return layer

    @staticmethod
    @torch.no_grad()
    def _multiply(layer: Layer, factors: dict[str, float]) -> None:
        for name, parameter in layer.named_parameters():
            parameter.mul_(factors[name])

    def on_rows(self, rows: Rows) -> Layer:
        """The layer for chosen rows, its parameters in their own units, as functions of those that are stored.

        Only what is looked up is rescaled. See :func:`~pyro_nflows.nets.views.on_rows`.
        """
        layer = on_rows(self.layer, rows)
        named = dict(layer.named_parameters())
        if not named:
            return layer
        flat = torch.cat([tensor.reshape(-1) * self.factors[name] for name, tensor in named.items()])
        return with_parameters(layer, _split(flat, named))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_weight = self._run("forward", x, noise)
        return y, log_weight

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_weight = self._run("inverse", y, noise)
        return x, log_weight

    def initialize(self, y: Tensor) -> Tensor:
        layer = self.plain()
        x = layer.initialize(y)
        self._multiply(layer, {name: 1 / factor for name, factor in self.factors.items()})
        self.layer.load_state_dict(layer.state_dict())
        return x

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        carried: Tensor = self._run("transport", x, y, score, weight)
        return carried

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        return Scored(*self._run("scored", x, noise, score, reverse))

    def _run(self, method: str, *args: Any) -> Any:
        """A method of the layer, at its parameters in their own units."""
        if self.methods.layer is not self.layer:  # in a view that is bound to a context
            self._know_methods()
        now = self._parameters_now()
        if torch.jit.is_tracing():  # which functional_call refuses
            with _reparametrize_module(self.methods, now):
                return self.methods.forward(method, *args)
        return functional_call(self.methods, now, (method, *args), tie_weights=False)

    def _parameters_now(self) -> dict[str, Tensor]:
        """The parameters in their own units, by all of their places."""
        held = parameters_in(self.methods)
        if not held:
            return {}
        named = {name: parameter for name, (parameter, _) in held.items()}
        flat = torch.cat([parameter.reshape(-1) for parameter in named.values()]) * self.steps
        parts = _split(flat, named)
        return {place.name: parts[name] for name, (_, places) in held.items() for place in places}


def _split(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters out of one vector, through which their gradients go all or none."""
    if flat.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(flat):
        flat.register_hook(_finite)
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(like[name].shape) for name, part in zip(like, parts)}


def _finite(gradient: Tensor) -> Tensor:
    """The gradient, or zeros if any part of it is not finite."""
    return torch.where(gradient.isfinite().all(), gradient, 0.0)


def _factors(layer: Layer, end: str | None) -> dict[str, float]:
    """For each parameter, how far a step of one moves it."""
    factors: dict[str, float] = {}
    first: dict[int, str] = {}  # a parameter of several parts moves as in the first of them
    for holder, module in layer.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{holder}.{name}" if holder else name
            factor = LAYER_STEP if isinstance(module, Layer) and parameter.dim() < 2 else NETWORK_STEP
            factor = 1.0 if end is not None and f"{holder}.".startswith(f"{end}.") else factor
            known = first.setdefault(id(parameter), full)
            factors[full] = factors[known] if known != full else factor * step_factor(module, name)
    return factors
