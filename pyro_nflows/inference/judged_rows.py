"""What draws of a flow over all rows of a plate are worth: a posterior, with the rows that are fitted worst."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..diagnostics.findings import Faults
from ..engine import Budget, History, OutOfTime
from ..guides import AutoFlow
from .collapsed import MAX_CANDIDATES, Collapser, Outside
from .encoded import EncodedRows
from .posterior import Call
from .row_modes import described, missed_by_minibatches
from .row_posterior import RowPosterior, weighed_draws
from .tabled import TabledRows

#: Draws that are kept with their rows: of so many numbers, but so many at least, and at most.
MOST_NUMBERS, FEWEST, MOST = 2**26, 100, 1000
#: Draws that are judged at least; after an interrupt, no more than the fewest that are kept.
JUDGED = 500
#: Draws that there are even where there is no time.
LEAST = 10


class Sizes(NamedTuple):
    """How many draws are judged, how many of them are kept with their rows, and among how many these are chosen."""

    judged: int
    kept: int
    candidates: int = MAX_CANDIDATES

    @staticmethod
    def of(guide: AutoFlow, history: History, time_for: int = MOST) -> "Sizes":
        """As many as there is time for, but :data:`LEAST` even if there is none.

        :param guide: says how many numbers a draw has.
        :param history: says whether somebody is waiting.
        :param time_for: draws that there is time for.
        """
        kept = FEWEST if history.interrupted else max(FEWEST, min(MOST, MOST_NUMBERS // guide.latents.dim))
        judged = FEWEST if history.interrupted else max(JUDGED, kept)
        return Sizes(*(max(LEAST, min(num, time_for)) for num in (judged, kept)))


def row_posterior(
    guide: AutoFlow,
    rows: TabledRows | EncodedRows,
    collapser: Collapser,
    call: Call,
    history: History,
    leaves: Sequence[Tensor],
    seed: int,
    sizes: Sizes | None = None,
    found: Outside | None = None,
    budget: Budget | None = None,
) -> RowPosterior:
    """A flow over all rows, with weighed draws of it, and what it misses.

    :param guide: of the flow's kind.
    :param rows: the flow.
    :param collapser: weighs its draws.
    :param call: the model's arguments.
    :param history: what training has seen.
    :param leaves: the model's own parameters.
    :param seed: of the draws.
    :param sizes: how many are judged and kept.
    :param found: draws of what is outside of the plate that have been weighed already.
    :param budget: the time of the run.
    """
    sizes = sizes or Sizes.of(guide, history)
    budget = budget or Budget()
    draws, worst, judged = weighed_draws(collapser, sizes.judged, sizes.kept, found, sizes.candidates)
    missed = None
    try:
        if not (history.interrupted or history.unsearched):
            missed = missed_by_minibatches(collapser, budget.of_all(1.0))
    except OutOfTime:
        history.unsearched = True
    return RowPosterior.left(
        guide,
        rows.layer,
        call,
        draws,
        history,
        leaves,
        seed,
        missed=described(guide, missed, call),
        faults=Faults(unobserved=not collapser.terms.joint.has_data),
        row_fit=worst,
        amortizer=rows.amortizer,
        judged=judged if len(judged) > len(draws.z) else judged[:0],
    )
