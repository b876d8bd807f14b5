"""What becomes of a fit in the next analysis."""

from abc import ABC
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..diagnostics.verdict import Outcome
from ..layers import Rescaled
from ..system.exclusive import exclusive
from .prior import FittedPrior
from .shown import Shown

#: Verdicts on a guide whose flow, by itself and without weights, is the posterior.
GOOD = (Outcome.TRUST, Outcome.TAILS)


class Reused(Shown, ABC):
    """A fit that can be built on."""

    layer: Rescaled
    call: tuple[tuple[Any, ...], dict[str, Any]] | None
    leaves: Sequence[Tensor]

    @exclusive()
    @torch.no_grad()
    def as_prior(self, *, untrusted: bool = False) -> FittedPrior:
        """The trained flow as a prior for further data: ``prior.on(model)`` is the model with it.

        :param untrusted: whether it is wanted although the verdict does not trust the flow. Importance weights do not
            come along, so a flow whose draws are good only once they are resampled is refused too.
        :raises ValueError: if the flow is not to be trusted by itself; if it has no exact density; if the model's
            latents are in subsampled plates.

        Example::

            >>> import pyro, pyro.distributions as dist
            >>> from pyro_nflows import VI, AutoFlow
            >>> def model(y):
            ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("row", len(y)):
            ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            ...
            >>> posterior = VI(AutoFlow(model), seed=0, progress_bar=False).run(torch.zeros(3)).posterior
            >>> prior = posterior.as_prior()
            >>> prior
            FittedPrior of z ()
            >>> prior.log_prob({"z": torch.zeros(())}).exp().round(decimals=2)  # N(0, 1/4) at its mean
            tensor(0.8000)
        """
        verdict = self.verdict()
        if not untrusted and verdict.outcome not in GOOD:
            raise ValueError(
                f"as_prior: the flow by itself is not to be trusted as a posterior. {verdict.sentence} Train it "
                "further, or as_prior(untrusted=True) takes it as it is"
            )
        return FittedPrior(self.guide, self.layer, self.call, bool(self.leaves))
