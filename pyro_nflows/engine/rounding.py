r"""Draws weighed in double precision, where single precision rounds their log density too much.

In single precision :math:`\log \Gamma(r + y) - \log \Gamma(r)` is off by .1 at :math:`r = 10^5`, and by more farther
out: so is the log density of a negative binomial, of a Student's t of many degrees of freedom, of a beta with large
counts. A few draws from the tail of :math:`r` then have weights that are wrong by whole nats, the largest of all, and a
good guide seems to miss something. Where weights are bad, the largest are computed again in double precision; where
these differ, all are.
"""

import torch

from ..diagnostics.worth import effective
from ..model.log_joint import LogJoint
from ..model.precise import in_double
from ..numerics import LogDensity
from ..objectives.draws import Draws

#: Weights that are worth such a share of their number are good enough as they are.
GOOD = 0.9
#: As many of the largest are computed again, and one in so many of all at most.
NUM, ONE_IN = 64, 32
#: Nats by which some may differ from what the others do.
CLOSE = 0.1
#: Draws at once.
ROWS = 250
#: Numbers of data, which would take twice their memory again.
MANY = 2**24


class Rounding:
    """Whether a log density is rounded too much in single precision, as far as its draws have shown.

    :param log_joint: what draws are weighed by. Only of a model itself there is one in double precision, and not of
        every model: some have constants of their own in single precision.
    """

    def __init__(self, log_joint: LogDensity):
        self.joint = log_joint if isinstance(log_joint, LogJoint) and _is_small(log_joint) else None
        #: How far from right a log density has been seen to be; zero where that does not matter.
        self.error = 0.0

    @property
    def note(self) -> str | None:
        """What has been found, in words."""
        if not self.error:
            return None
        return f"log p of draws is in double precision: single precision rounds it by up to {self.error:.2g} nats"

    @torch.no_grad()
    def corrected(self, draws: Draws) -> Draws:
        """Draws with their log density in double precision, where that is needed and can be had."""
        if self.joint is None or self.joint.block is None or draws.z.dtype is not torch.float32:
            return draws  # a model with random numbers of its own has others each time
        if not (self.error or self._is_needed(draws)):
            return draws
        parts = [in_double(self.joint, rows) for rows in draws.z.split(ROWS)]
        exact = [part for part in parts if part is not None]
        return Draws(draws.z, torch.cat(exact), draws.log_q) if len(exact) == len(parts) else draws

    def _is_needed(self, draws: Draws) -> bool:
        log_weight = draws.log_weight.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        num = min(NUM, len(log_weight) // ONE_IN)
        if self.joint is None or not num or effective(log_weight) > GOOD:
            return False
        top = log_weight.topk(num).indices
        exact = in_double(self.joint, draws.z[top])
        apart = None if exact is None else exact - draws.log_p[top].double()
        if apart is None or not bool(apart.isfinite().all()):
            return False
        furthest = float((apart - apart.median()).abs().max())
        self.error = furthest if furthest > CLOSE else 0.0
        return bool(self.error)


def _is_small(joint: LogJoint) -> bool:
    return sum(tensor.numel() for tensor in joint.bound.tensors) < MANY
