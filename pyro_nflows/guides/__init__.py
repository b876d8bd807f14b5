"""Flow autoguides: ordinary Pyro autoguides, one a flow."""

from .couplings import AutoGlow, AutoNICE, AutoRealNVP, AutoSpline
from .families import AutoCIF, AutoIAF, AutoMAF, AutoPlanar, AutoRadial, AutoResidual
from .flow import AutoFlow

__all__ = [
    "AutoCIF",
    "AutoFlow",
    "AutoGlow",
    "AutoIAF",
    "AutoMAF",
    "AutoNICE",
    "AutoPlanar",
    "AutoRadial",
    "AutoRealNVP",
    "AutoResidual",
    "AutoSpline",
]
