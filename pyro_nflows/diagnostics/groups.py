"""How well a model predicts each group of its data from the others."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .weights import k_threshold, psis

#: What log-weights that are equal may differ by, as a share of them.
ROUNDING = 1e-6
#: An inner ESS below which the integral over a group's latents is not to be relied on.
BAD_INTEGRAL = 0.1


@dataclass(frozen=True, repr=False)
class GroupsLeftOut:
    r"""Leave-one-group-out: the log predictive density of each row of a plate, given the data of all others.

    :param plate: the plate's name.
    :param elpd: :math:`\log p(y_i \mid y_{-i})` of each row, ``(N,)``.
    :param pareto_k: the shape of the tail of the weights that leave the row out; above 0.7 they are no good.
    :param lpd: :math:`\log p(y_i \mid y)`, with the row's own data, of latents drawn anew given what is outside.
    :param ess: of the integral over the row's latents, as a share of its points.
    :param num_samples: draws of what is outside of the plate.
    :param doubt: what the verdict on these draws says, where they are not to be trusted.

    Example::

        >>> found = GroupsLeftOut.of("school", torch.tensor([[-1.0, -2.0]] * 100), torch.zeros(100), torch.ones(2))
        >>> found.total, found.is_reliable
        (-3.0, True)
    """

    plate: str
    elpd: Tensor
    pareto_k: Tensor
    lpd: Tensor
    ess: Tensor
    num_samples: int
    doubt: str = ""

    @staticmethod
    def of(plate: str, log_likelihood: Tensor, log_weight: Tensor, ess: Tensor, doubt: str = "") -> "GroupsLeftOut":
        r"""From what draws of the rest make of each group.

        With :math:`\ell_{si} = \log p(y_i \mid g_s)`, weights :math:`w_s / e^{\ell_{si}}` of the draws,
        Pareto-smoothed, are those of :math:`p(g \mid y_{-i})`.

        :param log_likelihood: :math:`\ell`, ``(S, N)``, the latents of a group integrated out.
        :param log_weight: of the draws, ``(S,)``.
        :param ess: of the integrals, ``(N,)``.
        :param doubt: see :class:`GroupsLeftOut`.
        """
        each, weight = log_likelihood.double().T, log_weight.double()
        raw = weight - each
        left, k = psis(raw)
        spread = raw.amax(-1) - raw.amin(-1)
        k = k.masked_fill(spread < ROUNDING * (1 + raw.abs().amax(-1)), -torch.inf)  # they are equal
        elpd = (left + each).logsumexp(-1) - left.logsumexp(-1)
        lpd = (weight + each).logsumexp(-1) - weight.logsumexp(-1)
        return GroupsLeftOut(plate, elpd, k, lpd, ess, each.shape[1], doubt)

    @property
    def total(self) -> float:
        """The sum over rows."""
        return float(self.elpd.sum())

    @property
    def se(self) -> float:
        """Its standard error, by how much rows differ."""
        return float(len(self.elpd) ** 0.5 * self.elpd.std(correction=0))

    @property
    def num_effective(self) -> float:
        """The effective number of parameters: how much more likely rows are with their own data."""
        return float((self.lpd - self.elpd).sum())

    @property
    def worst(self) -> int:
        """The row whose weights have the heaviest tail."""
        return int(self.pareto_k.nan_to_num(neginf=-1e9).argmax())

    @property
    def is_reliable(self) -> bool:
        """Whether k-hat is below its threshold in all rows, and so are the errors of their integrals."""
        return bool((self.pareto_k < k_threshold(self.num_samples)).all() and (self.ess > BAD_INTEGRAL).all())

    def to_dataframe(self) -> Any:
        """A row for each group: ``elpd``, ``pareto_k``, ``lpd``, ``ess``, by the group's number."""
        from pandas import DataFrame, RangeIndex  # type: ignore[import-untyped]

        columns = {name: getattr(self, name).numpy() for name in ("elpd", "pareto_k", "lpd", "ess")}
        return DataFrame(columns, index=RangeIndex(len(self.elpd), name=self.plate))

    def __str__(self) -> str:
        limit, worst = k_threshold(self.num_samples), self.worst
        bad, rough = self.pareto_k >= limit, self.ess <= BAD_INTEGRAL
        said = (
            f"Plate '{self.plate}', each of its {len(self.elpd):,} rows left out by {self.num_samples:,} weighed draws "
            f"of the rest: elpd {self.total:.2f} ± {self.se:.2f}, effective number of parameters "
            f"{self.num_effective:.2f}. Pareto k-hat is "
        )
        most = f"{self.plate}[{worst}]: {float(self.pareto_k[worst]):.2f}."
        if not bad.any():
            said += f"below {limit:.2f} in all rows, most in {most}"
        else:
            said += (
                f"above {limit:.2f} in {int(bad.sum()):,} rows, most in {most} Do not rely on their elpd: these rows "
                "say much of what is outside of the plate, so fit the model without each of them."
            )
        if rough.any():
            first = int(self.ess.argmin())
            said += (
                f" Integrals over the latents of {int(rough.sum()):,} rows are rough, worst in {self.plate}[{first}] "
                f"(ESS {float(self.ess[first]):.0%} of the points)."
            )
        return said + (f" {self.doubt}" if self.doubt else "")

    def __repr__(self) -> str:
        return str(self)
