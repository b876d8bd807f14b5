r"""To and from torch's ``Transform``: bring Pyro's, zuko's or your own; take ours elsewhere."""

import copy
import re
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform, _InverseTransform

from ..checks import first_line
from ..layers.base import Chain, Exactness, Inverse, Layer

_T = TypeVar("_T", bound=Transform)
#: What torch says where shapes do not go together.
_SHAPES = re.compile("shape|size", re.IGNORECASE)


class LayerTransform(Transform):
    r"""An exact layer as a torch ``Transform``, for ``TransformedDistribution`` and ``NeuTraReparam``.

    It computes from the layer each time and keeps no cache, so it cannot go stale when parameters change.

    :param layer: a layer whose exactness is ``EXACT``.
    :param name: what errors call it, by default its class.
    :raises NotImplementedError: if the layer has auxiliary variables: it is then no function of ``x`` alone.

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> transform = LayerTransform(Planar(2))
        >>> x = torch.randn(5, 2)
        >>> transform.inv(transform(x)).allclose(x, atol=1e-3)
        True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layer: Layer, name: str | None = None):
        if layer.exactness is not Exactness.EXACT:
            raise NotImplementedError(
                f"{name or type(layer).__name__} is not a bijection of x alone (its log-weight is "
                f"{layer.exactness.name}), so it has no Transform; use a guide of exact layers, such as AutoFlow"
            )
        super().__init__()
        self.layer = layer

    def _call(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.layer.inverse(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x)[1]

    def with_cache(self, cache_size: int = 1) -> "LayerTransform":
        return self

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], self.layer.output_dim))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], self.layer.input_dim))


class TransformLayer(Layer):
    r"""A torch ``Transform`` as a layer; its parameters train if it is a module (as Pyro's are).

    The transform's caches are not used: they would go stale when parameters change.

    :param transform: a bijective transform of vectors, or of scalars (then applied element-wise).
    :param input_dim: dimension of ``x``.
    :raises ValueError: if the transform is not bijective, acts on more than vectors, or is made of other transforms
        (:func:`as_layer` takes it apart).

    Example::

        >>> from torch.distributions.transforms import ExpTransform
        >>> TransformLayer(ExpTransform(), 2)(torch.zeros(2))
        (tensor([1.0000, 1.0000]), tensor(0.0000))
    """

    def __init__(self, transform: Transform, input_dim: int):
        if not transform.bijective or transform.domain.event_dim > 1:
            raise ValueError(f"TransformLayer: expected a bijective transform of scalars or vectors, got {transform}")
        if isinstance(transform, (ComposeTransform, IndependentTransform, _InverseTransform)):
            raise ValueError(
                f"TransformLayer: {type(transform).__name__} is made of other transforms, whose parameters would not "
                f"train; use as_layer(transform, {input_dim})"
            )
        super().__init__(input_dim, transform.forward_shape(torch.Size((input_dim,)))[-1])
        self.transform = transform

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        transform = _private(self.transform)
        try:
            y = transform(x)
        except RuntimeError as error:
            if not _SHAPES.search(str(error)):
                raise
            raise ValueError(
                f"TransformLayer: {type(transform).__name__} cannot take a point of {self.input_dim} dimensions "
                f"({first_line(error)}); give as_layer the dimension that the transform was made with"
            ) from error
        return y, _log_det(transform, x, y)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        transform = _private(self.transform)
        try:
            x = transform.inv(y)
        except (KeyError, NotImplementedError):
            raise NotImplementedError(
                f"{type(transform).__name__} cannot invert a point that it has not just produced: it can be sampled "
                "and trained, but the density of a given point needs a layer with an inverse (Coupling, Autoregressive)"
            ) from None
        return x, _log_det(transform, x, y)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """By the Jacobian: many transforms only invert points they have just produced."""
        if self.input_dim != self.output_dim:
            return super().transport(x, y, score, weight)
        return self._transport_by_jacobian(x, score, weight)

    def extra_repr(self) -> str:
        return f"{self.transform}, {self.input_dim}" if not self._modules else ""


def _private(transform: _T) -> _T:
    """A copy that shares the parameters and keeps its caches to itself."""
    transform = copy.copy(transform)
    vars(transform)["_inv"] = None  # it refers to the original
    modules = vars(transform).get("_modules")
    if modules:
        own = {name: _private(part) if isinstance(part, Transform) else part for name, part in modules.items()}
        vars(transform)["_modules"] = own
    return transform


def _log_det(transform: Transform, x: Tensor, y: Tensor) -> Tensor:
    log_det = transform.log_abs_det_jacobian(x, y)
    log_det = log_det.sum(-1) if transform.domain.event_dim == 0 else log_det
    return log_det.expand(x.shape[:-1]) if log_det.dim() < x.dim() else log_det


def as_layer(transform: Layer | Transform | nn.Module, input_dim: int) -> Layer:
    """A layer from a layer (returned as it is), or from a torch ``Transform``.

    A composition becomes a :class:`~pyro_nflows.layers.base.Chain`, and the inverse of a transform an
    :class:`~pyro_nflows.layers.base.Inverse`.

    :param transform: what to take.
    :param input_dim: dimension of ``x``.
    :raises TypeError: for anything else.
    :raises ValueError: for transforms that :class:`TransformLayer` refuses.

    Example::

        >>> from torch.distributions.transforms import TanhTransform
        >>> as_layer(TanhTransform(), 3)
        TransformLayer(TanhTransform(), 3)
    """
    if isinstance(transform, LayerTransform):
        return transform.layer
    if isinstance(transform, Layer):
        return transform
    if isinstance(transform, _InverseTransform):
        return Inverse(as_layer(transform.inv, transform.forward_shape(torch.Size((input_dim,)))[-1]))
    if isinstance(transform, IndependentTransform) and transform.domain.event_dim == 1:
        return as_layer(transform.base_transform, input_dim)
    if isinstance(transform, ComposeTransform) and transform.parts:
        layers: list[Layer] = []
        for part in transform.parts:
            layers.append(as_layer(part, layers[-1].output_dim if layers else input_dim))
        return Chain(*layers)
    if isinstance(transform, Transform):
        return TransformLayer(transform, input_dim)
    raise TypeError(
        f"expected a pyro_nflows Layer or a torch Transform, got {type(transform).__name__}; "
        "see pyro_nflows.layers, or subclass Layer"
    )


def as_transform(layer: Layer, name: str | None = None) -> Transform:
    """A torch ``Transform`` from an exact layer; a wrapped one is unwrapped.

    :param layer: the layer.
    :param name: what errors call it, by default its class.
    :raises NotImplementedError: if the layer is not exact.

    Example::

        >>> from pyro_nflows.layers import LocScale
        >>> as_transform(LocScale(2)).bijective
        True
    """
    return layer.transform if isinstance(layer, TransformLayer) else LayerTransform(layer, name)
