r"""Recordings in which matrices of few numbers are not written out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...system.recorder import Call, Value, is_value, mapped, needed
from ..tape import Tape
from .few import Matrices
from .layout import packed

_aten = torch.ops.aten
#: The shape and type of a tensor.
Meta = tuple[torch.Size, torch.dtype]


def of_few_numbers(tape: Tape) -> tuple[Tape, set[int]]:
    """The same recording, without the matrices of few numbers that only products and sums read.

    Also the numbers of what is to be looped over with its dimensions as they come, the particles innermost.

    :param tape: a recording without changes in place.

    Example::

        >>> lags = (torch.arange(40)[:, None] - torch.arange(40)).abs()
        >>> f = lambda rho, z: ((rho[:, None, None] ** lags) @ z[..., None],)
        >>> given = torch.rand(64, dtype=torch.float64), torch.randn(64, 40, dtype=torch.float64)
        >>> rewritten, _ = of_few_numbers(Tape(f, given))
        >>> any(rewritten.metas[n][0] == (64, 40, 40) for call in rewritten.calls for n in call.results)
        False
        >>> torch.allclose(*rewritten.run(given), *f(*given))
        True
    """
    if not tape.pure:
        return tape, set()
    found = Matrices(tape)
    return _Writer(found).result() if found.few else (tape, set())


class _Writer:
    """Writes calls, with the particles as the last dimension of matrices.

    A matrix is written where it is first summed, after all that it is made of, so that one loop does all of it.
    """

    def __init__(self, found: Matrices):
        self.found, tape = found, found.tape
        self.constants, self.metas, self.strides = {**tape.constants}, {**tape.metas}, {**tape.strides}
        self.fresh = 1 + max([*tape.metas, *tape.constants])
        self.at = dict[int, int]()  # what has taken the place of a matrix
        self.calls = list[Call]()
        self.loops = list[Call]()  # over matrices, and what comes after these
        self.kept = dict[Any, int]()
        self.made = set[int]()
        self.wide = {call.results[0]: call for call in tape.calls if call.results and call.results[0] in found.wide}

    def result(self) -> tuple[Tape, set[int]]:
        """The recording with the calls that take the place of the others, and what these give."""
        tape = self.found.tape
        calls = [call for old in tape.calls for call in self.instead(old)]
        calls = needed(calls, tape.results)
        return tape.rewritten(calls, self.constants, self.metas, self.strides), self.made

    def instead(self, call: Call) -> list[Call]:
        """What takes the place of a call."""
        self.calls, self.loops = [], []
        number = call.results[0] if call.results else -1
        comes_first = self.found.meets(call)
        if number in self.found.few:
            if self.found.few[number].root == number and self.found.moved(call) is None:
                self.at[number] = self._elementwise(call, few=number)
        elif number in self.found.wide:
            return []
        elif comes_first is not None:
            self._meet(call, comes_first)
        elif self.found.sums(call):
            self._sum(call)
        else:
            return [call]
        return [*self.calls, *self.loops]

    def _wide(self, number: int) -> int:
        """A matrix with the particles as its last dimension."""
        if number not in self.at:
            call = self.wide[number]
            moved = self.found.moved(call)
            if moved is None and not self.found.is_outer(call):
                self.at[number] = self._elementwise(call)
            elif moved is None or (moved[1] and self.found.is_outer(self.wide[moved[0]])):
                outer, order = (call, [1, 2, 0]) if moved is None else (self.wide[moved[0]], [2, 1, 0])
                a, b = (Value(self._turned(arg.number, order)) for arg in outer.args)
                self.at[number] = self._looped(self._turned_meta(number), _aten.mul.Tensor, a, b)
            else:
                self.at[number] = self._wide(moved[0])
                if moved[1]:
                    self.at[number] = self._viewed(_aten.transpose.int, self.at[number], 0, 1)
                    self.loops.append(self.calls.pop())
        return self.at[number]

    def _elementwise(self, call: Call, few: int | None = None) -> int:
        shape = self.found.shape(call.results[0])
        first = None if few is None else self.found.parts[few][0]

        def operand(leaf: Any) -> Any:
            if not is_value(leaf):
                return leaf
            return Value(self._operand(leaf.number, shape, first))

        args, kwargs = mapped(operand, (call.args, call.kwargs))
        if first is None:
            return self._looped(self._turned_meta(call.results[0]), call.target, *args, **kwargs)
        meta = torch.Size((len(first), shape[0])), self.metas[call.results[0]][1]
        return self._made(meta, call.target, *args, **kwargs)

    def _turned_meta(self, number: int) -> Meta:
        """The shape and type of a matrix with the particles as its last dimension."""
        (size, *matrix), dtype = self.metas[number]
        return torch.Size((*matrix, size)), dtype

    def _operand(self, number: int, shape: Sequence[int], first: Tensor | None) -> int:
        number, kind = self.found.same.get(number, number), self.found.kind(number, shape)
        if kind == "wide":
            return self._wide(number)
        if kind == "few":
            return self._spread(number) if first is None else self.at[self.found.few[number].root]
        own = self.found.shape(number)
        if first is None:
            return self._in_front(number) if kind in ("fixed", "data") else self._last(number)
        if kind == "particle":
            return self._viewed(_aten.select.int, self._last(number), 0, 0)
        if not own:
            return number
        wide = self.found.constant(number).expand(1, *shape[1:]).reshape(-1)
        return self._constant(("first", number, id(first)), wide[first].unsqueeze(-1))

    def _spread(self, number: int) -> int:
        """A matrix of few numbers written out, for the loop that reads it."""
        few = self.found.few[number]
        index = self.found.parts[few.root][1]
        at = self._constant(("which", id(index), few.turned), (index.t() if few.turned else index).contiguous())
        return self._looped(self._turned_meta(number), _aten.index.Tensor, Value(self.at[few.root]), [Value(at)])

    def _last(self, number: int) -> int:
        """A tensor of particles with these as its last dimension."""
        return self._turned(number, [1, 2, 0])

    def _turned(self, number: int, order: Sequence[int]) -> int:
        """A tensor with another order of dimensions, in which it also lies in memory."""
        view = self._viewed(_aten.permute.default, number, [*order])
        return self._made(self.metas[view], _aten.clone.default, Value(view))

    def _in_front(self, number: int) -> int:
        """A constant matrix, or what is broadcast to one, for all particles."""
        own = self.found.shape(number)
        if len(own) == 3 and own[0] != 1:
            return self._constant(("one", number), self.found.constant(number)[0].unsqueeze(-1))
        if len(own) == 3:
            return self._last(number)
        return self._viewed(_aten.unsqueeze.default, number, -1) if own else number

    def _matrix(self, number: int) -> int:
        return self._spread(number) if number in self.found.few else self._wide(number)

    def _meet(self, call: Call, is_first: bool) -> None:
        a, b = (arg.number for arg in call.args)
        matrix, vector = (a, b) if is_first else (b, a)
        turned = self._turned(vector, [2, 1, 0])
        both = self._looped(self._turned_meta(matrix), _aten.mul.Tensor, Value(self._matrix(matrix)), Value(turned))
        total = self._summed(both, [1 if is_first else 0])
        self._called(call, _aten.permute.default, Value(total), [2, 0, 1])

    def _sum(self, call: Call) -> None:
        over = [d % 3 for d in call.args[1]]
        total = self._summed(self._matrix(call.args[0].number), [d - 1 for d in over])
        if len(call.args) > 2 and call.args[2]:
            self._called(call, _aten.permute.default, Value(total), [2, 0, 1])
        else:
            whole = self._viewed(_aten.permute.default, total, [2, 0, 1])
            self.loops.append(self.calls.pop())
            self._called(call, _aten.squeeze.dims, Value(whole), over)

    # ---- calls --------------------------------------------------------------------------------------------------

    def _constant(self, key: Any, tensor: Tensor) -> int:
        if key not in self.kept:
            number, self.fresh = self.fresh, self.fresh + 1
            self.metas[number], self.strides[number] = (tensor.shape, tensor.dtype), tensor.stride()
            self.kept[key], self.constants[number] = number, tensor
        return self.kept[key]

    def _summed(self, number: int, over: Sequence[int]) -> int:
        """A matrix summed over some of its first two dimensions, which stay with size one."""
        shape, dtype = self.metas[number]
        kept = torch.Size(1 if d in over else size for d, size in enumerate(shape))
        return self._looped((kept, dtype), _aten.sum.dim_IntList, Value(number), [*over], True)

    def _viewed(self, target: Any, number: int, *args: Any) -> int:
        """A view of a tensor."""
        shape, dtype = self.metas[number]
        made = target(torch.empty_strided(shape, self.strides[number], dtype=dtype, device="meta"), *args)
        return self._made((made.shape, dtype), target, Value(number), *args, strides=made.stride())

    def _made(self, meta: Meta, target: Any, *args: Any, strides: tuple[int, ...] | None = None, **kwargs: Any) -> int:
        """A new call, by the shape and type of its result."""
        number, self.fresh = self.fresh, self.fresh + 1
        self.metas[number], self.strides[number] = meta, strides or packed(meta[0])
        self.calls.append(Call(target, args, kwargs, (number,), False))
        self.made.add(number)
        return number

    def _looped(self, meta: Meta, target: Any, *args: Any, **kwargs: Any) -> int:
        """A new call that comes after all others."""
        number = self._made(meta, target, *args, **kwargs)
        self.loops.append(self.calls.pop())
        return number

    def _called(self, call: Call, target: Any, *args: Any) -> None:
        """A new call whose result is that of an old one."""
        self.loops.append(Call(target, args, {}, call.results, False))
