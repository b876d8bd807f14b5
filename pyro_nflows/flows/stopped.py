"""Path gradients in traces of ``torch.jit``, which cannot hold gradients within what they trace."""

from torch import Tensor

from ..layers import Autoregressive, Planar, Residual, SequenceAutoregressive, Sylvester
from ..layers.base import Exactness, Layer
from ..nets.views import with_parameters
from .transforms import TransformLayer

#: Layers whose inverse is found by a search, or position by position.
SEARCHING = (Planar, Residual, SequenceAutoregressive, Sylvester, TransformLayer)
#: An autoregressive layer's inverse has as many passes as dimensions; it is traced up to so many.
MOST_PASSES = 32


def stopped_inverse(layer: Layer, y: Tensor) -> tuple[Tensor, Tensor] | None:
    r"""The inverse of a draw at parameters that have no gradient, or None where it costs much more than the draw.

    With :math:`x, \log w` from here, :math:`\log q(x) - \log w` is the log density of ``y``, and its gradient is that
    which goes through ``y``: the path gradient.

    :param layer: the layer, with its parameters.
    :param y: a draw from it.

    Example::

        >>> import torch
        >>> from pyro_nflows.layers import LocScale
        >>> layer = LocScale(2, init_scale=3.0)
        >>> x, log_weight = stopped_inverse(layer, layer(torch.ones(2))[0])
        >>> torch.autograd.grad(x.sum(), layer.loc)
        (tensor([0.3333, 0.3333]),)
    """
    if layer.exactness is not Exactness.EXACT or not layer.has_inverse or not _is_direct(layer):
        return None
    return with_parameters(layer, {name: p.detach() for name, p in layer.named_parameters()}).inverse(y)


def _is_direct(layer: Layer) -> bool:
    parts = list(layer.modules())
    passes = [part.input_dim for part in parts if isinstance(part, Autoregressive)]
    return not any(isinstance(part, SEARCHING) for part in parts) and max(passes, default=0) <= MOST_PASSES
