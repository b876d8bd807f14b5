"""Log densities in double precision, where single precision cannot tell two points apart, or rounds too much."""

import torch
from torch import Tensor

from ..system.exclusive import validation, with_dtype
from .log_joint import LogJoint


def already_double(z: Tensor) -> Tensor | None:
    """Sums over rows are in double precision as they are."""
    return None


def in_double(joint: LogJoint, z: Tensor) -> Tensor | None:
    """The log density at rows in double precision, with the arguments' data; None where the model cannot."""
    try:
        with with_dtype(torch.float64), validation(False):
            return joint.double(z.double())
    except (RuntimeError, TypeError, ValueError):  # the model's own constants may be of another precision
        return None
