"""The verdict on a fit of rows of plates that cross, by what drawing one block again given the rest makes of it."""

import math
from collections.abc import Sequence

from .findings import Block
from .remedies import QUICK
from .row_verdict import BAD_ROW
from .verdict import Outcome, Verdict

#: By how much standard deviations may be off, and means in units of them.
WIDTH, SHIFT = 1.12, 0.2
#: By how much the standard deviation of a sum over rows may be off.
SHARED_WIDTH = 1.25
#: K-hat of a row's weights counts below this ESS.
UNEVEN = 0.5
#: Outcomes that stand, whatever is known of single blocks.
FINAL = (
    Outcome.NOT_FINITE,
    Outcome.IMPROPER,
    Outcome.EDGE,
    Outcome.UNSETTLED,
    Outcome.UNSTABLE,
    Outcome.STARTS_DISAGREE,
)


def with_blocks(
    verdict: Verdict[Outcome], blocks: Sequence[Block], quick: bool = False, obstacle: str = ""
) -> Verdict[Outcome]:
    """A verdict on weights of whole draws, with what is known of blocks of rows.

    :param verdict: on the weights, which fall off with the number of rows however good these are.
    :param blocks: how each is fitted given the others; none where that could not be found.
    :param quick: whether no flow was asked for.
    :param obstacle: why it could not.

    Example::

        >>> import torch
        >>> from pyro_nflows.diagnostics.verdict import Evidence, judge
        >>> weights = judge(Evidence(30 * torch.randn(1000), [], [], torch.ones(1)))
        >>> users = Block(("users",), 400, 1.0, 1.0, 0.02, 0.01, 0.0, 1.1, 7, 0.9, 0.2)
        >>> weights.outcome.name, with_blocks(weights, [users]).outcome.name
        ('DISTRUST', 'TRUST')
        >>> narrow = Block(("users",), 400, 1.0, 1.0, 0.4, 0.01, 0.0, 1.1, 7, 0.9, 0.2)
        >>> with_blocks(weights, [narrow]).outcome.name
        'ROWS'
    """
    if verdict.outcome in FINAL:
        return verdict
    if not blocks:
        return Verdict(verdict.outcome, f"{verdict.sentence} These are weights of whole draws: {obstacle}.")
    rest = QUICK if quick else ". Give more num_steps."
    for block in blocks:
        if block.plates and (block.ess < BAD_ROW or (block.pareto_k > 0.7 and block.ess < UNEVEN)):
            sentence = f"Do not trust {_named(block)}: given all else, weights of their draws are bad, worst at {block}"
            return Verdict(Outcome.ROWS, sentence + rest)
    worst = max(blocks, key=wrong)
    if wrong(worst) > 1:
        sentence = (
            f"Do not trust {_named(worst)}: given all else, standard deviations are {worst.ratio:.2f} times those of "
            f"the guide, at least, and means are off by {worst.shift:.2f} of them"
        )
        return Verdict(Outcome.ROWS, sentence + rest)
    shared = max(blocks, key=lambda block: block.shared_ratio)
    if shared.shared_ratio > SHARED_WIDTH:
        how = f"varies {shared.shared_ratio:.1f} times as much as in these draws, at least"
        how = how if math.isfinite(shared.shared_ratio) else "is not determined by the data"
        return Verdict(Outcome.SHARED, Outcome.SHARED.value.format(rows=_named(shared), how=how))
    of_rows = [block for block in blocks if block.plates]
    weakest = min(of_rows, key=lambda block: block.ess)
    off = max(abs(block.ratio - 1) for block in blocks)
    again = (
        f"rawn again given all else, {_listed(of_rows)} keep their standard deviations to {max(off, 0.01):.0%} and "
        f"their means to {max(block.shift for block in blocks):.2f} of these; the row fitted worst is {weakest}."
    )
    if verdict.outcome.is_trusted:
        return Verdict(verdict.outcome, f"{verdict.sentence} D{again}")
    num = sum(block.num_rows for block in of_rows)
    return Verdict(Outcome.TRUST, f"Trust these draws: d{again} Weights of whole draws, of {num:,} rows, say little.")


def wrong(block: Block) -> float:
    """How far a block is off, beyond noise; up to one is good."""
    wide, narrow = (block.ratio_at(block.between + far * block.noise) for far in (-2, 2))
    narrow = 1 / narrow if narrow else math.inf  # one candidate has all weight, whatever the draw
    found = (wide - 1) / (WIDTH - 1), (narrow - 1) / (WIDTH - 1), block.shift / SHIFT
    return math.inf if any(map(math.isnan, found)) else max(found)


def _named(block: Block) -> str:
    return f"the rows of plate '{' x '.join(block.plates)}'" if block.plates else "what is outside of plates"


def _listed(blocks: Sequence[Block]) -> str:
    names = [f"'{' x '.join(block.plates)}'" for block in blocks]
    return f"the rows of plate{'s' * (len(names) > 1)} {' and '.join(names)}"
