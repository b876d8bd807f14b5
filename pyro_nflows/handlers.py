r"""Pyro's machinery made to run under ``torch.func``, a check of shapes, and errors in one line."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pyro.ops import special
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from torch import Tensor

from .guides import checks


class Enumerate(EnumMessenger):
    """Pyro's, without its use of ``value.data``, which vmap refuses."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if value is None or not hasattr(msg["fn"], "event_dim"):
            return
        shape = value.shape[: value.dim() - msg["fn"].event_dim]
        dim_to_id = msg["infer"].setdefault("_dim_to_id", {})
        dim_to_id.update(self._param_dims.get(msg["name"], {}))
        self._value_dims[msg["name"]] = {
            dim: id_ for dim, id_ in dim_to_id.items() if len(shape) >= -dim and shape[dim] > 1
        }


class Sized(Messenger):
    """Refuses latents of another shape than the guide's: they might broadcast."""

    def __init__(self, name: str, values: dict[str, Tensor]):
        super().__init__()
        self.name, self.values = name, values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            checks.check_shape(self.name, msg, self.values[msg["name"]])


class _SafeLog:
    """Pyro's logarithm with bounded slopes, for contractions and HMMs, without an ``autograd.Function``.

    Those of Pyro cannot be transformed by ``torch.func``.
    """

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        """``log(x)``, with slope ``1 / max(x, eps)``."""
        eps = torch.finfo(x.dtype).eps
        small, still = x < eps, x.detach()
        return torch.where(small, still.log() + (x - still) / eps, torch.where(small, 1.0, x).log())


@contextlib.contextmanager
def transformable() -> Iterator[None]:
    """Within it, Pyro's own operations can be transformed by ``torch.func``."""
    names = vars(special)
    pyros, names["_SafeLog"] = names["_SafeLog"], _SafeLog
    try:
        yield
    finally:
        names["_SafeLog"] = pyros


@contextlib.contextmanager
def restored_dims() -> Iterator[None]:
    """Within it, enumerated sites may be given dimensions; an enumeration that is under way outside hears nothing."""
    before = dict(vars(_ENUM_ALLOCATOR))
    try:
        yield
    finally:
        vars(_ENUM_ALLOCATOR).update(before)


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its message, or its kind where it has none.

    Example::

        >>> first_line(ValueError("no such site\\nTrace Shapes:")), first_line(KeyboardInterrupt())
        ('no such site', 'KeyboardInterrupt')
    """
    return str(error).strip().split("\n")[0] or type(error).__name__
