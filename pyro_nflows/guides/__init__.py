"""Flow autoguides: ordinary Pyro autoguides, one a flow."""

from .families import (
    AutoCIF,
    AutoIAF,
    AutoNICE,
    AutoPlanar,
    AutoRadial,
    AutoRealNVP,
    AutoSpline,
)
from .flow import AutoFlow

__all__ = [
    "AutoCIF",
    "AutoFlow",
    "AutoIAF",
    "AutoNICE",
    "AutoPlanar",
    "AutoRadial",
    "AutoRealNVP",
    "AutoSpline",
]
