"""What can be asked of a :class:`~pyro_nflows.SBC` that has run: ranks, p-values, a table, a picture and a sentence."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..checks import counted
from ..diagnostics.calibration import Calibration, PValues, judge_ranks
from ..diagnostics.calibration_summary import CalibrationSummary, selected
from ..diagnostics.ranks import symmetry, uniformity
from ..diagnostics.verdict import Outcome, Verdict
from ..guides import AutoFlow
from ..plots.ranks import plot_calibration
from .shown import coloured, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Outcomes of fits whose draws are about right; ranks need neither far tails nor many draws.
GOOD = (Outcome.TRUST, Outcome.RESAMPLED, Outcome.OUTLIERS, Outcome.TAILS, Outcome.TOO_FEW)


class Checked(NamedTuple):
    """What is kept of a fit: ranks and shares of draws below the truth, one a parameter, and how good it was.

    ``constant`` are parameters that all draws share with the truth, such as the zeros of a Cholesky factor.
    """

    ranks: Tensor
    shares: Tensor
    constant: Tensor
    ess: float
    pareto_k: float
    outcome: Outcome


class Calibrated:
    """The ranks of fits to data that a model has simulated, and what they say.

    ``num_samples`` are the draws among which a parameter is ranked, and ``failed`` the data sets that no fit could be
    started for.
    """

    guide: AutoFlow
    num_simulations: int
    num_samples: int
    interrupted: bool
    failed: Mapping[int, str]
    _names: list[str]
    _checked: dict[int, Checked]

    def _results(self) -> list[Checked]:
        """By simulation."""
        if not self._checked:
            raise RuntimeError("SBC has no ranks yet; call run(*args) with the model's arguments first")
        return [self._checked[i] for i in sorted(self._checked)]

    def _by_name(self, field: str) -> dict[str, Tensor]:
        results = self._results()
        values, fixed = (torch.stack([getattr(r, name) for r in results]) for name in (field, "constant"))
        return {n: v for n, v, same in zip(self._names, values.T, fixed.all(0)) if not same}

    @property
    def ranks(self) -> dict[str, Tensor]:
        """Ranks from 0 to ``num_samples`` of each scalar parameter and of the log joint, ``(num_fits,)`` each."""
        return self._by_name("ranks")

    @property
    def shares(self) -> dict[str, Tensor]:
        r"""The share of the guide's own draws below the truth, :math:`P_q(\theta < \theta_0)`, ``(num_fits,)`` each."""
        return self._by_name("shares")

    @property
    def ess(self) -> Tensor:
        """The importance ESS of each fit, as a fraction of its draws."""
        return torch.tensor([result.ess for result in self._results()])

    @property
    def pareto_k(self) -> Tensor:
        """The k-hat of each fit."""
        return torch.tensor([result.pareto_k for result in self._results()])

    @property
    def outcomes(self) -> list[Outcome]:
        """The verdict on each fit."""
        return [result.outcome for result in self._results()]

    def p_values(self) -> dict[str, PValues]:
        """Of each parameter: uniform ranks (SBC), and a center of the guide without bias (VSBC)."""
        pairs = zip(self.ranks.items(), self.shares.values())
        return {name: PValues(uniformity(ranks, self.num_samples), symmetry(s)) for (name, ranks), s in pairs}

    def verdict(self) -> Verdict[Calibration]:
        """What the p-values say together: an outcome and one sentence."""
        return self._verdict_on(self.p_values())

    def _verdict_on(self, p_values: Mapping[str, PValues]) -> Verdict[Calibration]:
        return judge_ranks(p_values, self.ranks, self.num_samples, len(self._bad()) / len(self._checked))

    def _bad(self) -> list[str]:
        """Outcomes of the fits whose draws are not to be trusted."""
        return [outcome.name for outcome in self.outcomes if outcome not in GOOD]

    def summary(self, var_names: Sequence[str] | str | None = None) -> CalibrationSummary:
        """Print each parameter's ranks and p-values, how good the fits were, and one sentence.

        :param var_names: sites, or scalars of them; by default all.
        :return: what was printed, with ``.frame``, a ``pandas.DataFrame`` of all of these parameters.
        :raises ValueError: if a name is that of no parameter.
        :raises RuntimeError: before ``run``.
        """
        p_values = self.p_values()
        notes = [self._fits(), self._verdict_on(p_values).sentence]
        summary = CalibrationSummary(self.ranks, p_values, self.num_samples, var_names, notes)
        print(summary)
        return summary

    def plot(self, *names: str, prob: float = 0.95) -> "Figure":
        """Ranks of some parameters, a row each: a histogram, and the ECDF beside its simultaneous band.

        :param names: keys of ``ranks``, or sites; by default the keys with the least p-values, six at most.
        :param prob: of the bands.
        :raises ValueError: if a name is not that of a parameter.
        """
        p_values, ranks = self.p_values(), self.ranks
        chosen = selected(list(ranks), names) if names else sorted(ranks, key=lambda name: min(p_values[name]))[:6]
        return plot_calibration({name: ranks[name] for name in chosen}, self.num_samples, prob=prob)

    def __repr__(self) -> str:
        about = f"SBC of {named(self.guide)}"
        if not self._checked:
            return f"{about}; call run(*args) with the model's arguments"
        return "\n".join([about, self._fits(), self.verdict().sentence])

    def _repr_html_(self) -> str:
        if not self._checked:
            return f"<p>{html.escape(repr(self))}</p>"
        p_values = self.p_values()
        verdict, rows = self._verdict_on(p_values), CalibrationSummary(self.ranks, p_values, self.num_samples)
        said = coloured(verdict.sentence, verdict.outcome is Calibration.CALIBRATED)
        return f"{said}<p>{html.escape(self._fits())}</p>{rows.to_html()}"

    def _fits(self) -> str:
        bad = self._bad()
        kinds = ", ".join(f"{bad.count(name)} {name}" for name in sorted(set(bad)))
        parts = [f"{counted(len(self._checked), 'fit')}, {len(bad)} of them bad" + (f" ({kinds})" if kinds else "")]
        parts.append(f"median ESS {float(self.ess.median()):.0%}")
        parts += [f"{counted(len(self.failed), 'data set')} could not be started"] if self.failed else []
        return "; ".join(parts + (["interrupted"] if self.interrupted else [])) + "."
