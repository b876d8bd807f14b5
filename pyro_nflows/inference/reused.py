"""What becomes of a fit in the next analysis."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..checks import check_flags, check_sizes, counted
from ..diagnostics.groups import GroupsLeftOut
from ..diagnostics.outliers import outliers
from ..diagnostics.verdict import Outcome
from ..layers import Rescaled
from ..model.log_joint import LogJoint
from ..numerics import LogDensity
from ..objectives.draws import Draws
from ..system.exclusive import exclusive, seeded
from ..system.memory import enough
from .groups_left_out import Part, groups_left_out, whole_parts
from .prior import FittedPrior
from .shown import Shown

#: Verdicts on a guide whose flow, by itself and without weights, is the posterior.
GOOD = (Outcome.TRUST, Outcome.TAILS)
#: Draws that groups are left out of, at most, unless more are asked for.
MOST_DRAWS = 2000
#: Numbers of all draws that groups are left out of, at most: several times as many are held at once.
MOST_NUMBERS = 2**28
#: Is asked.
WHO = "leave_one_group_out"


class Reused(Shown, ABC):
    """A fit that can be built on."""

    draws: Draws
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
        check_flags("as_prior", untrusted=untrusted)
        verdict = self.verdict()
        if not untrusted and (verdict.outcome not in GOOD or bool(outliers(self.draws.log_weight).any())):
            raise ValueError(
                f"as_prior: the flow by itself is not to be trusted as a posterior. {verdict.sentence} Train it "
                "further, or as_prior(untrusted=True) takes it as it is"
            )
        return FittedPrior(self.guide, self.layer, self.call, bool(self.leaves))

    @exclusive()
    @torch.no_grad()
    def leave_one_group_out(self, plate: str, num_samples: int | None = None) -> GroupsLeftOut:
        """How well each row of a plate is predicted from all others; see :meth:`pyro_nflows.VI.leave_one_group_out`."""
        if not isinstance(plate, str):
            raise TypeError(f"leave_one_group_out: plate must be the name of a plate of the model, got {plate!r}")
        num = min(MOST_DRAWS, len(self.draws.z)) if num_samples is None else num_samples
        check_sizes("leave_one_group_out", num_samples=num)
        most = MOST_NUMBERS // self.draws.z.shape[1]
        if num > most:
            raise ValueError(
                f"leave_one_group_out: num_samples must be at most {most:,} with {self.draws.z.shape[1]:,} latents, "
                f"lest memory runs out, got {num:,}; the default is {MOST_DRAWS:,}"
            )
        verdict = self.verdict()
        doubt = "" if verdict.outcome.is_trusted else verdict.sentence
        draws = self.as_used(self.with_draws(num, WHO).draws)
        remedy = f"ask for fewer, as in num_samples={min(num // 4, MOST_DRAWS) or 1}"
        with enough(WHO, counted(num, "draw"), 0, remedy), seeded(self.seed or 0), self.own_parameters():
            return groups_left_out(plate, self.parts_of(plate), draws.z[:num], draws.log_weight[:num], doubt)

    def as_used(self, draws: Draws) -> Draws:
        """Draws with the weights by which means over them are to be taken."""
        return draws

    def parts_of(self, plate: str) -> Iterator[Part]:
        """The rows of a plate, each with what it adds to the log joint.

        :raises ValueError: if there are none that can be told apart.
        """
        joint = self.log_joint()
        if not isinstance(joint, LogJoint):
            raise ValueError(
                "leave_one_group_out: data of this model are in a subsampled plate without latents; make the model "
                "without subsample_size, and VI(guide).judge(data) the trained guide of it"
            )
        return whole_parts(plate, joint)

    @abstractmethod
    def with_draws(self, num_samples: int, who: str = "get_samples") -> Any:
        """This fit, with so many draws at least."""

    @abstractmethod
    def log_joint(self) -> LogDensity:
        """The model's log density at the data of the run."""

    @abstractmethod
    def own_parameters(self) -> AbstractContextManager[None]:
        """Within it, the model's own parameters are as this run left them."""
