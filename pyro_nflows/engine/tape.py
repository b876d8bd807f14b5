r"""A pure function of tensors recorded once, then replayed without the Python that it was written in.

Recording runs the function for real and notes every tensor operation below autograd and ``vmap``. Equal operations
are noted once, operations on constants are done once, and what the result does not need is dropped. Replay is plain
generated Python: one call into torch a line.
"""

import contextlib
import copy
import gc
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from ..system.recorder import Call, Impure, Recorder, TraceError, Value, is_random, is_value, mapped, needed, values_of
from ..triangles import solve_triangular

__all__ = ["Tape", "TraceError"]

_aten = torch.ops.aten
#: The same operations by a shorter way into torch than the dispatcher's Python objects.
_SHORT: dict[Any, Callable[..., Any]] = {
    _aten.mm.default: torch.mm,
    _aten.bmm.default: torch.bmm,
    _aten.addmm.default: torch.addmm,
    _aten.mul.Tensor: operator.mul,
    _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.div.Tensor: operator.truediv,
    _aten.neg.default: operator.neg,
    _aten.t.default: torch.t,
    _aten.tanh.default: torch.tanh,
    _aten.exp.default: torch.exp,
    _aten.pow.Tensor_Scalar: torch.pow,
    _aten.cat.default: torch.cat,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.transpose.int: torch.transpose,
    _aten.select.int: torch.select,
    _aten.sum.dim_IntList: torch.sum,
    _aten.where.self: torch.where,
    _aten.view.default: Tensor.view,
    _aten.expand.default: Tensor.expand,
}
#: Better than torch's own, whatever the arguments.
_BETTER: dict[Any, Callable[..., Any]] = {_aten.linalg_solve_triangular.default: solve_triangular}


