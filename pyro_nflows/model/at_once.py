r"""A log density whose like operations are done at once, as they would be had its loop been written with vectors.

A model of 300 time steps in a Python loop has some 6,000 operations, each on a few numbers; to evaluate it takes a
fifth of a second of Python, to record its gradient four seconds, and to compile it minutes. Its operations are recorded
once, those that are alike (:mod:`~pyro_nflows.model.like_calls`) are put on each other, and some forty operations on
vectors of 300 are left, which give the same numbers but for rounding, and the same gradients.

They stand for the model only where they agree with it, in value and gradient, at a few points. A model with random
numbers of its own, with parameters, or with Python that depends on values, is run as it is written.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..system.randomness import forked
from ..system.recorder import Call, Value, is_value, mapped, values_of
from .like_calls import Group, Part, Recording, groups_of, part_of, recorded, total_of
from .places import Made, Places, Source

_aten = torch.ops.aten
#: Operations of a model from which on it is worth a look, and the share of them that may be left.
MANY, WORTH = 500, 0.5
#: How far from where they are recorded the two are compared, and how far apart they may be there, as a share.
COMPARED, CLOSE = (0.0, 0.1, 1.0), 1e-3
#: Operations that ask how elements lie, and those that do not.
_FREE = dict.fromkeys((_aten.view.default, _aten._unsafe_view.default, _aten._reshape_alias.default), torch.reshape)


def _in_a_row(rows: Tensor, dim: int = 0) -> Tensor:
    """The rows one after the other, along a dimension of theirs."""
    dim %= rows.dim() - 1
    return rows.movedim(0, dim).flatten(dim, dim + 1)


#: Operations on a list of tensors of one shape, as operations on the tensor whose rows they are.
_ON_ROWS: dict[Any, Callable[..., Tensor]] = {
    total_of: lambda rows: rows.sum(0),
    _aten.stack.default: lambda rows, dim=0: rows.movedim(0, dim),
    _aten.cat.default: _in_a_row,
}


#: An operation as a function of its tensors.
Run = Callable[..., Any]


class Given(NamedTuple):
    """What gives a tensor, and whether it is the same for all of some like operations; if not, one a row."""

    source: Source
    is_same: bool


class AtOnce:
    """A function of one vector, ``(D,)`` to a scalar, that is a recording with like operations done at once.

    :param recording: of the function.
    :param groups: its operations.

    Example::

        >>> found = recorded(lambda z: sum(x.exp() * x for x in z), torch.zeros(50))
        >>> AtOnce(found, groups_of(found))(torch.ones(50)) / 50
        tensor(2.7183)
    """

    def __init__(self, recording: Recording, groups: Sequence[Group]):
        self._metas, self._data, self.dtype = recording.metas, recording.data, recording.metas[0][1]
        self._places = Places(1 + len(self._data), recording.constants)
        self._steps: list[Callable[[Made], None]] = []
        for group in groups:
            self._add(group)
        self._result = self._places.one(recording.result)

    def __len__(self) -> int:
        return len(self._steps)

    def __call__(self, z: Tensor) -> Tensor:
        made: Made = [z, *self._data, *[None] * (self._places.num_places - 1 - len(self._data))]
        for step in self._steps:
            step(made)
        return self._result(made)

    def _add(self, group: Group) -> None:
        calls = sorted(group.calls, key=self._where)
        if group.takes_parts:
            self._take(calls)
        elif len(calls) == 1:
            self._alone(calls[0])
        else:
            self._together(calls)

    def _where(self, call: Call) -> Any:
        """Where what an operation is given lies: in that order, what it is given lies together."""
        part = part_of(call)
        return [self._places.where(value.number) for value in values_of(call)], 0 if part is None else part.start

    def _take(self, calls: Sequence[Call]) -> None:
        """Parts of one tensor, one a row."""
        source = self._parts(calls[0].args[0], [part for part in map(part_of, calls) if part is not None])
        place = self._places.new_place()
        self._places.put([call.results[0] for call in calls], place, range(len(calls)))

        def step(made: Made) -> None:
            made[place] = source(made)

        self._steps.append(step)

    def _parts(self, value: Value, parts: Sequence[Part]) -> Source:
        """What gives several parts of a tensor, one a row."""
        whole, dim, length = self._places.one(value.number), parts[0].dim, parts[0].length
        dim %= max(1, len(self._metas[value.number][0]))
        starts, width = [part.start for part in parts], max(1, length)
        index = (torch.tensor(starts)[:, None] + torch.arange(width)).flatten()
        follow = starts == list(range(starts[0], starts[0] + len(parts) * width, width))

        def source(made: Made) -> Tensor:
            x = whole(made)
            x = x.narrow(dim, starts[0], len(index)) if follow else x.index_select(dim, index.to(x.device))
            rows = x.unflatten(dim, (len(parts), width)).movedim(dim, 0)
            return rows if length else rows.select(dim + 1, 0)

        return source

    def _alone(self, call: Call) -> None:
        """One operation; on a list of tensors of one shape, with these as the rows of one."""
        numbers = [value.number for value in values_of(call)]
        if call.target not in _ON_ROWS or len({self._metas[number] for number in numbers}) > 1 or call.kwargs:
            self._do(*self._given([call]), [call])
            return
        rows, target, rest = self._places.rows(numbers), _ON_ROWS[call.target], call.args[1:]
        self._do([Given(rows, True)], lambda tensor: target(tensor, *rest), [call])

    def _together(self, calls: Sequence[Call]) -> None:
        """Operations that are alike, at once; once only if they are the same."""
        given, run = self._given(calls)
        in_rows = not all(each.is_same for each in given)
        if in_rows and torch.Tag.pointwise in getattr(calls[0].target, "tags", ()):
            run = self._broadcast(calls[0], given, run)
        elif in_rows:
            run = torch.vmap(run, tuple(None if each.is_same else 0 for each in given))
        self._do(given, run, calls, in_rows)

    def _broadcast(self, first: Call, given: Sequence[Given], run: Run) -> Run:
        """What is done number by number needs no ``vmap``, which takes longer than most operations here."""
        dims = [len(self._metas[value.number][0]) for value in values_of(first)]
        lacks = [0 if each.is_same else max(dims) - dim for each, dim in zip(given, dims)]
        dtype = self._metas[first.results[0]][1]

        def every(*tensors: Tensor) -> Tensor:
            rows = [x[(slice(None), *[None] * more)] if more else x for x, more in zip(tensors, lacks)]
            return cast(Tensor, run(*rows)).to(dtype)  # of a number and a tensor, the tensor decides the type

        return every

    def _given(self, calls: Sequence[Call]) -> tuple[list[Given], Run]:
        """What some like operations are given, each tensor for all of them, and the operation as a function of that."""
        first, numbers = calls[0], [[value.number for value in values_of(call)] for call in calls]
        given = list[Given]()
        for column in zip(*numbers):
            is_same = all(number == column[0] for number in column)
            given.append(Given(self._places.one(column[0]) if is_same else self._places.rows(column), is_same))
        return given, _function(first)

    def _do(self, given: Sequence[Given], run: Run, calls: Sequence[Call], in_rows: bool = False) -> None:
        """Note a step, and where its results are."""
        is_list, places = calls[0].is_list, [self._places.new_place() for _ in calls[0].results]
        for place, numbers in zip(places, zip(*(call.results for call in calls))):
            self._places.put(numbers, place, range(len(calls)) if in_rows else None)

        def step(made: Made) -> None:
            found = run(*(each.source(made) for each in given))
            for place, tensor in zip(places, found if is_list else [found]):
                made[place] = tensor

        self._steps.append(step)


def _function(call: Call) -> Run:
    """An operation as a function of its tensors, in their order."""
    target, (args, kwargs) = _FREE.get(call.target, call.target), (call.args, call.kwargs)
    places = [i for i, leaf in enumerate(args) if is_value(leaf)]
    if len(places) == len(values_of(call)):  # none of them within a list

        def flat(*tensors: Tensor) -> Any:
            given = [*args]
            for place, tensor in zip(places, tensors):
                given[place] = tensor
            return target(*given, **kwargs)

        return flat

    def nested(*tensors: Tensor) -> Any:
        left = iter(tensors)
        args, kwargs = mapped(lambda leaf: next(left) if is_value(leaf) else leaf, (call.args, call.kwargs))
        return target(*args, **kwargs)

    return nested


def at_once(single: Callable[[Tensor], Tensor], near: Tensor, data: Sequence[Tensor] = ()) -> AtOnce | None:
    """A function with its like operations done at once; None where that is not worth it, or is not the function.

    :param single: ``(D,)`` to a scalar, by ``vmap`` for several.
    :param near: a point at which it is recorded; the two are compared around it.
    :param data: tensors that it reads besides.
    """
    try:
        with forked(0):
            recording = recorded(single, near, data)
            if recording is None or len(recording.calls) < MANY:
                return None
            groups = groups_of(recording)
            if len(groups) > WORTH * len(recording.calls):
                return None
            made = AtOnce(recording, groups)
            steps = torch.tensor(COMPARED).to(near)[:, None] * torch.randn(len(COMPARED), len(near)).to(near)
            ours, theirs = (_with_gradients(torch.vmap(function), near + steps) for function in (made, single))
    except Exception:  # whatever it is, the model goes on as it is written
        return None
    return made if all(map(_agree, ours, theirs)) else None


def _with_gradients(rows: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(N, 1)`` and gradients ``(N, D)``."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        values = rows(points)
        return values.detach()[:, None], torch.autograd.grad(values.sum(), points)[0]


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether rows are the same but for rounding, and finite in the same places."""
    apart, size = (ours - theirs).nan_to_num().norm(dim=1), theirs.nan_to_num().norm(dim=1)
    return bool((apart <= CLOSE * (1 + size)).all()) and torch.equal(ours.isfinite(), theirs.isfinite())
