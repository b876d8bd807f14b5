"""Networks inside layers, and parts of them that obey a law: masks, contractions, rotations, latent indices."""

from .contraction import Contraction
from .field import Dynamics
from .masked import MaskedMLP
from .mlp import MLP, ConvNet
from .tiling import TileNet

__all__ = ["MLP", "Contraction", "ConvNet", "Dynamics", "MaskedMLP", "TileNet"]
