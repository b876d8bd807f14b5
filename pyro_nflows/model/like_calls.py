r"""Which operations of a recording are alike and can be done at once, as those of a loop's turns.

A model that goes through its data in a Python loop asks for the same few operations in every turn, each on a few
numbers. Two of a recording's operations need not wait for each other if they are equally far from the result, counted
in operations on the longest way; where they are the same operation on tensors of the same shapes, they are *alike*.
What a recursion computes turn by turn stays as it is, since there each turn is further away than the next; what is made
of all its states is not.

A sum that is added up term by term counts as one sum of all its terms, or the terms of each turn would be as far from
each other as the turns are.
"""

import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from ..system.recorder import (
    Call,
    Recorder,
    TraceError,
    Value,
    hashable,
    is_random,
    is_value,
    mapped,
    needed,
    values_of,
)

_aten = torch.ops.aten
#: Operations that take a part out of a tensor: which part may differ among operations that are alike.
PARTS = {_aten.select.int, _aten.slice.Tensor}
#: Operations that cut a tensor into pieces.
SPLITS = {_aten.split.Tensor, _aten.split_with_sizes.default}
#: Operations of which a long sum is made.
SUMS = {_aten.add.Tensor, _aten.sub.Tensor}
#: What the order of elements in memory decides, which is another one where operations are done at once.
UNFIT = {_aten.as_strided.default, _aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default}

Meta = tuple[Size, torch.dtype]
#: What operations that are alike have in common.
Kind = tuple[Any, ...]


def total_of(terms: list[Tensor]) -> Tensor:
    """What stands for a sum that is added up term by term."""
    return torch.stack(terms).sum(0)


class Part(NamedTuple):
    """Elements of a tensor's dimension from ``start`` on; one without the dimension if ``length`` is 0."""

    dim: int
    start: int
    length: int


@dataclass
class Recording:
    """A function of one vector, as operations.

    :param calls: in their order.
    :param result: its number; the vector's is 0, and those of the data follow.
    :param data: tensors that the function reads besides.
    :param constants: tensors that depend on nothing.
    :param metas: of each number, the shape and the type.
    """

    calls: list[Call]
    result: int
    data: Sequence[Tensor]
    constants: dict[int, Tensor]
    metas: dict[int, Meta]


def recorded(function: Callable[[Tensor], Tensor], z: Tensor, data: Sequence[Tensor] = ()) -> Recording | None:
    """The operations of a function, without those that its result does not need; None if they cannot stand for it.

    :param data: tensors that it reads besides. Where its Python depends on them, they are constants.

    Example::

        >>> found = recorded(lambda z: sum(x.exp() for x in z), torch.zeros(5))
        >>> Counter(call.target for call in found.calls)[torch.ops.aten.exp.default]
        5
    """
    given = [z.detach().clone(), *data]
    try:
        with torch.no_grad(), Recorder(given, (), pure=True) as recorder:
            result = function(given[0])
    except TraceError:
        if not data:
            raise
        return recorded(function, z)
    number = recorder.number(result)
    calls = needed(recorder.calls, [number])
    if any(is_random(call.target) or call.target in UNFIT or not call.results for call in calls):
        return None
    used = {number, *(value.number for call in calls for value in values_of(call))}
    constants = {n: tensor.detach() for n, tensor in recorder.constants.items() if n in used}
    parts = list(_taken_out(calls, recorder.metas))
    return Recording(list(_with_sums(parts, number, recorder.metas)), number, data, constants, recorder.metas)


def _taken_out(calls: Sequence[Call], metas: dict[int, Meta]) -> Iterator[Call]:
    """With an operation of its own for each part of a tensor that is taken apart."""
    for call in calls:
        if call.target is _aten.unbind.int:
            dim = call.args[1] if len(call.args) > 1 else 0
            for i, number in enumerate(call.results):
                yield Call(_aten.select.int, (call.args[0], dim, i), {}, (number,), False)
        elif call.target in SPLITS:
            dim, start = call.args[2] if len(call.args) > 2 else 0, 0
            for number in call.results:
                end = start + metas[number][0][dim]
                yield Call(_aten.slice.Tensor, (call.args[0], dim, start, end), {}, (number,), False)
                start = end
        else:
            yield call


def _with_sums(calls: Sequence[Call], result: int, metas: dict[int, Meta]) -> Iterator[Call]:
    """With one sum in place of each that is added up term by term; it stands where the last addition stood."""
    uses = Counter(value.number for call in calls for value in values_of(call))
    uses[result] += 1
    sums = {call.results[0]: call for call in calls if _is_plain_sum(call, metas)}
    inner = {n for call in sums.values() for n in _numbers(call) if n in sums and uses[n] == 1}
    fresh = itertools.count(1 + max(metas))
    for call in calls:
        number = call.results[0]
        if number not in sums:
            yield call
        elif number not in inner:
            added, taken = _terms(number, sums, inner)
            if len(added) + len(taken) == 2:
                yield call
            elif not taken:
                yield Call(total_of, (added,), {}, call.results, False)
            else:
                sides = list[Value]()
                for terms in (added, taken):
                    if len(terms) > 1:
                        total = Value(next(fresh))
                        metas[total.number] = metas[number]
                        yield Call(total_of, (terms,), {}, (total.number,), False)
                    sides.append(total if len(terms) > 1 else terms[0])
                yield Call(_aten.sub.Tensor, tuple(sides), {}, call.results, False)


