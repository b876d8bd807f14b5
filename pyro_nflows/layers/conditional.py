from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from ..checks import check_sizes
from ..nets.context import Methods, context_of, take_context
from ..nets.mlp import MLP
from ..nets.views import in_every_place
from .base import Layer, Scored
from .shapes import need_layers

#: For each method of a layer, how many dimensions its results have beside the batch.
_EVENT_DIMS = {"forward": (1, 0), "inverse": (1, 0), "transport": (1,), "scored": (1, 0, 1, 1, 0, 0, 0)}


class Conditional(Layer):
    r"""Any layer, told a context: a network of the context moves the layer's parameters [1, 2].

    .. math:: y = f(x; \theta + g(c)), \qquad g(c) = W_h \tanh(\cdots \tanh(W_1 c + b_1) \cdots) + W_s c

    with :math:`\theta` the parameters of the layer as it was given, and :math:`W_h = W_s = 0` at the start: it starts
    at that layer, for every context. The exactness, the noise and the inverse are the layer's own. Bind it before use:
    ``layer.at(context)`` is the layer for those rows of the context.

    :math:`g` has as many outputs as the layer has parameters. Where these are a network's
    (:class:`~pyro_nflows.layers.Coupling`, :class:`~pyro_nflows.layers.Autoregressive`), their own ``context_dim`` is
    the cheaper way to the same end: the network reads the context beside its input.

    :param layer: :math:`f`, any layer with parameters that takes no context itself.
    :param context_dim: size of the last dimension of :math:`c`.
    :param hidden_dims: widths of the hidden layers of :math:`g`.
    :raises ValueError: if ``context_dim < 1``, or the layer has no parameters or takes a context.

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> layer = Conditional(Planar(3), context_dim=2)
        >>> y, log_weight = layer.at(torch.randn(10, 2))(torch.randn(10, 3))
        >>> layer(torch.randn(3))
        Traceback (most recent call last):
        ValueError: Conditional: expected a context of shape (..., 2), got none; use layer.at(context)

    **References**

    [1] D. Ha, A. Dai, Q. Le (2017). HyperNetworks.

    [2] Y. Lu, B. Huang (2020). Structured Output Learning with Conditional Generative Flows.
    """

    def __init__(self, layer: Layer, context_dim: int, *, hidden_dims: Sequence[int] = (32, 32)):
        need_layers("Conditional", layer)
        super().__init__(layer.input_dim, layer.output_dim)
        check_sizes("Conditional", context_dim=context_dim)
        shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
        if not shapes:
            raise ValueError(f"Conditional: {type(layer).__name__} has no parameters for a context to move")
        if any("context" in part._buffers for part in layer.modules()):
            raise ValueError(f"Conditional: a part of {type(layer).__name__} takes a context already")
        self.methods, self.shapes = Methods(layer), {f"layer.{name}": shape for name, shape in shapes.items()}
        self.exactness = layer.exactness
        self.noise_dim, self.inverse_noise_dim = layer.noise_dim, layer.inverse_noise_dim
        size = sum(shape.numel() for shape in shapes.values())
        self.net = MLP(context_dim, size, hidden_dims, bias=False)
        take_context(self, context_dim)

    @property
    def layer(self) -> Layer:
        """The layer that the context moves, as it is where nothing is added to its parameters."""
        return self.methods.layer  # type: ignore[return-value]

    @property
    def has_inverse(self) -> bool:
        return self.layer.has_inverse

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_weight = self._run("forward", x, noise)
        return y, log_weight

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_weight = self._run("inverse", y, noise)
        return x, log_weight

    def initialize(self, y: Tensor) -> Tensor:
        self.layer.initialize(y)
        return super().initialize(y)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return self._run("transport", x, y, score, weight)[0]

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        return Scored(*self._run("scored", x, noise, score, reverse))

    def _run(self, method: str, *args: Any) -> tuple[Tensor, ...]:
        """A method of the layer at the parameters which the context gives, for each of its rows."""
        context = context_of(self)
        num_dims = context.dim() - 1
        rows = args[0].shape[args[0].dim() - 1 - num_dims : -1]
        change = self.net(context).expand(*rows, -1)

        def call(change: Tensor, *args: Any) -> tuple[Tensor, ...]:
            moved = in_every_place(self.methods, self._moved(change))
            result = functional_call(self.methods, moved, (method, *args), tie_weights=False)
            nothing = torch.zeros_like(args[0][..., 0])
            return tuple(nothing + r if isinstance(r, float) else r for r in _as_tuple(result))

        for i in range(num_dims):
            in_dims = [-2 - i if isinstance(arg, Tensor) else None for arg in args]
            out_dims = tuple(-1 - i - dims for dims in _EVENT_DIMS[method])
            call = vmap(call, (0, *in_dims), out_dims)
        return call(change, *args)

    def _moved(self, change: Tensor) -> dict[str, Tensor]:
        """The layer's parameters, moved."""
        parts = change.split([shape.numel() for shape in self.shapes.values()], -1)
        named = dict(self.methods.named_parameters())
        return {name: named[name] + part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts)}


def _as_tuple(result: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)
