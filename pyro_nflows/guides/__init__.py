"""Flow autoguides: ordinary Pyro autoguides, one a flow."""

from .annealed import AutoDAIS
from .couplings import AutoGlow, AutoNICE, AutoRealNVP, AutoSpline
from .families import AutoCIF, AutoCNF, AutoIAF, AutoMAF, AutoPlanar, AutoRadial, AutoResidual
from .flow import AutoFlow
from .jko import AutoJKO
from .networks import AutoFlowified
from .wasserstein import AutoWasserstein

__all__ = [
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
]
