"""Flows that follow the plates of a model."""

from ..layers import PlateCoupling, PlateShear, Split, TriangularAffine
from ..layers.base import Chain, Layer
from ..model.hierarchy import Hierarchy
from ..transformers import Affine, SinhArcsinh, Transformer
from .vectors import Build, default

#: Correlations within a row of so many coordinates may depend on what is outside of plates.
MAX_ROW_DIM = 12


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
        # The affine layer can be moved without moving what rows make of its image.
        outside = Chain(TriangularAffine(len(hierarchy.top)), top(len(hierarchy.top)))
        layers.insert(0, Split(outside, hierarchy.dim))
    return Chain(*layers)
