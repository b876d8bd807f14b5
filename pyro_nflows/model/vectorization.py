"""How several latent values are sent through a model at once, and which way a model takes."""

import enum
import functools
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..checks import first_line
from .handlers import BRANCHES, cause


class Vectorization(enum.Enum):
    """How several latent values are sent through the model at once, the best first."""

    VMAP = "torch.vmap"
    PLATE = "Pyro's particle plate"
    LOOP = "a loop over particles"


class VectorizationWarning(UserWarning):
    """The model could not be vectorised by ``torch.vmap``; results are right, but slower."""


#: Rows ``(K, D)`` of latents to ``(K,)``, in each way.
Ways = Mapping[Vectorization, Callable[[Tensor], Tensor]]


def chosen(ways: Ways, rows: Tensor, may_plate: bool) -> Vectorization:
    """The best way that runs and agrees with the loop, with a warning unless it is vmap.

    :param rows: where they are compared.
    :param may_plate: whether a plate of particles may be tried.
    """
    loop = ways[Vectorization.LOOP](rows)  # the user's own mistakes surface here
    reason = _objection(ways, Vectorization.VMAP, loop, rows)
    if reason is None:
        return Vectorization.VMAP
    how = Vectorization.PLATE if may_plate and takes_plate(ways, loop, rows) else Vectorization.LOOP
    warnings.warn(
        f"torch.vmap cannot run this model ({reason[0]}); particles go through {how.value}. Results are right, "
        f"but slower; {reason[1]}",
        VectorizationWarning,
        stacklevel=4,
    )
    return how


def _objection(ways: Ways, how: Vectorization, loop: Tensor, rows: Tensor) -> tuple[str, str] | None:
    """Why a way is not to be taken and whose code that comes from, if there is a reason."""
    try:
        values = ways[how](rows)
    except Exception as error:
        return first_line(error), cause(error)
    close = functools.partial(torch.allclose, rtol=1e-4, atol=1e-4, equal_nan=True)
    # A model that subsamples differs from run to run, and cannot be compared.
    if close(values, loop) or not all(close(ways[Vectorization.LOOP](rows), loop) for _ in range(4)):
        return None
    apart = float((values - loop).abs().max())
    return f"its values there differ from those of single runs by up to {apart:.2g}", BRANCHES


def takes_plate(ways: Ways, loop: Tensor, rows: Tensor) -> bool:
    """Whether a plate gives what the loop gives, and mixes no particles, which shows little where they are near."""
    if _objection(ways, Vectorization.PLATE, loop, rows) is not None:
        return False
    try:
        with torch.enable_grad():
            z = rows.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(ways[Vectorization.PLATE](z)[0], z)
        return not bool(gradient[1:].any())
    except RuntimeError:
        return False
