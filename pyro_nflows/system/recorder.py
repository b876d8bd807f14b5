r"""Notes the tensor operations of a function while it runs, below autograd and ``vmap``."""

import functools
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_ALIASES = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default}
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.expand.default, _aten._reshape_alias.default}
#: Whose result depends on the argument's shape only.
_SHAPED = {
    getattr(_aten, name).default
    for name in ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full")
}
#: Binary operations in which a Python number costs more than a tensor of no dimensions.
_SCALED = {_aten.mul.Tensor, _aten.div.Tensor, _aten.add.Tensor, _aten.sub.Tensor}

#: What holds other arguments; other kinds, such as a shape, are arguments themselves.
_TREES = {tuple, list, dict}


class Value(NamedTuple):
    """A tensor of the recording by its number."""

    number: int


class Call(NamedTuple):
    """One operation: its arguments with tensors as :class:`Value`, and the numbers of its results."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    is_list: bool


class TraceError(RuntimeError):
    """The function cannot be recorded faithfully."""


class Recorder(TorchDispatchMode):
    """Notes operations; ``constants`` are tensors that do not depend on the inputs."""

    def __init__(self, inputs: Sequence[Tensor], data: Sequence[Tensor], pure: bool):
        super().__init__()
        self.pure = pure
        self.calls: list[Call] = []
        self.prologue: list[Call] = []
        self.constants: dict[int, Tensor] = {}
        self._numbers: dict[int, int] = {}
        self._sharing: Counter[int] = Counter()  # tensors by the storage under them
        self._alive: dict[int, Any] = {}  # an id is a tensor's only while it lives
        self._gone: list[Any] = []  # references to those that are no more, not yet forgotten
        self._known: dict[Any, Call] = {}
        self._scalars: dict[Any, Tensor] = {}
        self._fresh = itertools.count()
        self.metas: dict[int, tuple[torch.Size, torch.dtype]] = {}
        self.strides: dict[int, tuple[int, ...]] = {}
        for tensor in inputs:
            self._name(tensor)
        self._varying = {_storage(tensor) for tensor in inputs}  # storages; kept where tensors are changed in place
        self.derived = {self.number(tensor) for tensor in data}  # constants that are computed from data

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or every operation would go through torch._dynamo, whose import takes two seconds

    def _name(self, tensor: Tensor) -> int:
        return self._bind(tensor, next(self._fresh))

    def _bind(self, tensor: Tensor, number: int) -> int:
        self._forget()
        if id(tensor) not in self._numbers:
            self._watch(tensor, _storage(tensor))
        self.metas.setdefault(number, (tensor.shape, tensor.dtype))
        self.strides.setdefault(number, tensor.stride())
        self._numbers[id(tensor)] = number
        return number

    def _watch(self, tensor: Tensor, storage: int) -> None:
        """Take note of when a tensor is gone; where storages say what varies, none goes.

        What is called then is no code of Python's, in which an interrupt would be lost.
        """
        self._sharing[storage] += 1
        key = id(tensor)
        self._alive[key] = weakref.KeyedRef(tensor, self._gone.append, (key, storage)) if self.pure else tensor

    def _forget(self) -> None:
        """Forget tensors that are gone, whose ids others may have by now."""
        while self._gone:
            key, storage = self._gone[-1].key
            self._numbers.pop(key, None)
            self._alive.pop(key, None)
            self._sharing[storage] -= 1
            self._gone.pop()

    def number(self, tensor: Tensor) -> int:
        """A tensor's number; one that was not seen before is a constant."""
        self._forget()
        if id(tensor) not in self._numbers:
            self.constants[self._name(tensor)] = tensor
        return self._numbers[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.pure and _is_mutable(func):
            return self._in_place(func, args, kwargs)
        named = mapped(self._value, (self._scaled(func, args), kwargs))
        given = args[1] if func is _aten.index.Tensor else (args, kwargs)
        if _is_dynamic(func, args) and self._varies_at_all(given):
            raise TraceError(f"{func} makes Python values or shapes depend on the data")
        result = func(*args, **kwargs)
        if not self.pure:
            self._spread(func, (args, kwargs), result)
        if self.pure and (func in _ALIASES or (func in _VIEWS and _is_same(result, args[0]))):
            self._bind(result, self.number(args[0]))
            return result
        self._note(func, named, result)
        return result

    def _in_place(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A change in place of a tensor that shares its storage with no other, as if it made a new one."""
        changed, target = args[0], _functional(func)
        before = self.number(changed)
        reshapes = torch.Tag.inplace_view in func.tags  # and leaves the elements alone
        if target is None or (self._sharing[_storage(changed)] > 1 and not reshapes):
            raise Impure
        if before in self.constants:
            self.constants[before] = changed.clone()
        named = mapped(self._value, (args, kwargs))
        result = func(*args, **kwargs)
        self._note(target, named, changed)
        return result

    def _varies_at_all(self, tree: Any) -> bool:
        """Whether arguments depend on the inputs: by their storages, where tensors are changed in place."""
        if self.pure:
            return self._varies(mapped(self._value, tree))
        return any(_storage(tensor) in self._varying for tensor in _collect(Tensor, tree, []))

    def _spread(self, func: Any, given: Any, result: Any) -> None:
        """What an operation makes of varying tensors varies, and so does what it writes into."""
        if is_random(func) or self._varies_at_all(given):
            tensors = _collect(Tensor, (_written(func, *given), result), [])
            self._varying |= {_storage(tensor) for tensor in tensors}

    def _varies(self, named: Any) -> bool:
        return any(value.number not in self.constants for value in _collect(Value, named, []))

    def _scaled(self, func: Any, args: Any) -> Any:
        """Arguments with a Python number as a tensor, which replays faster."""
        if func not in _SCALED or not self.pure or not isinstance(args[1], float | int):
            return args
        if not args[0].is_floating_point() or not args[0].dim():
            return args
        key = (args[0].dtype, float(args[1]))
        if key not in self._scalars:
            self._scalars[key] = torch.tensor(key[1], dtype=key[0])
        return (args[0], self._scalars[key])

    def _value(self, leaf: Any) -> Any:
        return Value(self.number(leaf)) if isinstance(leaf, Tensor) else leaf

    def _note(self, func: Any, named: Any, result: Any) -> None:
        is_list = isinstance(result, list | tuple)
        tensors = list(result) if is_list else [result]
        reuse = self.pure and not is_random(func)
        if func is _aten._local_scalar_dense.default:  # a number that is part of the recording
            return
        key = (func, hashable(self._shaped(func, named))) if reuse else None
        if reuse and key in self._known:
            for number, tensor in zip(self._known[key].results, tensors):
                if isinstance(tensor, Tensor):
                    self._bind(tensor, number)
            return
        if reuse and (func in _SHAPED or not self._varies(named)):
            self._known[key] = self._fold(func, named, tensors, is_list)
            return
        results = tuple(self._name(t) if isinstance(t, Tensor) else next(self._fresh) for t in tensors)
        args, kwargs = named
        call = Call(func, args, kwargs, results, is_list)
        self.calls.append(call)
        if reuse:
            self._known[key] = call

    def _shaped(self, func: Any, named: Any) -> Any:
        """What the result depends on: of some operations, only the argument's shape and how it lies."""
        if func not in _SHAPED:
            return named
        first = named[0][0].number
        return (self.metas[first], self.strides[first], *named[0][1:]), named[1]

    def _fold(self, func: Any, named: Any, tensors: list[Any], is_list: bool) -> Call:
        """An operation on constants is not repeated, but where it must be for new data."""
        results = tuple(self._name(t) if isinstance(t, Tensor) else next(self._fresh) for t in tensors)
        self.constants.update((n, t) for n, t in zip(results, tensors) if isinstance(t, Tensor))
        leaves = {value.number for value in _collect(Value, named, [])}
        call = Call(func, named[0], named[1], results, is_list)
        if func not in _SHAPED and leaves & self.derived:
            self.prologue.append(call)
            self.derived |= set(results)
        return call


class Impure(Exception):
    """A tensor was changed in place."""


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether a view is all of its tensor as it was."""
    return a.shape == b.shape and a.stride() == b.stride()


def _is_dynamic(func: Any, args: Any) -> bool:
    if func is _aten.index.Tensor:  # with masks only
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return _depends_on_data(func)


@functools.cache
def _depends_on_data(func: Any) -> bool:
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


@functools.cache
def is_random(func: Any) -> bool:
    """Whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags


@functools.cache
def _is_mutable(func: Any) -> bool:
    return bool(func._schema.is_mutable)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _functional(func: Any) -> Any:
    """The operation that returns what this one writes into its first argument, if there is one."""
    name = func._schema.name.split("::")[1]
    packet = getattr(_aten, name[:-1], None) if name.endswith("_") and func.namespace == "aten" else None
    return getattr(packet, func._overloadname, None)


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operation changes."""
    if not _is_mutable(func):
        return []
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args)} | kwargs
    aliases = ((argument.name, argument.alias_info) for argument in func._schema.arguments)
    return [named.get(name) for name, alias in aliases if alias is not None and alias.is_write]


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """A call's arguments with a function of each leaf in its place."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([mapped(function, part) if type(part) in _TREES else function(part) for part in tree])
    if kind is dict:
        return {key: mapped(function, part) for key, part in tree.items()}
    return function(tree)


def _collect(kind: type, tree: Any, found: list[Any]) -> list[Any]:
    """The leaves of a kind among a call's arguments, added to a list."""
    for part in tree.values() if type(tree) is dict else tree:
        if isinstance(part, kind):
            found.append(part)
        elif type(part) in _TREES:
            _collect(kind, part, found)
    return found


def hashable(tree: Any) -> Any:
    """What is equal for equal trees only: with types, since 1 and 1.0 and True are equal."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind, *[hashable(part) if type(part) in _TREES else (type(part), part) for part in tree]
    if kind is dict:
        return kind, *[(key, hashable(part)) for key, part in tree.items()]
    return kind, tree


def needed(calls: Sequence[Call], results: Iterable[int]) -> list[Call]:
    """Without what the results do not depend on."""
    wanted, kept = set(results), list[Call]()
    for call in reversed(calls):
        if wanted & set(call.results):
            kept.append(call)
            wanted |= {value.number for value in values_of(call)}
    return kept[::-1]


def is_value(leaf: Any) -> bool:
    """Whether a leaf of a call's arguments is a tensor."""
    return isinstance(leaf, Value)


def values_of(call: Call) -> list[Value]:
    """The tensors among a call's arguments."""
    return _collect(Value, (call.args, call.kwargs), [])
