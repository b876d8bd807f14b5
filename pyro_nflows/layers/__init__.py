"""Layers, one idea a file. Each obeys the contract of :mod:`pyro_nflows.layers.base`."""

from .activation import FlowifiedActivation
from .actnorm import ActNorm
from .annealed import Hamiltonian, Langevin
from .autoregressive import Autoregressive
from .base import Chain, Exactness, Inverse, Layer
from .conditional import Conditional
from .continuous import Continuous, Solver, Trace
from .coupling import Coupling
from .elementwise import Elementwise, LocScale
from .flowified import FlowifiedConv, FlowifiedLinear
from .householder import Householder
from .image import Split, Squeeze
from .indexed import Indexed
from .low_rank_affine import LowRankAffine
from .lu_linear import LULinear
from .mixture import Mixture
from .permutation import Permutation
from .planar import Planar
from .plate_affine import PlateAffine
from .plate_coupling import PlateCoupling
from .plate_flow import PlateFlow
from .plate_shear import PlateShear
from .positionwise import Positionwise
from .radial import Radial
from .rescaled import Rescaled
from .residual import LogDet, Residual
from .row_coupling import RowCoupling
from .sequence import SequenceAutoregressive
from .shared_affine import SharedAffine
from .sparse_affine import SparseAffine
from .sparse_shear import SparseShear
from .sylvester import Sylvester
from .triangular import TriangularAffine

__all__ = [
    "ActNorm",
    "Autoregressive",
    "Chain",
    "Conditional",
    "Continuous",
    "Coupling",
    "Elementwise",
    "Exactness",
    "FlowifiedActivation",
    "FlowifiedConv",
    "FlowifiedLinear",
    "Hamiltonian",
    "Householder",
    "Indexed",
    "Inverse",
    "LULinear",
    "Langevin",
    "Layer",
    "LocScale",
    "LogDet",
    "LowRankAffine",
    "Mixture",
    "Permutation",
    "Planar",
    "PlateAffine",
    "PlateCoupling",
    "PlateFlow",
    "PlateShear",
    "Positionwise",
    "Radial",
    "Rescaled",
    "Residual",
    "RowCoupling",
    "SequenceAutoregressive",
    "SharedAffine",
    "Solver",
    "SparseAffine",
    "SparseShear",
    "Split",
    "Squeeze",
    "Sylvester",
    "Trace",
    "TriangularAffine",
]
