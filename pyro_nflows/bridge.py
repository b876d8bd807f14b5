r"""To and from torch's ``Transform``: bring Pyro's, zuko's or your own; take ours elsewhere."""

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from .layer import Layer, Weight


class LayerTransform(Transform):
    r"""An exact layer as a torch ``Transform``, for ``TransformedDistribution`` and ``NeuTraReparam``.

    It computes from the layer each time and keeps no cache, so it cannot go stale when parameters change.

    :param layer: a layer whose grade is ``EXACT``.
    :raises NotImplementedError: if the layer has auxiliary variables: it is then no function of ``x`` alone.

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> transform = LayerTransform(Planar(2))
        >>> x = torch.randn(5, 2)
        >>> transform.inv(transform(x)).allclose(x, atol=1e-5)
        True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layer: Layer):
        if layer.grade is not Weight.EXACT:
            raise NotImplementedError(
                f"{type(layer).__name__} is not a bijection of x alone (its log-weight is "
                f"{layer.grade.name}), so it has no Transform; use a guide of exact layers, such as AutoFlow"
            )
        super().__init__()
        self.layer = layer

    def _call(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.layer.inverse(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x)[1]  # type: ignore[no-any-return]

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], self.layer.output_dim))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], self.layer.input_dim))


class TransformLayer(Layer):
    r"""A torch ``Transform`` as a layer; its parameters train if it is a module (as Pyro's are).

    :param transform: a bijective transform of vectors, or of scalars (then applied element-wise).
    :param input_dim: dimension of ``x``.
    :raises ValueError: if the transform is not bijective or acts on more than vectors.

    Example::

        >>> from torch.distributions.transforms import ExpTransform
        >>> TransformLayer(ExpTransform(), 2)(torch.zeros(2))
        (tensor([1., 1.]), tensor(0.))
    """

    def __init__(self, transform: Transform, input_dim: int):
        if not transform.bijective or transform.domain.event_dim > 1:
            raise ValueError(f"TransformLayer: expected a bijective transform of scalars or vectors, got {transform}")
        super().__init__(input_dim, transform.forward_shape(torch.Size((input_dim,)))[-1])
        self.transform = transform

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = self.transform(x)
        return y, self._log_det(x, y)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.transform.inv(y)
        return x, self._log_det(x, y)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """By the Jacobian: many transforms only invert points they have just produced."""
        return self._transport_by_jacobian(x, score, weight)

    def _log_det(self, x: Tensor, y: Tensor) -> Tensor:
        log_det = self.transform.log_abs_det_jacobian(x, y)
        return log_det.sum(-1) if self.transform.domain.event_dim == 0 else log_det


def as_layer(transform: Layer | Transform | nn.Module, input_dim: int) -> Layer:
    """A layer from a layer (returned as it is), or from a torch ``Transform``.

    :raises TypeError: for anything else.

    Example::

        >>> from torch.distributions.transforms import TanhTransform
        >>> as_layer(TanhTransform(), 3)
        TransformLayer()
    """
    if isinstance(transform, LayerTransform):
        return transform.layer
    if isinstance(transform, Layer):
        return transform
    if isinstance(transform, Transform):
        return TransformLayer(transform, input_dim)
    raise TypeError(
        f"expected a pyro_nflows Layer or a torch Transform, got {type(transform).__name__}; "
        "see pyro_nflows.layers, or subclass Layer"
    )


def as_transform(layer: Layer) -> Transform:
    """A torch ``Transform`` from an exact layer; a wrapped one is unwrapped.

    :raises NotImplementedError: if the layer is not exact.

    Example::

        >>> from pyro_nflows.layers import LocScale
        >>> as_transform(LocScale(2)).bijective
        True
    """
    return layer.transform if isinstance(layer, TransformLayer) else LayerTransform(layer)
