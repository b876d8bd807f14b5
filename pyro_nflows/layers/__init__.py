"""Layers, one idea a file. Each obeys the contract of :mod:`pyro_nflows.layer`."""

from ..layer import Chain, Inverse, Layer, Weight
from .autoregressive import Autoregressive
from .conditional import Conditional
from .coupling import Coupling
from .elementwise import Elementwise, LocScale
from .indexed import Indexed
from .mixture import Mixture
from .permutation import Permutation
from .planar import Planar
from .radial import Radial
from .triangular import TriangularAffine

__all__ = [
    "Autoregressive",
    "Chain",
    "Conditional",
    "Coupling",
    "Elementwise",
    "Indexed",
    "Inverse",
    "Layer",
    "LocScale",
    "Mixture",
    "Permutation",
    "Planar",
    "Radial",
    "TriangularAffine",
    "Weight",
]
