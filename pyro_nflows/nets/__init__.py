"""Networks inside layers, and parts of them that obey a law: masks, contractions, rotations, latent indices."""

from .attention import CausalTransformer
from .causal import CausalNet
from .contraction import Contraction
from .conv_contraction import ConvContraction
from .field import Dynamics
from .frames import FrameNet
from .masked import MaskedMLP
from .mlp import MLP, ConvNet
from .tiling import TileNet
from .wavenet import CausalConvNet

__all__ = [
    "MLP",
    "CausalConvNet",
    "CausalNet",
    "CausalTransformer",
    "Contraction",
    "ConvContraction",
    "ConvNet",
    "Dynamics",
    "FrameNet",
    "MaskedMLP",
    "TileNet",
]
