"""How centered the sites of a guide are, as it was asked for."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor

from ..checks import is_number
from ..model.following import hierarchical_sites
from ..model.log_joint import LogJoint
from ..model.noncentered import ScaleSite
from ..model.recovery import recovered_scales
from ..system.exclusive import validation
from ..system.randomness import forked
from . import checks
from .learned import START

#: One centering for all sites that can have one, one for each that is named, ``"auto"``, or ``"learned"``.
Centers = float | Mapping[str, float | Tensor] | Literal["auto", "learned"]
#: What may be asked for by a word, and where it begins then.
WORDS = {"auto": 0.0, "learned": START}
#: Of sites that are written non-centered, the latents that make their scale.
Scales = Mapping[str, tuple[ScaleSite, ...]]


def chosen_centers(
    name: str, asked: Centers | None, joint: LogJoint, known: Scales
) -> tuple[dict[str, Tensor], Scales]:
    """How centered those sites are to be that can be, and what makes the scale of those that are written non-centered.

    Sites that are written non-centered are looked for where they are to be anything else.

    :param name: of the guide's class, for errors.
    :param asked: what is asked for; None for no site.
    :param joint: the model.
    :param known: scales that are known already.
    :raises ValueError: if a site is named that cannot be centered, or a centering is none, or of another shape.
    """
    if asked is None:
        return {}, dict(known)
    loc = joint.latents.init_loc()
    with poutine.block(), forked(), validation(False):
        try:
            names = hierarchical_sites(joint, loc)
        except (RuntimeError, TypeError, ValueError):
            if asked != "auto":
                raise
            names = []  # a model that has no gradients, or is refused when its density is asked for
        number = WORDS[asked] if isinstance(asked, str) else asked
        if _is_for_others(number, names):
            found = known or recovered_scales(joint, loc)
            known = {site: scales for site, scales in found.items() if site not in names}
            names = [site for site in joint.latents.names if site in names or site in known]
    chosen = number if isinstance(number, Mapping) else dict.fromkeys(names, number)
    checks.check_centering(name, chosen, names, joint.latents.shapes)
    return {site: torch.as_tensor(chosen[site]).to(loc) for site in names if site in chosen}, dict(known)


def check_asked(name: str, asked: Any) -> None:
    """Refuse what is no centering, whatever the model.

    :raises ValueError: if it is neither a number from 0 to 1 nor a word, nor a dict of sites.
    """
    if asked is None or isinstance(asked, Mapping) or (isinstance(asked, str) and asked in WORDS):
        return
    if not is_number(asked):
        raise ValueError(f"{name}: centering must be a number, a dict, None or one of {list(WORDS)}, got {asked!r}")
    if not 0 <= asked <= 1:
        raise ValueError(f"{name}: centering must be between 0 and 1, got {asked!r}")


def _is_for_others(number: float | Mapping[str, float | Tensor], names: list[str]) -> bool:
    """Whether a centering may be meant for sites that are written non-centered too."""
    return not set(number) <= set(names) if isinstance(number, Mapping) else number != 0
