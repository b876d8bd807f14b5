r"""Flow-based autoguides for Pyro: change one line of an MCMC script, and get posterior draws and what to make of them.

The draws carry importance weights, and a verdict in one sentence says whether they can be trusted.

>>> from pyro_nflows import AutoFlow, VI
>>> # vi = VI(AutoFlow(model)); vi.run(data); vi.summary()
"""

from importlib.metadata import PackageNotFoundError, version

from . import flows as flows
from . import layers
from .flows.distribution import FlowDistribution
from .guides import (
    AutoCIF,
    AutoCNF,
    AutoDAIS,
    AutoFlow,
    AutoFlowified,
    AutoGlow,
    AutoIAF,
    AutoJKO,
    AutoMAF,
    AutoNICE,
    AutoPlanar,
    AutoRadial,
    AutoRealNVP,
    AutoResidual,
    AutoSpline,
    AutoWasserstein,
)
from .inference.compared import compare
from .inference.elbo import ELBO
from .inference.iwae import IWAE
from .inference.jko import fit_jko
from .inference.sbc import SBC
from .inference.vi import VI

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
    "AutoJKO",
    "AutoMAF",
    "AutoNICE",
    "AutoPlanar",
    "AutoRadial",
    "AutoRealNVP",
    "AutoResidual",
    "AutoSpline",
    "AutoWasserstein",
    "FlowDistribution",
    "compare",
    "fit_jko",
    "flows",
    "layers",
]


def __dir__() -> list[str]:
    """What a user is to see when a name is completed."""
    return sorted([*__all__, "__version__"])
