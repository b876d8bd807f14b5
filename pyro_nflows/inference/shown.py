"""How a fit looks: a few lines, a table, HTML in a notebook, and one figure."""

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..diagnostics.resampling import chosen, is_resampled
from ..diagnostics.summary import Summary, by_weights, chosen_sites
from ..diagnostics.table import evidence_lines
from ..diagnostics.worth import effective
from ..guides import AutoFlow
from ..plots.overview import plot_overview
from ..system.exclusive import exclusive, seeded
from .judged import Judged

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Shown(Judged, ABC):
    """A fit that can be looked at."""

    guide: AutoFlow

    @abstractmethod
    def constrained(self, index: Tensor) -> dict[str, Tensor]:
        """Some of the draws, each site in its own space."""

    def summary(self, var_names: Sequence[str] | str | None = None, *, kind: str = "all", prob: float = 0.9) -> Summary:
        """Print a table of the parameters, the evidence, and the verdict; see :meth:`pyro_nflows.VI.summary`."""
        summary = self.summarised(var_names, kind, prob)
        print(summary)
        return summary

    @exclusive()
    @torch.no_grad()
    def summarised(self, var_names: Sequence[str] | str | None = None, kind: str = "all", prob: float = 0.9) -> Summary:
        """The same without printing it."""
        worth = self._worth() if self.settled is None else self.settled.ess
        notes = [*evidence_lines(self.diagnostics()), self.verdict().sentence]
        return Summary(self._whole_sample(), by_weights(worth), var_names=var_names, kind=kind, prob=prob, notes=notes)

    def _worth(self) -> float:
        """Independent draws that the guide's are worth."""
        return len(self.log_weight) * (effective(self.log_weight) if is_resampled(self.log_weight) else 1.0)

    def _whole_sample(self) -> dict[str, Tensor]:
        """As many draws as there are, resampled where weights allow it; the same each time."""
        with seeded(self.seed or 0):
            return self.constrained(chosen(self.draws.log_weight, len(self.draws.z)))

    @exclusive()
    @torch.no_grad()
    def plot(self, var_names: Sequence[str] | str | None = None) -> "Figure":
        """One figure; see :meth:`pyro_nflows.VI.plot`."""
        asked = chosen_sites("plot", self._whole_sample(), var_names)
        return plot_overview(self.history.trace(), self.history.rounds, self.log_weight, asked)

    def __repr__(self) -> str:
        said = [*evidence_lines(self.diagnostics()), self.verdict().sentence]
        return "\n".join([f"{len(self.draws.z):,} draws of {named(self.guide)}", *said])

    def _repr_html_(self) -> str:
        verdict, lines = self.verdict(), evidence_lines(self.diagnostics())
        said = coloured(verdict.sentence, verdict.outcome.is_trusted)
        return (
            said
            + "".join(f'<p style="white-space: pre-wrap">{html.escape(line)}</p>' for line in lines)
            + self.summarised().to_html()
        )


def named(guide: AutoFlow) -> str:
    """A guide in a line, without its layers."""
    said = guide.extra_repr()
    return f"{type(guide).__name__}{f', {said}' if said else ''}"


def coloured(sentence: str, is_good: bool) -> str:
    """A verdict's sentence as HTML, green or red."""
    colour = "#1a7f37" if is_good else "#b42318"
    return f'<p style="color: {colour}; font-weight: bold">{html.escape(sentence)}</p>'
