"""What draws of a flow over all rows of a plate are worth: a posterior, with the rows that are fitted worst."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..diagnostics.findings import Faults
from ..engine import History
from ..guides import AutoFlow
from .collapsed import Collapser, Outside
from .encoded import EncodedRows
from .posterior import Call
from .row_modes import described, missed_by_minibatches
from .row_posterior import RowPosterior, weighed_draws
from .tabled import TabledRows

#: Draws that are kept with their rows: of so many numbers, but so many at least, and at most.
MOST_NUMBERS, FEWEST, MOST = 2**26, 100, 1000
#: Draws that are judged at least; after an interrupt, no more than the fewest that are kept.
JUDGED = 500


class Sizes(NamedTuple):
    """How many draws are judged, and how many of them are kept with their rows."""

    judged: int
    kept: int

    @staticmethod
    def of(guide: AutoFlow, history: History, time_for: int = MOST) -> "Sizes":
        """As many as there is time for, but :data:`FEWEST` even if there is none.

        :param guide: says how many numbers a draw has.
        :param history: says whether somebody is waiting.
        :param time_for: draws that there is time for.
        """
        kept = FEWEST if history.interrupted else max(FEWEST, min(MOST, MOST_NUMBERS // guide.latents.dim))
        judged = FEWEST if history.interrupted else max(JUDGED, kept)
        return Sizes(*(max(FEWEST, min(num, time_for)) for num in (judged, kept)))


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
    """
    sizes = sizes or Sizes.of(guide, history)
    draws, worst, judged = weighed_draws(collapser, sizes.judged, sizes.kept, found)
    missed = None if history.interrupted or history.unsearched else missed_by_minibatches(collapser)
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
