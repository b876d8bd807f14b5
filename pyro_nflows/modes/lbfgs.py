"""L-BFGS, SciPy's: the points of its way for a function of an array, and its end for a loss of parameters."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

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


def climb(
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
    num_iterations: int,
    check: Callable[[], None] = lambda: None,
    *,
    memory: int = 10,
    level: float = 1e-9,
) -> int:
    """Put parameters where L-BFGS makes a loss of them small.

    :param parameters: of double precision; are changed in place.
    :param loss: of them as they are.
    :param check: called for each loss; it may raise an error where there is no time left.
    :return: how many iterations were made: fewer than there may be where no step makes the loss smaller.

    Example::

        >>> x = torch.zeros(2, dtype=torch.double, requires_grad=True)
        >>> climb([x], lambda: (x - 3.0).square().sum(), 10) < 10, x.detach()
        (True, tensor([3., 3.], dtype=torch.float64))
    """
    like = parameters[0]

    def put(point: Any) -> None:
        vector_to_parameters(torch.as_tensor(point).to(like), parameters)

    def value(point: Any) -> tuple[float, Any]:
        check()
        put(point)
        with torch.enable_grad():
            found = loss()
            grads = torch.autograd.grad(found, parameters)
        return float(found.detach()), parameters_to_vector(grads).cpu().numpy()

    first = parameters_to_vector(parameters).detach().cpu().numpy()
    path = climbed(value, first, num_iterations, memory=memory, level=level)
    put(path[-1] if path else first)
    check()  # a climb ends where it is when there is no time left
    return len(path)
