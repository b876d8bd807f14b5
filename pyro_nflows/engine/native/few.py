r"""Matrices of few numbers, such as :math:`\phi^{i - j}` of an autoregression, are not written out.

A model that writes a chain as a product has, for each particle, a matrix :math:`M_{ij} = f(\theta, c_{ij})` of a few
parameters and constants, which meets a vector. Where few of the :math:`c_{ij}` differ (:math:`T + 1` lags in
:math:`T^2` entries), :math:`f` is computed for those, and products look up which one an entry has:

.. math:: (M z)_i = \sum_j f(\theta, c_{k(i, j)})\, z_j ,

particle by particle in the innermost loop, so that neither :math:`M` nor the gradient with respect to it lies in
memory. The rewriting is of a recording, by operations that compiled code has.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...system.recorder import Call, is_value, values_of
from ..tape import Tape
from .ops import expression

_aten = torch.ops.aten
#: Particles from which on they make an innermost loop.
PARTICLES = 8
#: Entries of a matrix from which on it is looked at.
MATRIX = 2**10
#: So many times more entries than numbers make few of these.
FEW = 8
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MOVES = {_aten.permute.default, _aten.transpose.int, _aten.expand.default, _aten.view.default, _aten.clone.default}


class Few(NamedTuple):
    """A matrix of few numbers: which value has them, and whether rows and columns have changed places."""

    root: int
    turned: bool


class Matrices:
    """The matrices of a recording, one a particle, in whose place there may be something smaller.

    These are :attr:`few`, of few numbers, and :attr:`wide`, what else is made of them; all of them are read by nothing
    but by each other, by products with a vector, and by sums.

    :param tape: a recording without changes in place.
    """

    def __init__(self, tape: Tape):
        self.tape, self.metas = tape, tape.metas
        self.fixed = set(tape.constants) - tape.of_data
        self.few = dict[int, Few]()
        self.wide = set[int]()  # other matrices, one a particle, that are computed from them
        self.same = dict[int, int]()  # matrices that repeat something smaller
        #: Of each matrix of few numbers, where these stand first, and which one each entry has.
        self.parts = dict[int, tuple[Tensor, Tensor]]()
        self._find()
        if self.few:
            while bad := self._unfit():
                self._leave(bad)
            self.parts = self._distinct()

    # ---- what there is ------------------------------------------------------------------------------------------

    def _find(self) -> None:
        for call in self.tape.calls:
            number = call.results[0] if len(call.results) == 1 and not call.is_list else None
            if number is None or number not in self.metas or not self._is_matrix(number):
                continue
            moved = self.moved(call)
            if call.target is _aten.expand.default and moved is None:
                self.same[number] = call.args[0].number
            elif moved is not None:
                source, turned = moved
                if source in self.few:
                    self.few[number] = Few(self.few[source].root, self.few[source].turned != turned)
                elif source in self.wide:
                    self.wide.add(number)
            elif _is_elementwise(call):
                kinds = {self.kind(v.number, self.shape(number)) for v in values_of(call)}
                if kinds <= {"few", "fixed", "particle"} and not self._any_turned(call):
                    self.few[number] = Few(number, False)
                elif None not in kinds and not self._any_turned(call):
                    self.wide.add(number)
            elif self.is_outer(call):
                self.wide.add(number)

    def shape(self, number: int) -> Sequence[int]:
        """That of a tensor, by its number."""
        return self.metas[number][0]

    def _is_matrix(self, number: int) -> bool:
        shape, dtype = self.metas[number]
        fits = len(shape) == 3 and shape[0] >= PARTICLES and min(shape[1:]) > 1 and shape[1] * shape[2] >= MATRIX
        return fits and number not in self.tape.constants and (dtype.is_floating_point or dtype is torch.bool)

    def moved(self, call: Call) -> tuple[int, bool] | None:
        """Of a call that gives a matrix as it is, or turned: which one, and whether it is turned."""
        if call.target not in _MOVES or not is_value(call.args[0]):
            return None
        source = call.args[0].number
        is_same = self.shape(source) == self.shape(call.results[0])
        if is_same and call.target not in (_aten.permute.default, _aten.transpose.int):
            return source, False
        if call.target is _aten.permute.default and list(call.args[1]) in ([0, 1, 2], [0, 2, 1]):
            return source, call.args[1][1] == 2
        if call.target is _aten.transpose.int and {d % 3 for d in call.args[1:]} == {1, 2}:
            return source, True
        return None

    def kind(self, number: int, shape: Sequence[int]) -> str | None:
        """What an operand of a matrix of so many particles is; None for what stays as it was."""
        number = self.same.get(number, number)
        if number in self.few:
            return "few"
        if number in self.wide:
            return "wide"
        own = (1,) * (3 - len(self.shape(number))) + tuple(self.shape(number))
        if own[0] == 1 and number in self.tape.constants:
            return "fixed" if number in self.fixed else "data"
        if number in self.fixed and self.tape.constants[number].stride(0) == 0:
            return "fixed"
        if own[0] == shape[0] and len(own) == 3:
            return "particle" if own[1:] == (1, 1) else "vector" if 1 in own[1:] else None
        return None

    def _any_turned(self, call: Call) -> bool:
        return any(v.number in self.few and self.few[v.number].turned for v in values_of(call))

    def constant(self, number: int) -> Tensor:
        """A constant that is the same for all particles, ``(1, N, M)`` or what is broadcast to that."""
        tensor = self.tape.constants[number]
        return tensor[:1] if tensor.dim() == 3 else tensor

    def is_outer(self, call: Call) -> bool:
        """Whether a call is the product of a column with a row, for each particle."""
        return call.target is _aten.bmm.default and self.shape(call.args[0].number)[2] == 1

    def _readers(self) -> dict[int, list[Call]]:
        found = defaultdict[int, list[Call]](list)
        for call in self.tape.calls:
            for number in {v.number for v in values_of(call)}:
                found[number].append(call)
        return found

    def _unfit(self) -> set[int]:
        """Matrices that something else reads than what can be rewritten, or that have no few numbers near them."""
        readers, results = self._readers(), set(self.tape.results)
        found = self.wide - self._reached({*self.few})
        for number in [*self.few, *self.wide]:
            fine = all(self._reads(call) for call in readers[number])
            if not fine or number in results:
                found.add(number)
        return found

    def _reads(self, call: Call) -> bool:
        """Whether what reads a matrix is rewritten."""
        if any(result in self.few or result in self.wide for result in call.results):
            return True
        return self.meets(call) is not None or self.sums(call)

    def meets(self, call: Call) -> bool | None:
        """Of a product of a matrix with a vector for each particle: whether the matrix comes first."""
        if call.target is not _aten.bmm.default:
            return None
        a, b = (arg.number for arg in call.args)
        known = [x in self.few or x in self.wide for x in (a, b)]
        if known == [True, False] and self.shape(b)[2] == 1 and b not in self.tape.constants:
            return True
        return False if known == [False, True] and self.shape(a)[1] == 1 and a not in self.tape.constants else None

    def sums(self, call: Call) -> bool:
        """Whether a call sums a matrix over rows, or columns, or both."""
        if call.target is not _aten.sum.dim_IntList or call.kwargs:
            return False
        is_ours = call.args[0].number in self.few or call.args[0].number in self.wide
        return is_ours and bool(call.args[1]) and {d % 3 for d in call.args[1]} <= {1, 2}

    def _leave(self, bad: set[int]) -> None:
        """Let these be as they were, and all that is computed from them, or that they are computed from."""
        reached = self._reached(bad)
        self.few = {n: few for n, few in self.few.items() if n not in reached}
        self.wide -= reached

    def _reached(self, start: set[int]) -> set[int]:
        """These matrices and all that share a call with one of them, or with one of those, and so on."""
        near = defaultdict[int, set[int]](set)
        for call in self.tape.calls:
            numbers = [*call.results, *(value.number for value in values_of(call))]
            inside = {number for number in numbers if number in self.few or number in self.wide}
            for number in inside:
                near[number] |= inside
        reached = set[int]()
        while start:
            reached |= start
            start = set[int]().union(*(near[number] for number in start)) - reached
        return reached

    # ---- which entries differ -----------------------------------------------------------------------------------

    def _distinct(self) -> dict[int, tuple[Tensor, Tensor]]:
        """See :attr:`parts`; matrices that are not of few numbers after all are left as they were."""
        made = {call.results[0]: call for call in self.tape.calls if len(call.results) == 1}
        parts = dict[int, tuple[Tensor, Tensor]]()
        groups = _groups(self._operands(made[n], "few") | {n} for n, few in self.few.items())
        for group in groups:
            roots = [n for n in group if self.few[n].root == n]
            shape = self.shape(roots[0])[1:]
            fixed = set[int]().union(*(self._operands(made[n], "fixed") for n in roots))
            found = _classes([self.constant(n) for n in sorted(fixed)], shape)
            if any(self.shape(n)[1:] != shape for n in roots) or FEW * len(found[0]) > math.prod(shape):
                self._leave(set(group))
                return self._distinct()
            parts.update(dict.fromkeys(roots, found))
        return parts

    def _operands(self, call: Call, kind: str) -> set[int]:
        shape = self.shape(call.results[0])
        return {v.number for v in values_of(call) if self.kind(v.number, shape) == kind}


def _is_elementwise(call: Call) -> bool:
    """Whether compiled code has an expression for a call, whose numbers are those of its operands in the same place."""
    name = call.target._schema.name.split("::")[1]
    return expression(name, call.args, call.kwargs) is not None


def _groups(sets: Iterable[set[int]]) -> list[set[int]]:
    """Sets that have members in common, joined."""
    groups = list[set[int]]()
    for each in sets:
        near = [group for group in groups if group & each]
        groups = [group for group in groups if not group & each]
        groups.append(each.union(*near))
    return groups


def _classes(constants: Sequence[Tensor], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Entries that are equal in all constants: where each kind stands first, and the kind of each entry."""
    kind = torch.zeros(math.prod(shape), dtype=torch.int64)
    for constant in constants:
        each = constant.detach().cpu().expand(1, *shape).reshape(-1)
        bits = each.view(_BITS[each.dtype.itemsize]) if each.is_floating_point() else each  # so a NaN equals itself
        _, own = torch.unique(bits, return_inverse=True)
        _, kind = torch.unique(kind * (int(own.max()) + 1) + own, return_inverse=True)
    first = torch.full((int(kind.max()) + 1,), len(kind), dtype=torch.int64)
    first.scatter_reduce_(0, kind, torch.arange(len(kind)), "amin")
    return first, kind.reshape(tuple(shape))
