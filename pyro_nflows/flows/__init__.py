r"""Flows by name: functions ``latent_dim -> Layer``, each starting at the identity.

A flow here is only a composition; write your own and hand it to ``AutoFlow(model, build)``. Where there is a
``context_dim``, the networks read a context too: ``realnvp(3, context_dim=2).at(context)`` is the flow for its rows.

Options of several flows mean the same in each:

- ``latent_dim``: the dimension :math:`D`; points are of shape ``(..., D)``. For images it is ``shape``, ``(C, H, W)``,
  with :math:`D = C H W`.
- ``num_layers``: how many layers follow each other; for images, in each level.
- ``hidden_dims``: widths of the hidden layers of each network; for images, their channels.
- ``transformer``: the increasing map that each coordinate goes through, one of :mod:`pyro_nflows.transformers`.
- ``num_bins``, ``bound``: how many pieces a rational-quadratic spline has, on ``[-bound, bound]``.
  It is the identity beyond.
- ``context_dim``: the dimension of the context that networks read; 0 for none.

A size that is not a positive whole number is a ``ValueError`` that names it.
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
