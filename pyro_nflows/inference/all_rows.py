"""Draws of a model with subsampled plates are weighed over all rows, where that can be."""

from collections.abc import Mapping

import torch

from ..diagnostics.findings import Subsampled
from ..model.log_joint import LogJoint
from ..model.subsampled_plates import Plate, start_of, subsampled_plates
from ..model.whole import IndivisibleError, WholeLogJoint, whole
from ..system.exclusive import validation
from ..system.randomness import forked


def over_all_rows(joint: LogJoint) -> tuple[WholeLogJoint | None, Subsampled]:
    """The log joint over all rows of subsampled plates, if there are any and it can be had; and what is known of it.

    The random numbers to come do not depend on whether this is asked.

    :param joint: the log joint of the model as it is.
    """
    with forked():
        try:
            found = whole(joint)
        except IndivisibleError as error:
            return None, Subsampled(_listed(subsampled_plates(joint)), str(error), _is_noisy(joint))
    return found, Subsampled() if found is None else Subsampled(_listed(found.plates))


def _listed(plates: Mapping[str, Plate]) -> tuple[tuple[str, int, int], ...]:
    return tuple((name, plate.taken, plate.size) for name, plate in plates.items())


@torch.no_grad()
def _is_noisy(joint: LogJoint) -> bool:
    """Whether the log joint is another one each time."""
    z = start_of(joint)[None]
    with validation(False):
        values = [joint(z) for _ in range(5)]
    return any(not torch.equal(value, values[0]) for value in values)