def _terms(number: int, sums: dict[int, Call], inner: set[int]) -> tuple[list[Value], list[Value]]:
    """All that a sum adds, and all that it takes off, in order; a long loop would not survive a recursion."""
    stack, found = [(number, False)], (list[Value](), list[Value]())
    while stack:
        n, is_taken = stack.pop()
        if n == number or n in inner:
            first, second = _numbers(sums[n])
            stack += [(second, is_taken ^ (sums[n].target is _aten.sub.Tensor)), (first, is_taken)]
        else:
            found[is_taken].append(Value(n))
    return found


def _is_plain_sum(call: Call, metas: dict[int, Meta]) -> bool:
    """Whether it adds, or takes off, a tensor of its own result's shape and type, to another."""
    if call.target not in SUMS or call.kwargs or len(call.args) != 2 or not all(map(is_value, call.args)):
        return False
    return all(metas[a.number] == metas[call.results[0]] for a in call.args)


def _numbers(call: Call) -> list[int]:
    return [value.number for value in values_of(call)]


@dataclass(eq=False)
class Group:
    """Operations that are alike, in any order.

    :param takes_parts: whether all they do is to take parts out of one tensor.
    """

    calls: list[Call]
    takes_parts: bool = False


def groups_of(found: Recording) -> list[Group]:
    """A recording's operations in groups that can be done one after the other.

    Example::

        >>> found = recorded(lambda z: sum(x.exp() * x for x in z), torch.zeros(50))
        >>> len(found.calls), len(groups_of(found))
        (152, 5)
    """
    several = _taken_apart(found.calls)
    kinds = [_kind(call, found.metas, several) for call in found.calls]
    ways = (_by_height(found.calls, kinds), _by_readiness(found.calls, kinds))
    best = min(ways, key=len)
    return [Group(calls, kind[0] == "parts") for kind, calls in best]


def _by_height(calls: Sequence[Call], kinds: Sequence[Kind]) -> list[tuple[Kind, list[Call]]]:
    """Operations of a kind that are equally far from the end."""
    heights, groups = _heights(calls), defaultdict[tuple[int, Kind], list[Call]](list)
    for call, kind in zip(calls, kinds):
        groups[-heights[call.results], kind].append(call)
    return [(kind, group) for (_, kind), group in sorted(groups.items(), key=lambda item: item[0][0])]


def _by_readiness(calls: Sequence[Call], kinds: Sequence[Kind]) -> list[tuple[Kind, list[Call]]]:
    """All operations of a kind that wait for nothing, again and again: first of the kind that is nearest to the start.

    That is where a kind's operations are on average: what is made of a recursion's states then waits for all of these.
    """
    makers = {number: i for i, call in enumerate(calls) for number in call.results}
    needs = [{makers[v.number] for v in values_of(call) if v.number in makers} for call in calls]
    users, depths = defaultdict[int, list[int]](list), list[int]()
    for i, need in enumerate(needs):
        depths.append(1 + max((depths[j] for j in need), default=0))
        for j in need:
            users[j].append(i)
    depth, num = Counter[Kind](), Counter(kinds)
    for kind, each in zip(kinds, depths):
        depth[kind] += each
    left, ready = [len(need) for need in needs], defaultdict[Kind, list[int]](list)
    for i, kind in enumerate(kinds):
        if not left[i]:
            ready[kind].append(i)
    groups = []
    while ready:
        kind = min(ready, key=lambda kind: depth[kind] / num[kind])
        group = sorted(ready.pop(kind))
        groups.append((kind, [calls[i] for i in group]))
        for j in (j for i in group for j in users[i]):
            left[j] -= 1
            if not left[j]:
                ready[kinds[j]].append(j)
    return groups


def _heights(calls: Sequence[Call]) -> dict[tuple[int, ...], int]:
    """Of each operation, by its results, how many operations there are from it to the end on the longest way."""
    needed, heights = defaultdict[int, int](int), {}
    for call in reversed(calls):
        height = max(needed[number] for number in call.results)
        heights[call.results] = height
        for value in values_of(call):
            needed[value.number] = max(needed[value.number], height + 1)
    return heights


def _taken_apart(calls: Sequence[Call]) -> set[Any]:
    """Tensors of which several parts are taken, with the dimension and the length."""
    found: dict[Any, set[int]] = defaultdict(set)
    for call in calls:
        part = part_of(call)
        if part is not None:
            found[call.args[0].number, part.dim, part.length].add(part.start)
    return {key for key, starts in found.items() if len(starts) > 1}


def part_of(call: Call) -> Part | None:
    """What a ``select`` or a ``slice`` takes; None of other operations, and of what is not counted from the front."""
    if call.target not in PARTS or call.kwargs or len(call.args) != (3 if call.target is _aten.select.int else 4):
        return None
    dim, start, *end = call.args[1:]
    if start is None or start < 0 or end == [None]:
        return None
    if not end:
        return Part(dim, start, 0)
    return Part(dim, start, end[0] - start) if start < end[0] < sys.maxsize else None


def _kind(call: Call, metas: dict[int, Meta], several: set[Any]) -> Kind:
    """What operations that are alike have in common, but for their tensors."""
    part = part_of(call)
    key = None if part is None else (call.args[0].number, part.dim, part.length)
    if key in several:
        return "parts", key
    shapes = mapped(lambda leaf: metas[leaf.number] if is_value(leaf) else leaf, (call.args, call.kwargs))
    return "calls", call.target, hashable(shapes), len(call.results)
