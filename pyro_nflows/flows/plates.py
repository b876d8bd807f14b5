"""Flows that follow the plates of a model."""

from ..layers import PlateCoupling, PlateShear, Split, TriangularAffine
from ..layers.base import Chain, Layer
from ..model.hierarchy import Hierarchy
from ..transformers import Affine, SinhArcsinh, Transformer
from .vectors import Build, default

#: Correlations within a row of so many coordinates may depend on what is outside of plates.
MAX_ROW_DIM = 12
#: An optimiser hardly moves the affine layer of what is outside of plates, which is for fits that weigh their draws.
AFFINE_STEP = 1e-3


def on_plates(
    hierarchy: Hierarchy, top: Build = default, transformer: Transformer = Affine(), shape: Transformer = SinhArcsinh()
) -> Layer:
    """A flow of what is outside of plates, then rows that are transformed as it, and their outer rows, say.

    :param hierarchy: which coordinates are in which plates.
    :param top: the flow of the coordinates outside of plates.
    :param transformer: of the rows; see :class:`~pyro_nflows.layers.PlateCoupling`.
    :param shape: of the rows too, before that: what makes a row other than a Gaussian given what it is within.

    Example::

        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> hierarchy = Hierarchy.of_outlines({"mu": Outline((2,), {}), "z": Outline((3,), {"groups": 0})})
        >>> on_plates(hierarchy).input_dim
        5
    """
    layers: list[Layer] = [PlateCoupling(hierarchy, shape), PlateCoupling(hierarchy, transformer)]
    if len(hierarchy.top):
        if any(1 < block.row_dim <= MAX_ROW_DIM for block in hierarchy.blocks):
            layers.insert(1, PlateShear(hierarchy, MAX_ROW_DIM))
        # The affine layer can be moved without moving what rows make of its image. An optimiser would pull it in: the
        # noise in what rows take from above costs the more, the further out a draw is, and rows do not follow in time.
        affine = TriangularAffine(len(hierarchy.top))
        affine.step = AFFINE_STEP
        layers.insert(0, Split(Chain(affine, top(len(hierarchy.top))), hierarchy.dim))
    return Chain(*layers)
