"""What a guide trains: a flow in whitened coordinates, and an affine layer behind it."""

from typing import cast

from ..layers import LocScale, LowRankAffine, Mixture, PlateAffine, SparseAffine, TriangularAffine
from ..layers.base import Chain, Layer

#: An affine layer that a guide may end in.
Affine = LocScale | TriangularAffine | PlateAffine | SparseAffine | LowRankAffine


class Whitened(Chain):
    r"""A flow before an affine layer, :math:`y = \mathrm{end}(\mathrm{flow}(x))`.

    The affine layer can be fitted by itself first, as a Gaussian; the flow then works where the posterior has mean
    zero and unit covariance.

    :param flow: from the base to whitened coordinates.
    :param end: from whitened coordinates to the posterior.

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> layer = Whitened(Planar(3), LocScale(3))
        >>> layer.flow, layer.end
        (Planar(3), LocScale(3))
    """

    #: What the names of the affine layer's parameters begin with.
    END = "layers.1"

    def __init__(self, flow: Layer, end: Affine):
        super().__init__(flow, end)

    @property
    def flow(self) -> Layer:
        """From the base to whitened coordinates."""
        return self[0]

    @property
    def end(self) -> Affine:
        """From whitened coordinates to the posterior."""
        return cast(Affine, self[1])

    @property
    def is_full_rank(self) -> bool:
        """Whether the affine layer has a triangular matrix, not scales alone."""
        return isinstance(self.end, TriangularAffine)

    @property
    def base(self) -> Mixture | None:
        """The mixture that the flow is put on, if it is put on one."""
        first = self.flow[0] if isinstance(self.flow, Chain) and len(self.flow) else self.flow
        return first if isinstance(first, Mixture) else None

    @property
    def is_gaussian(self) -> bool:
        """Whether it is a Gaussian or a mixture of Gaussians, with nothing else to train."""
        parts = list(self.flow) if isinstance(self.flow, Chain) else [self.flow]
        rest = parts[1:] if isinstance(parts[0], Mixture) else parts
        return not any(parameter.numel() for part in rest for parameter in part.parameters())
