r"""A trained flow and what is known of it: its draws with their weights, and the bounds of the evidence they give."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from ..diagnostics import weights as diagnostics
from ..diagnostics.moves import Redrawn
from ..diagnostics.outliers import outliers, trimmed_elbo
from ..diagnostics.worth import is_hopeless
from ..flows.whitened import Whitened
from ..objectives.draws import Draws, base_noise

#: Points at which it is seen whether a flow is trained.
NUM_FRESH = 16
#: A share of draws with NaN in place of a weight, such as those of overflow far out, that spoils nothing.
RARE = 0.01


class Bounds(TypedDict):
    """Bounds of the log evidence, each with its standard error."""

    elbo: float
    elbo_se: float
    elbo_trimmed: float
    elbo_trimmed_se: float
    num_outliers: int
    iwae: float
    iwae_se: float


@dataclass(frozen=True)
class Fit:
    """A trained layer and draws from it, without gradients; ``undefined`` are those with NaN in place of a weight.

    ``failed`` says that training met values which are not finite, however small its steps. ``own`` are the layer's own
    draws where those of most latents were drawn anew (:mod:`~pyro_nflows.inference.redrawn`), of which ``redrawn``
    tells.
    """

    layer: Whitened
    draws: Draws
    undefined: Tensor
    failed: bool = False
    own: Draws | None = None
    redrawn: Redrawn | None = None

    @property
    def elbo(self) -> diagnostics.Estimate:
        """The evidence lower bound, by which fits are compared: without outliers."""
        return bound_of(self.draws.log_weight, trimmed_elbo)

    @property
    def log_evidence(self) -> diagnostics.Estimate:
        """The importance estimate of the log evidence."""
        return bound_of(self.draws.log_weight, diagnostics.log_evidence)

    @property
    def has_gaps(self) -> bool:
        """Whether more than a share :data:`RARE` of the draws has NaN in place of a weight; fewer count as of no
        density, as a Markov chain would have it, and the verdict tells of them."""
        return bool(self.undefined.double().mean() > RARE)

    @property
    def suspects(self) -> Tensor:
        """Draws that may tell why values are not finite: those without a weight, or all."""
        return self.draws.z[self.undefined] if self.undefined.any() else self.draws.z


def bound_of(log_weight: Tensor, bound: Callable[[Tensor], diagnostics.Estimate]) -> diagnostics.Estimate:
    """A bound of the evidence; ``-inf`` where no draw has any weight."""
    if is_hopeless(log_weight):
        return diagnostics.Estimate(torch.tensor(-torch.inf), torch.tensor(torch.inf))
    return bound(log_weight)


def evidence_of(log_weight: Tensor) -> Bounds:
    """The ELBO, with outliers and without, and the importance estimate of the log evidence, with standard errors."""
    bounds = (diagnostics.elbo, trimmed_elbo, diagnostics.log_evidence)
    elbo, trimmed, iwae = (bound_of(log_weight, bound) for bound in bounds)
    return {
        "elbo": float(elbo.value),
        "elbo_se": float(elbo.se),
        "elbo_trimmed": float(trimmed.value),
        "elbo_trimmed_se": float(trimmed.se),
        "num_outliers": int(outliers(log_weight).sum()),
        "iwae": float(iwae.value),
        "iwae_se": float(iwae.se),
    }


def weighed(layer: Whitened, draws: Draws, failed: bool = False) -> Fit:
    """A fit with such draws of it; those with NaN in place of a weight count for nothing."""
    return Fit(layer, sound(draws), undefined(draws), failed)


def undefined(draws: Draws) -> Tensor:
    """Which draws have NaN, or ``inf``, in place of a weight."""
    return ~(draws.log_weight < torch.inf)


def sound(draws: Draws) -> Draws:
    """The draws, of which those without a defined weight count for nothing."""
    which = undefined(draws)
    return Draws(draws.z, torch.where(which, -torch.inf, draws.log_p), torch.where(which, 0.0, draws.log_q))


@torch.no_grad()
def is_fresh(layer: Whitened, num: int = NUM_FRESH) -> bool:
    """Whether the flow in front of the affine end is still the identity, at so many points."""
    noise = base_noise(layer, num)
    y, log_weight = layer.flow(noise[:, : layer.input_dim], noise[:, layer.input_dim :])
    tolerance = 1e3 * torch.finfo(y.dtype).eps
    moved = torch.maximum((y - noise[:, : layer.input_dim]).abs().max(), log_weight.abs().max())
    return bool(moved < tolerance)
