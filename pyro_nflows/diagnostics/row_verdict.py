"""The verdict on a fit by minibatches, with what is known of the rows of its plate."""

from .findings import RowFit
from .remedies import QUICK
from .verdict import Outcome, Verdict
from .worth import NEARLY_EQUAL

#: A row's ESS below which no number of candidates makes its draws good.
BAD_ROW = 0.1
#: Nats by which weights may be distorted, so that means may be off by this part of a standard deviation.
DISTORTED = 0.3


def with_rows(
    verdict: Verdict[Outcome], rows: RowFit, is_encoded: bool = False, quick: bool = False
) -> Verdict[Outcome]:
    """A verdict on weights of what is outside of a plate, with what is known of the plate's rows.

    :param verdict: on what is outside.
    :param rows: the worst row.
    :param is_encoded: whether the rows' numbers come from an encoder of their data.
    :param quick: whether no flow was asked for, which is then the first thing to try.

    Example::

        >>> import torch
        >>> from pyro_nflows.diagnostics.verdict import Evidence, judge
        >>> flat = judge(Evidence(torch.zeros(1000), [], [], torch.ones(1)))
        >>> with_rows(flat, RowFit("groups", 2000, 17, 0.1, 0.9)).outcome.name
        'ROWS'
    """
    trusted = verdict.outcome.is_trusted
    if trusted and rows.uneven > DISTORTED:
        sentence = (
            f"Do not trust these draws: with the rows of plate '{rows.plate}' integrated out, the weights of what is "
            f"outside of it are known to {rows.uneven:.2g} nats only, since rows are not fitted well enough"
            + (QUICK if quick else ". Give more num_steps.")
        )
        return Verdict(Outcome.ROWS, sentence)
    if trusted and (rows.ess < BAD_ROW or (rows.pareto_k > 0.7 and rows.ess < NEARLY_EQUAL)):
        remedy = "an encoder that tells more of a row" if is_encoded else "fewer rows a minibatch"
        sentence = (
            f"Do not trust the rows of plate '{rows.plate}': the weights of their own draws are bad, worst at {rows}"
            + (QUICK if quick else f". Give more num_steps, or {remedy}.")
        )
        return Verdict(Outcome.ROWS, sentence)
    rest = f" These are weights of what is outside of plate '{rows.plate}', its {rows.num_rows:,} rows integrated out"
    return Verdict(verdict.outcome, f"{verdict.sentence}{rest}; the row fitted worst is {rows}.")
