"""Layers, one idea a file. Each obeys the contract of :mod:`pyro_nflows.layer`."""

from ..layer import Chain, Inverse, Layer, Weight
from .autoregressive import Autoregressive
from .coupling import Coupling
from .elementwise import LocScale
from .indexed import Indexed
from .permutation import Permutation
from .planar import Planar
from .radial import Radial
from .triangular import TriangularAffine

__all__ = [
    "Autoregressive",
    "Chain",
    "Coupling",
    "Indexed",
    "Inverse",
    "Layer",
    "LocScale",
    "Permutation",
    "Planar",
    "Radial",
    "TriangularAffine",
    "Weight",
]
