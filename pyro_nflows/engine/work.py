"""How much work a log density is, counted and not timed: what is chosen by it is the same on every machine."""

import contextlib
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..numerics import LogDensity
from ..system.randomness import forked

#: Operations whose numbers are each a sum over the last dimension of an argument, and which argument that is.
SUMS = {
    "mm": 0,
    "bmm": 0,
    "mv": 0,
    "dot": 0,
    "addmm": 1,
    "addmv": 1,
    "baddbmm": 1,
    "linalg_cholesky_ex": 0,
    "linalg_inv_ex": 0,
    "linalg_solve_triangular": 0,
    "triangular_solve": 1,
    "cholesky_solve": 1,
    "cholesky_inverse": 0,
    "linalg_lu_factor_ex": 0,
    "_linalg_solve_ex": 0,
    "_linalg_det": 0,
    "_linalg_slogdet": 0,
    "_linalg_eigh": 0,
}

#: What has been counted already: a model that is a long Python loop is not run again for it.
_known: "weakref.WeakKeyDictionary[LogDensity, int]" = weakref.WeakKeyDictionary()


def work_of(log_joint: LogDensity, point: Tensor) -> int:
    """How many numbers one row more takes to compute, each as many times as it is a sum of products.

    What is computed of the data alone, once for all rows, does not count.

    :param log_joint: ``(K, D) -> (K,)``.
    :param point: where to look, ``(D,)``.
    :return: the count; 0 where the density cannot be evaluated there.

    Example::

        >>> X = torch.zeros(1000, 3)
        >>> work_of(lambda z: -(X @ z.T).square().sum(0), torch.zeros(3))  # products, squares, one sum, one sign
        4002
    """
    with contextlib.suppress(TypeError):  # of some functions there can be no weak reference
        if log_joint in _known:
            return _known[log_joint]
    try:
        with forked():
            one, three = (_counted(log_joint, point.detach().expand(num, -1).clone()) for num in (1, 3))
    except Exception:  # whatever it is, the fit will meet it and say so
        return 0
    work = max(0, (three - one) // 2)
    with contextlib.suppress(TypeError):
        _known[log_joint] = work
    return work


@torch.no_grad()
def _counted(log_joint: LogDensity, z: Tensor) -> int:
    with _Counter() as counter:
        log_joint(z)
    return counter.num


class _Counter(TorchDispatchMode):
    """Counts what operations give; views and other changes of shape give nothing new."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch._dynamo is imported, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            numbers = sum(leaf.numel() for leaf in tree_flatten(found)[0] if isinstance(leaf, Tensor))
            at = SUMS.get(func.overloadpacket.__name__)
            self.num += numbers * (1 if at is None else args[at].shape[-1])
        return found
