r"""A log density's gradient and curvature at single points, recorded: an ascent needs hundreds of them.

Where time is limited, what would not end in its time is refused before it begins, rows that are dear are evaluated a
few at a time, and a function that is dear is recorded once its Python has taken as long as a recording will.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..model.whole import WholeLogJoint
from ..numerics import LogDensity
from ..system.gradients import pulled
from .budget import Budget
from .cost import GRADIENT, finish
from .gradient_times import GradientTimes
from .replayed import Replayed
from .tape import Tape

#: Above this dimension the curvature's diagonal stands for all of it.
MAX_HESSIAN = 200
#: Random signs by which that is found.
NUM_SIGNS = 32
#: Points at once, and where their curvature is wanted too.
ROWS, CURVED_ROWS = 256, 64


class DensityGradient:
    r"""A log density that also gives its gradient and Hessian at a point.

    :param log_joint: ``(K, D) -> (K,)``.
    :param data: tensors that it reads besides, and that :meth:`at` replaces.
    :param whole: the log density over all rows, where that is a sum over visits to some of them: value, gradient and
        Hessian are then sums too, and no more is in memory than one visit takes.
    :param compile: whether what is asked for often is compiled. What it gives then differs by rounding from one call to
        another, which a run that goes on from a checkpoint may ask for in another place.

    Example::

        >>> density = DensityGradient(lambda z: -z.square().sum(-1))
        >>> density.value_and_grad(torch.tensor([1.0, 2.0]))
        (tensor(-5.0000), tensor([-2.0000, -4.0000]))
    """

    def __init__(
        self,
        log_joint: LogDensity,
        data: Sequence[Tensor] = (),
        whole: WholeLogJoint | None = None,
        compile: bool = True,
    ):
        self.log_joint, self.data, self.whole, self.compile = log_joint, data, whole, compile
        #: Rows, or directions, that there is memory for at once; None for any number.
        self.block: int | None = getattr(log_joint, "block", None)
        self._tapes: dict[Any, Replayed | None] = {}
        self._source: DensityGradient | None = None
        #: What there is time for, in the time of a run.
        self.times = GradientTimes(self._tried)

    def at(self, log_joint: LogDensity, data: Sequence[Tensor]) -> "DensityGradient":
        """That of the same density with other data, by the same recordings."""
        new = DensityGradient(log_joint, data, self.whole, self.compile)
        new._source, new.times.budget = self, self.times.budget
        return new

    def within(self, budget: Budget) -> "DensityGradient":
        """The same, in the time of a run.

        Example::

            >>> density = DensityGradient(lambda z: -z.square().sum(-1)).within(Budget(60.0))
            >>> with density.times.budget.within(0.0):
            ...     density.value_and_grad(torch.zeros(2))
            Traceback (most recent call last):
            ...
            pyro_nflows.engine.budget.OutOfTime
        """
        self.times.budget = budget
        return self

    def agrees(self, z: Tensor) -> bool:
        """Whether recordings made with other data are right at a point."""
        try:
            pairs = list(zip(self._run(self._value_and_grad, z), self._value_and_grad(z)))
        except (RuntimeError, ValueError):  # shapes depend on the data
            return False
        shared = self._tapes.get(_key("_value_and_grad", z)) is not None
        return shared and all(torch.allclose(a, b, 1e-3, 1e-3, equal_nan=True) for a, b in pairs)

    def __call__(self, z: Tensor) -> Tensor:
        times = self.times
        if not times.budget.is_limited or torch._C._functorch.is_functorch_wrapped_tensor(z):
            return self.log_joint(z)
        times.budget.need(times.cost_at(z).of(len(z)) / GRADIENT)
        return torch.cat([self._value(part) for part in z.split(times.num_at_once(z, max(1, len(z))))])

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """At one point ``(D,)``: a scalar and ``(D,)``."""
        value, grad = self._run(self._value_and_grad, z)
        return value, grad

    def values_and_grads(self, z: Tensor, num_rows: int = ROWS) -> tuple[Tensor, Tensor]:
        """Values ``(N,)`` and gradients ``(N, D)`` at points ``(N, D)``, in batches."""
        num_rows = self.times.num_at_once(z, min(num_rows, self.block or num_rows))
        num = -(-len(z) // num_rows) * num_rows
        rows = torch.cat([z, z[:1].expand(num - len(z), -1)]).split(num_rows)
        if self.times.budget.is_limited and self.whole is None:
            self.times.budget.need(len(rows) * self.times.expected(_key("_values_and_grads", rows[0]), rows[0]))
        values, grads = zip(*(self._run(self._values_and_grads, part) for part in rows))
        return torch.cat(values)[: len(z)], torch.cat(grads)[: len(z)]

    def hessian(self, z: Tensor) -> Tensor:
        """At one point, ``(D, D)``; of many dimensions only its diagonal, the rest zero."""
        if len(z) > MAX_HESSIAN:
            return self.hessian_diagonal(z).diag()
        return self._curved(z, torch.eye(len(z)).to(z), lambda: self._run(self._hessian, z)[0])

    def hessian_diagonal(self, z: Tensor) -> Tensor:
        r"""At one point, ``(D,)``; of many dimensions by random signs :math:`r`, as the mean of :math:`r \odot H r`."""
        if len(z) <= MAX_HESSIAN:
            return self.hessian(z).diagonal()
        signs = torch.randint(0, 2, (NUM_SIGNS, len(z)), device=z.device).to(z) * 2 - 1
        return (self.products(z, signs) * signs).mean(0)

    def products(self, z: Tensor, rows: Tensor) -> Tensor:
        """Rows ``(N, D)`` times the Hessian at one point, ``(N, D)``."""
        return self._curved(z, rows, lambda: self._run(self._products, z, rows)[0])

    def curvatures(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, gradients, and rows ``(C, D)`` times the Hessians at points ``(N, D)``, in batches.

        They are ``(N,)``, ``(N, D)`` and ``(N, C, D)``. Where a function cannot be derived twice, the products are NaN.
        """
        num_rows = self.times.num_at_once(z, min(CURVED_ROWS, self.block or CURVED_ROWS))
        num = -(-len(z) // num_rows) * num_rows
        parts = torch.cat([z, z[:1].expand(num - len(z), -1)]).split(num_rows)
        found = ([part.clone() for part in self._run(self._curvatures, points, rows)] for points in parts)
        values, grads, products = (torch.cat(part)[: len(z)] for part in zip(*found))
        return values, grads, products

    def _curved(self, z: Tensor, rows: Tensor, derived: Callable[[], Tensor]) -> Tensor:
        """Products with the Hessian by derivatives, or by differences of gradients.

        Not every function that has a gradient can be derived twice: some cannot at all, some look as if they were
        linear, and some, as ``torch.logaddexp`` of numbers far apart, become NaN.
        """
        try:
            found, refused = derived(), None
        except RuntimeError as error:
            found, refused = torch.full_like(rows, torch.nan), error
        if bool(found.isfinite().all()):
            return found
        differences = self._differences(z, rows)
        if bool(differences.isfinite().all()):
            return differences
        if refused is not None:
            raise refused
        return found

    def _differences(self, z: Tensor, rows: Tensor) -> Tensor:
        """Central differences of the gradient along rows."""
        step = torch.finfo(z.dtype).eps ** (1 / 3) / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
        _, grads = self.values_and_grads(torch.cat([z + step * rows, z - step * rows]))
        return (grads[: len(rows)] - grads[len(rows) :]) / (2 * step)

    def _run(self, function: Callable[..., list[Tensor]], *inputs: Tensor) -> list[Tensor]:
        inputs = tuple(tensor.detach() for tensor in inputs)
        if self.whole is None:
            return self._in_time(function, inputs, ())
        sums: list[Tensor] = []
        for visit in self.whole.visits():
            given = tuple(tensor.to(inputs[0].device) for tensor in visit.tensors)
            terms = [term.double() for term in self._in_time(function, inputs, given)]
            sums = [total + term for total, term in zip(sums, terms)] if sums else terms
        return [total.to(inputs[0]) for total in sums]

    def ask(self, z: Tensor, num: int) -> None:
        """Ask for the time that so many gradients at rows will take, where something else computes these.

        :raises OutOfTime: in a piece of work that has less.
        """
        if self.times.budget.is_limited:
            self.times.budget.need(num * self.times.cost_at(z).of(len(z)))

    # ---- where time is limited --------------------------------------------------------------------------------

    def _in_time(
        self, function: Callable[..., list[Tensor]], inputs: tuple[Tensor, ...], visit: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """What a function gives, unless it would not end in time."""
        times = self.times
        if not times.budget.is_limited:
            return self._replayed(function, inputs, visit)
        name, key = function.__name__, _key(function.__name__, *inputs)
        expected = times.expected(key, inputs[0], _num_products(name, inputs))
        times.budget.need(expected)
        is_new, began = key not in self._tapes, time.perf_counter()
        is_bare = is_new and self._source is None and times.is_too_soon(key, expected)
        found = function(*inputs, *visit) if is_bare else self._replayed(function, inputs, visit)
        finish(found[0])
        if is_bare or not is_new:
            times.note(key, began, len(inputs[0]) if is_bare and name == "_values_and_grads" else 0)
        return found

    def _tried(self, z: Tensor) -> Tensor:
        """Gradients at rows, as a trial; over the rows of one visit, if there are visits."""
        visits = [] if self.whole is None else next(iter(self.whole.visits())).tensors
        return self._values_and_grads(z, *(tensor.to(z.device) for tensor in visits))[0]

    def _value(self, z: Tensor) -> Tensor:
        self.times.budget.need(self.times.cost_at(z).of(len(z)) / GRADIENT)
        return self.log_joint(z)

    # ---- recordings -------------------------------------------------------------------------------------------

    def _replayed(
        self, function: Callable[..., list[Tensor]], inputs: tuple[Tensor, ...], visit: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """By a recording, if there is one."""
        tape = self._tape(function.__name__, inputs, visit)
        if tape is None:
            return function(*inputs, *visit)
        with torch.no_grad():
            return tape.run([*inputs, *visit])

    def _tape(self, name: str, inputs: tuple[Tensor, ...], visit: tuple[Tensor, ...]) -> Replayed | None:
        key = _key(name, *inputs)
        if key not in self._tapes and self._source is None:
            self._tapes[key] = self._record(getattr(self, name), inputs, visit)
        elif key not in self._tapes:
            shared = cast(DensityGradient, self._source)._tape(name, inputs, visit)
            self._tapes[key] = shared and shared.bound(self.data)
        return self._tapes[key]

    def _record(
        self, function: Callable[..., list[Tensor]], inputs: tuple[Tensor, ...], visit: tuple[Tensor, ...]
    ) -> Replayed | None:
        """A recording that is right at another point too; none of a model that has random numbers of its own."""
        try:
            tape = Tape(function, [*inputs, *visit], self.data)
            other = [*(tensor + 0.01 for tensor in inputs), *self._last_visit(visit)]
            pairs = zip(tape.run(other), function(*other))
            same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in pairs)
            return (
                Replayed(tape, inputs[0].device, self.compile, self.times.budget)
                if same and not tape.is_random
                else None
            )
        except Exception:
            return None

    def _last_visit(self, visit: tuple[Tensor, ...]) -> list[Tensor]:
        """Other rows than those of the first visit, if there are any."""
        if self.whole is None:
            return []
        *_, last = self.whole.visits()
        return [tensor.to(given.device) for tensor, given in zip(last.tensors, visit)]

    def _density(self, z: Tensor, *visit: Tensor) -> Tensor:
        return self.log_joint(z) if self.whole is None else self.whole.visit(z, *visit)

    def _values_and_grads(self, z: Tensor, *visit: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            values = self._density(z, *visit)
            if not values.requires_grad:  # rows on which the latents have no bearing
                return [values, torch.zeros_like(z)]
            (grads,) = torch.autograd.grad(values.sum(), z)
        return [values.detach(), grads]

    def _value_and_grad(self, z: Tensor, *visit: Tensor) -> list[Tensor]:
        values, grads = self._values_and_grads(z[None], *visit)
        return [values[0], grads[0]]

    def _hessian(self, z: Tensor, *visit: Tensor) -> list[Tensor]:
        return self._products(z, torch.eye(len(z)).to(z), *visit)

    def _products(self, z: Tensor, rows: Tensor, *visit: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            z = z.detach().clone().requires_grad_()
            value = self._density(z[None], *visit)[0]
            if not value.requires_grad:
                return [torch.zeros_like(rows)]
            (gradient,) = torch.autograd.grad(value, z, create_graph=True)
            if not gradient.requires_grad:  # a density that is linear, or a function that can be derived once
                return [torch.full_like(rows, torch.nan)]
            return [torch.cat([pulled(gradient, z, part) for part in rows.split(self.block or len(rows))])]

    def _curvatures(self, z: Tensor, rows: Tensor, *visit: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            z = z.detach().clone().requires_grad_()
            values = self._density(z, *visit)
            products = z.new_full((len(z), *rows.shape), torch.nan)
            if not values.requires_grad:
                return [values, torch.zeros_like(z), products]
            (grads,) = torch.autograd.grad(values.sum(), z, create_graph=True)
            if grads.requires_grad:
                products = pulled(grads, z, rows[:, None].expand(-1, len(z), -1)).movedim(0, 1)
            return [values.detach(), grads.detach(), products]


def _num_products(name: str, inputs: Sequence[Tensor]) -> int:
    """How many products with a Hessian a function gives."""
    if name == "_curvatures":
        return len(inputs[0]) * len(inputs[1])
    return len(inputs[-1]) if name in ("_hessian", "_products") else 0


def _key(name: str, *inputs: Tensor) -> Any:
    return name, *((tensor.shape, tensor.dtype) for tensor in inputs)