class Tape:
    """A recorded function.

    :param function: a pure function of tensors that returns tensors.
    :param inputs: example inputs; replay needs the same shapes and types.
    :param data: tensors that the function reads besides, and that :meth:`bound` may replace.
    :raises TraceError: if Python values depend on the tensors.

    Example::

        >>> tape = Tape(lambda x: (x.sin() + 0 * x.sin().sum(), x.new_zeros(2)), [torch.zeros(3)])
        >>> tape.run([torch.ones(3)])
        [tensor([0.8415, 0.8415, 0.8415]), tensor([0.0000, 0.0000])]
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], data: Sequence[Tensor] = ()
    ):
        self.num_inputs, self.pure = len(inputs), True
        self.inputs = [(tensor.shape, tensor.dtype) for tensor in inputs]
        with _no_collection():
            try:
                self._record(function, inputs, data)
            except Impure:  # then order matters, and nothing may be shared, moved or left out
                self.pure = False
                self._record(function, inputs, data)
            self._replay = self._generate()

    def _record(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], data: Any) -> None:
        inputs = [tensor.detach().clone() for tensor in inputs]  # no two the same object
        with torch.autograd.set_multithreading_enabled(False), Recorder(inputs, data, self.pure) as recorder:
            results = function(*inputs)
        self.results = [recorder.number(tensor) for tensor in results]
        self.calls = needed(recorder.calls, self.results) if self.pure else recorder.calls
        used = {v.number for call in self.calls for v in values_of(call)} | set(self.results)
        self.constants = {n: t.detach() for n, t in recorder.constants.items() if n in used}
        self.metas, self.strides = recorder.metas, recorder.strides
        self.data = [recorder.number(tensor) for tensor in data]
        self.prologue = needed(recorder.prologue, used)
        self._sources = {v.number: recorder.constants[v.number] for call in self.prologue for v in values_of(call)}

    def _generate(self) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """The replay as Python source: one operation a line, tensors dropped after their last use."""
        scope: dict[str, Any] = {f"v{n}": tensor for n, tensor in self.constants.items()}
        last = {value.number: i for i, call in enumerate(self.calls) for value in values_of(call)}
        keep = set(self.results) | set(self.constants)
        inputs = "".join(f"v{i}, " for i in range(self.num_inputs))
        lines = ["def replay(inputs):", f"    {inputs}= inputs"]
        names = itertools.count()
        for i, call in enumerate(self.calls):
            args, kwargs = self._arguments(call, scope, names)
            target = f"f{next(names)}"
            short = {} if call.kwargs else _SHORT
            scope[target] = _BETTER.get(call.target) or short.get(call.target, call.target)
            results = "".join(f"v{n}, " for n in call.results) if call.is_list else f"v{call.results[0]}"
            dead = sorted({value.number for value in values_of(call) if last[value.number] == i} - keep)
            drop = "; del " + ", ".join(f"v{n}" for n in dead) if dead else ""
            store = f"{results} = " if call.results else ""
            lines.append(f"    {store}{target}({', '.join([*args, *kwargs])}){drop}")
        lines.append(f"    return [{', '.join(f'v{n}' for n in self.results)}]")
        exec(compile("\n".join(lines), "<tape>", "exec"), scope)
        self._scope = scope
        return cast(Callable[[Sequence[Tensor]], list[Tensor]], scope["replay"])

    def _arguments(self, call: Call, scope: dict[str, Any], names: Any) -> tuple[list[str], list[str]]:
        """Source of the arguments."""

        def source(leaf: Any) -> str:
            if isinstance(leaf, Value):
                return f"v{leaf.number}"
            name = f"c{next(names)}"
            scope[name] = leaf
            return name

        def tree(value: Any) -> str:
            if isinstance(value, list | tuple) and not isinstance(value, Value | torch.Size):
                parts = "".join(f"{tree(v)}, " for v in value)
                return f"[{parts}]" if isinstance(value, list) else f"({parts})"
            return repr(value) if type(value) in (int, bool, type(None)) else source(value)

        return [tree(a) for a in call.args], [f"{key}={tree(a)}" for key, a in call.kwargs.items()]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Replay on other inputs."""
        return self._replay(inputs)

    @torch.no_grad()
    def bound(self, data: Sequence[Tensor]) -> "Tape":
        """The same recording with other data; all but the constants is shared.

        :param data: tensors of the same shapes and types as were given first.
        """
        values = self._sources | dict(zip(self.data, data))
        for call in self.prologue:
            named = mapped(lambda a: values[a.number] if is_value(a) else a, (call.args, call.kwargs))
            made = call.target(*named[0], **named[1])
            values.update(zip(call.results, made if call.is_list else [made]))
        new = copy.copy(self)
        new._sources = {number: values[number] for number in self._sources}
        new.constants = {n: values.get(n, tensor) for n, tensor in self.constants.items()}
        new._scope = self._scope | {f"v{n}": tensor for n, tensor in new.constants.items()}
        new._replay = FunctionType(cast(FunctionType, self._replay).__code__, new._scope)
        return new

    def rewritten(self, calls: Sequence[Call], constants: dict[int, Tensor], metas: Any, strides: Any) -> "Tape":
        """The same function by other operations.

        :param calls: what is computed, in order, with the same inputs and results.
        :param constants: tensors that these read, by their numbers.
        :param metas: shape and type of each tensor.
        :param strides: how each lies in memory.
        """
        new = copy.copy(self)
        new.calls, new.constants, new.metas, new.strides = list(calls), constants, metas, strides
        new._replay = new._generate()
        return new

    @property
    def of_data(self) -> set[int]:
        """The numbers of tensors that are data, or made of data alone; all other constants are the same for any data.

        Example::

            >>> x, y = torch.ones(2), torch.ones(2)
            >>> tape = Tape(lambda z: (z * x.exp() + y.new_zeros(2),), [torch.ones(2)], [x])
            >>> len(tape.constants), len(tape.of_data & set(tape.constants))
            (2, 1)
        """
        found = set(self.data)
        for call in self.prologue:
            if any(value.number in found for value in values_of(call)):
                found.update(call.results)
        return found

    @property
    def is_random(self) -> bool:
        """Whether replay draws random numbers of its own."""
        return any(is_random(call.target) for call in self.calls)

    def __len__(self) -> int:
        return len(self.calls)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No search for cycles of garbage: a recording makes many objects, all of which stay."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()
