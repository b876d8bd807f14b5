"""L-BFGS, SciPy's: a function and its gradient go in, the points of the way come out."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

from ..engine.budget import OutOfTime

#: Stands for a loss that is not finite: the line search then turns back.
FAR = 1e30


class _Late(Exception):
    """The time for a climb is over."""


def climbed(
    loss: Callable[[Any], tuple[float, Any]],
    start: Any,
    num_iterations: int,
    until: float = math.inf,
    *,
    memory: int = 10,
    level: float = 1e-9,
) -> list[Any]:
    """The points that L-BFGS comes to, without the start.

    :param loss: what is made small, with its gradient; :data:`FAR` with a gradient of zero, or an error that torch or a
        distribution raises, where there is none.
    :param start: a NumPy array of double precision.
    :param until: when to make do with what was found, by ``time.perf_counter``.
    :param memory: steps that are remembered.
    :param level: the share of a loss by which a step that makes it smaller is the last.

    Example::

        >>> import numpy as np
        >>> climbed(lambda x: (float(((x - 3) ** 2).sum()), 2 * (x - 3)), np.zeros(2), 10)[-1]
        array([3., 3.])
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]  # its import adds a filter of warnings

    path = list[Any]()

    def guarded(x: Any) -> tuple[float, Any]:
        try:
            return loss(x)
        except (ValueError, RuntimeError):  # a distribution refused an overshooting point
            return FAR, 0.0 * x

    def note(x: Any) -> None:
        path.append(x.copy())
        if time.perf_counter() > until:
            raise _Late

    options = {"maxiter": num_iterations, "maxcor": memory, "ftol": level}
    with contextlib.suppress(_Late, OutOfTime):
        minimize(guarded, start, jac=True, method="L-BFGS-B", callback=note, options=options)
    return path
