r"""A log density's slope and curvature at single points, recorded: an ascent needs hundreds of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..weights import LogDensity
from .tape import Tape

#: Above this dimension the curvature's diagonal stands for all of it.
MAX_HESSIAN = 200
#: Points at once.
ROWS = 256


class Slope:
    r"""A log density that also gives its gradient and Hessian at a point.

    :param log_joint: ``(K, D) -> (K,)``.

    Example::

        >>> slope = Slope(lambda z: -z.square().sum(-1))
        >>> slope.value_and_grad(torch.tensor([1.0, 2.0]))
        (tensor(-5.), tensor([-2., -4.]))
    """

    def __init__(self, log_joint: LogDensity):
        self.log_joint = log_joint
        self._tapes: dict[Any, Tape | None] = {}

    def __call__(self, z: Tensor) -> Tensor:
        return self.log_joint(z)

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """At one point ``(D,)``: a scalar and ``(D,)``."""
        value, grad = self._run(self._value_and_grad, z)
        return value, grad

    def values_and_grads(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """At many points ``(N, D)``: ``(N,)`` and ``(N, D)``."""
        num = -(-len(z) // ROWS) * ROWS
        rows = torch.cat([z, z[:1].expand(num - len(z), -1)]).split(ROWS)
        values, grads = zip(*(self._run(self._values_and_grads, part) for part in rows))
        return torch.cat(values)[: len(z)], torch.cat(grads)[: len(z)]

    def hessian(self, z: Tensor) -> Tensor:
        """At one point, ``(D, D)``."""
        return self._run(self._hessian, z)[0]

    def _run(self, function: Callable[[Tensor], list[Tensor]], z: Tensor) -> list[Tensor]:
        z = z.detach()
        key = (function.__name__, z.shape, z.dtype)
        if key not in self._tapes:
            self._tapes[key] = self._record(function, z)
        tape = self._tapes[key]
        if tape is None:
            return function(z)
        with torch.no_grad():
            return tape.run([z])

    def _record(self, function: Callable[[Tensor], list[Tensor]], z: Tensor) -> Tape | None:
        """A recording that is right at another point too; none of a model that has random numbers of its own."""
        try:
            tape = Tape(function, [z])
            other = z + 0.01
            pairs = zip(tape.run([other]), function(other))
            same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in pairs)
            return tape if same and not tape.is_random else None
        except Exception:
            return None

    def _values_and_grads(self, z: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            values = self.log_joint(z)
            (grads,) = torch.autograd.grad(values.sum(), z)
        return [values.detach(), grads]

    def _value_and_grad(self, z: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.log_joint(z[None])[0]
            (grad,) = torch.autograd.grad(value, z)
        return [value.detach(), grad]

    def _hessian(self, z: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            z = z.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_joint(z[None])[0], z, create_graph=True)
            if len(z) <= MAX_HESSIAN:
                return [torch.stack([torch.autograd.grad(s, z, retain_graph=True)[0] for s in slope])]
            probes = torch.randint(0, 2, (32, len(z)), device=z.device).to(z) * 2 - 1
            images = [torch.autograd.grad(slope, z, probe, retain_graph=True)[0] for probe in probes]
            return [torch.diag((torch.stack(images) * probes).mean(0))]
