r"""Flow-based autoguides for Pyro: one changed line, and the draws are as good as long MCMC's.

>>> from pyro_nflows import AutoFlow, VI
>>> # vi = VI(AutoFlow(model)); vi.run(data); vi.summary()
"""

from importlib.metadata import PackageNotFoundError, version

from . import layers, recipes
from .distribution import FlowDistribution
from .guides import (
    AutoCIF,
    AutoCNF,
    AutoDAIS,
    AutoFlow,
    AutoFlowified,
    AutoGlow,
    AutoIAF,
    AutoMAF,
    AutoNICE,
    AutoPlanar,
    AutoRadial,
    AutoRealNVP,
    AutoResidual,
    AutoSpline,
)
from .objectives import ELBO, IWAE
from .sbc import SBC
from .vi import VI

try:
    __version__ = version("pyro_nflows")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "ELBO",
    "IWAE",
    "SBC",
    "VI",
    "AutoCIF",
    "AutoCNF",
    "AutoDAIS",
    "AutoFlow",
    "AutoFlowified",
    "AutoGlow",
    "AutoIAF",
    "AutoMAF",
    "AutoNICE",
    "AutoPlanar",
    "AutoRadial",
    "AutoRealNVP",
    "AutoResidual",
    "AutoSpline",
    "FlowDistribution",
    "layers",
    "recipes",
]
