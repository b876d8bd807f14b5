"""A run without data, which is more often forgotten than meant."""

import warnings

from ..model.log_joint import LogJoint
from ..model.observed import NothingObservedWarning, left_out
from ..system.frames import user_level


def warn_of_no_data(joint: LogJoint) -> None:
    """Warn where nothing is observed and an argument of the model is ``None``.

    A model whose arguments are all there, or that has none, is taken as meant; the verdict says what its posterior is.

    :param joint: the model at its arguments, after :meth:`~pyro_nflows.model.log_joint.LogJoint.look`.
    """
    absent = [] if joint.has_data else left_out(joint.bound.model, *joint.bound.call)
    if absent:
        names, are = " and ".join(absent), "is" if len(absent) == 1 else "are"
        warnings.warn(
            f"VI: nothing is observed where {names} {are} None, so the posterior is the "
            f"prior; if that is not meant, give the data, as in run(..., {absent[-1]}={absent[-1]})",
            NothingObservedWarning,
            stacklevel=user_level(),
        )
