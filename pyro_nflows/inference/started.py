r"""A fit that begins where another one ended: the same sites, of the same shapes, with other data or another flow.

The trained flow is taken over whole where the guide's has the same layers; otherwise its place is taken by the Gaussian
of the other fit's draws, resampled by their weights. Draws at the new data then say how much is left to do
(:mod:`~pyro_nflows.inference.rounds`): where their weights are good, after a move to their weighted moments at most,
nothing is trained.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..guides import AutoFlow
from ..model.log_joint import LogJoint
from ..modes.gaussians import gaussian_through
from ..system.exclusive import seeded
from .posterior import Call, Posterior
from .results import Results

#: Draws whose Gaussian is taken over, and at least so many a dimension.
NUM_DRAWS, DRAWS_A_DIM = 4000, 20


def source_of(start: Any) -> Posterior | None:
    """The fit that a user gives as a start.

    :raises TypeError: if it is none.
    :raises ValueError: if it has not been run, or has rows of a subsampled plate.
    """
    if start is None or isinstance(start, Posterior):
        found = start
    elif isinstance(start, Results):
        found = start._posterior
        if found is None:
            raise ValueError("VI: start has not been run; call its run(*args) first")
    else:
        raise TypeError(
            f"VI: start must be another fit, a VI that has been run or its posterior, got {type(start).__name__}"
        )
    if found is not None and found.guide.subsamples:
        raise ValueError("VI: start has rows of a subsampled plate, which have numbers of their own; leave it out")
    return found


def check_same_sites(guide: AutoFlow, source: Posterior) -> None:
    """Whether a guide has the sites of a fit.

    :raises ValueError: if it has not, with the first one that differs.
    """
    then, now = source.guide.site_shapes, guide.site_shapes
    for site in {**then, **now}:
        was, found = then.get(site, "absent"), now.get(site, "absent")
        if was != found:
            raise ValueError(
                f"VI: start is of another model: site '{site}' has unconstrained shape {was} there and {found} here; "
                "give a fit of a model with the same latent sites, or leave start out"
            )


def take_coordinates(guide: AutoFlow, source: Posterior) -> bool:
    """Have the latents of a hierarchy centered as they are in a fit; whether that changes anything."""
    then, now = _centering(source.guide), guide.latents.centering
    if then.keys() == now.keys() and all(torch.equal(then[name], now[name]) for name in then):
        return False
    guide.recenter(then, source.guide.scales)
    return True


def _centering(guide: AutoFlow) -> dict[str, Tensor]:
    """Of each site that has one; a loaded guide knows it before it knows its model."""
    known = guide.centering
    try:
        return guide.latents.centering
    except RuntimeError:
        return {name: torch.as_tensor(value) for name, value in known.items()} if isinstance(known, Mapping) else {}


@torch.no_grad()
def place(guide: AutoFlow, source: Posterior, joint: LogJoint, call: Call) -> None:
    """Put a guide's flow to where a fit's is, or its end to the Gaussian of the fit's draws.

    :param guide: in the coordinates of the fit; it has a new flow afterwards.
    :param joint: its model at the new data.
    :param call: the model's arguments.
    :raises ValueError: if the new data are impossible there.
    """
    layer = guide.plain_layer()
    state, modes = source.layer.plain().state_dict(), source.modes
    if modes != guide.modes and guide.build is not None:
        layer = guide.make_layer(layer.end.loc.detach().clone(), modes)
    shapes = {name: value.shape for name, value in layer.state_dict().items()}
    if shapes == {name: value.shape for name, value in state.items()}:
        layer.load_state_dict(state)
    else:
        layer, modes = guide.plain_layer(), guide.modes
        with seeded(0):
            values = source.get_samples(max(NUM_DRAWS, DRAWS_A_DIM * guide.latents.dim))
        z, _ = guide.unconstrain(values, *call[0], **call[1])
        gaussian_through(layer, z[torch.isfinite(z).all(-1)]).place(layer)
    loc = layer.end.loc.detach().clone()
    if not bool(torch.isfinite(joint(loc[None])).all()):
        raise ValueError(
            "VI: the log density of the model with these data is not finite where start is; leave start out, or look "
            "at what the data rule out"
        )
    guide.modes = modes
    guide.adopt(layer)
