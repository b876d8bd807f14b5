"""Draws with what is known of them: the evidence in numbers, and the verdict."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..diagnostics import log_evidence
from ..diagnostics.findings import Faults, MissedMass, Subsampled, Training
from ..diagnostics.moves import Redrawn, Settled
from ..diagnostics.outliers import outliers
from ..diagnostics.verdict import Evidence, Outcome, Verdict, judge
from ..diagnostics.worth import effective, tail_index
from ..engine import History
from ..objectives.draws import Draws
from ..system.exclusive import seeded
from .exported import Export, chosen, facts, warn_of
from .fitted import Bounds, bound_of, evidence_of


class Diagnostics(Bounds):
    """What :meth:`pyro_nflows.VI.diagnostics` gives: the evidence in numbers, and how the fit went."""

    pareto_k: float
    ess: float
    num_steps: int
    num_skipped: int
    num_restarts: int
    interrupted: bool
    seconds: float
    outcome: Outcome


def within(draws: Draws) -> Tensor:
    """The draws that are no outliers."""
    return draws.z[~outliers(draws.log_weight)]


class Judged:
    """What can be said of draws of a fit from their weights and from its course."""

    draws: Draws
    starts: Sequence[Draws]
    history: History
    missed: MissedMass
    faults: Faults
    subsampled: Subsampled
    seed: int | None
    modes: tuple[int, int] | None
    own: Draws | None = None
    settled: Settled | None = None
    redrawn: Redrawn | None = None

    @property
    def numbered(self) -> tuple[str, ...]:
        """Plates whose rows are told apart by their numbers."""
        return ()

    @property
    def log_weight(self) -> Tensor:
        """Log-weights ``log p - log q`` of the draws that the verdict rests on, ``(S,)``: of the guide's own, unless
        most latents were drawn anew."""
        return self.weighed.log_weight

    @property
    def of_guide(self) -> Draws:
        """The guide's own draws, which ``draws`` are unless they were moved by chains or drawn anew."""
        return self.draws if self.own is None else self.own

    @property
    def weighed(self) -> Draws:
        """Those whose weights are the evidence: the guide's own, unless ``draws`` were drawn anew."""
        return self.draws if self.redrawn is not None else self.of_guide

    @property
    def evidence(self) -> Evidence:
        """What the verdict rests on."""
        bounds = [bound_of(part.log_weight, log_evidence) for part in self.starts]
        means, sd = [within(part).mean(0) for part in self.starts], within(self.weighed).std(0)
        drift, missed, faults = self.history.drift, self.missed, self.faults
        about = drift, missed, faults, self.subsampled, self.settled, self.redrawn
        return Evidence(self.log_weight, bounds, means, sd, *about)

    def verdict(self) -> Verdict[Outcome]:
        """What to make of the draws: an outcome and one sentence."""
        return self._judged(self.evidence)

    def of_weights(self) -> Verdict[Outcome]:
        """The verdict on the weights alone, wherever chains have moved the draws: the evidence rests on these."""
        return self._judged(self.evidence._replace(settled=None))

    def _judged(self, evidence: Evidence) -> Verdict[Outcome]:
        h = self.history
        ended = h.descent, h.out_of_time, h.stopped, h.unsearched, h.out_of_memory, h.quick
        mixture = self.modes is not None and self.modes[0] > 1
        return judge(evidence, Training(h.num_steps, h.skipped, h.restarts, h.was_right, *ended, mixture))

    def diagnostics(self) -> Diagnostics:
        """The evidence in numbers; see :meth:`pyro_nflows.VI.diagnostics`."""
        history, log_weight = self.history, self.evidence.log_weight
        return {
            **evidence_of(log_weight),
            "pareto_k": tail_index(log_weight),
            "ess": effective(log_weight),
            "num_steps": history.num_steps,
            "num_skipped": history.skipped,
            "num_restarts": history.restarts,
            "interrupted": history.interrupted,
            "seconds": history.seconds,
            "outcome": self.verdict().outcome,
        }

    def exported(
        self,
        parts: Sequence[Draws],
        num_samples: int,
        num_chains: int | None,
        resample: bool | None,
        untrusted: bool,
    ) -> Export:
        """Draws for ArviZ, once it is said aloud where they are not to be trusted."""
        verdict = self.verdict()
        warn_of(verdict, verdict.outcome.is_trusted, untrusted)
        with seeded(self.seed or 0):
            return chosen(parts, num_samples, num_chains, resample)

    def facts_of(self, export: Export) -> dict[str, Any]:
        """What is to be known of them, for the attributes."""
        return facts(self.diagnostics(), self.verdict(), self.seed, export.resampled)
