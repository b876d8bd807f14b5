r"""Flows by name: functions ``latent_dim -> Layer``, each starting at the identity.

A flow here is only a composition; write your own and hand it to ``AutoFlow(model, build)``. Where there is a
``context_dim``, the networks read a context too: ``realnvp(3, context_dim=2).at(context)`` is the flow for its rows.
"""

from ..nets.lengths import up_to
from .flowified import flowified, flowify
from .hubs import GivenHubs, on_hubs
from .images import cif_image, glow_image, residual_image
from .jko import jko
from .matching import num_params, widened
from .plates import on_plates, within_rows
from .sequences import tarflow, wavenet
from .vectors import (
    Build,
    cnf,
    couplings,
    default,
    glow,
    iaf,
    maf,
    nice,
    planar,
    radial,
    realnvp,
    residual,
    spline,
    spline_autoregressive,
)
from .video import video
from .wrapped import cif, conditional, gaussians, on_mixture, on_modes

__all__ = [
    "Build",
    "GivenHubs",
    "cif",
    "cif_image",
    "cnf",
    "conditional",
    "couplings",
    "default",
    "flowified",
    "flowify",
    "gaussians",
    "glow",
    "glow_image",
    "iaf",
    "jko",
    "maf",
    "nice",
    "num_params",
    "on_hubs",
    "on_mixture",
    "on_modes",
    "on_plates",
    "planar",
    "radial",
    "realnvp",
    "residual",
    "residual_image",
    "spline",
    "spline_autoregressive",
    "tarflow",
    "up_to",
    "video",
    "wavenet",
    "widened",
    "within_rows",
]
