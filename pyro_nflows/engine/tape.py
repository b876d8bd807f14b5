r"""A pure function of tensors recorded once, then replayed without the Python that it was written in.

Recording runs the function for real and notes every tensor operation below autograd and ``vmap``. Equal operations
are noted once, operations on constants are done once, and what the result does not need is dropped. Replay is plain
generated Python: one call into torch a line.
"""

import itertools
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

_aten = torch.ops.aten
_ALIASES = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default}
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.expand.default, _aten._reshape_alias.default}
#: Whose result depends on the argument's shape only.
_SHAPED = {
    getattr(_aten, name).default
    for name in ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full")
}
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
#: Binary operations in which a Python number costs more than a tensor of no dimensions.
_SCALED = {_aten.mul.Tensor, _aten.div.Tensor, _aten.add.Tensor, _aten.sub.Tensor}


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


class _Recorder(TorchDispatchMode):
    """Notes operations; ``constants`` are tensors that do not depend on the inputs."""

    def __init__(self, inputs: Sequence[Tensor], data: Sequence[Tensor], pure: bool):
        super().__init__()
        self.pure = pure
        self.calls: list[Call] = []
        self.prologue: list[Call] = []
        self.constants: dict[int, Tensor] = {}
        self._numbers: dict[int, int] = {}
        self._sharing: Counter[int] = Counter()  # tensors by the storage under them
        self._alive: list[Tensor] = []  # an id is a tensor's only while it lives
        self._known: dict[Any, Call] = {}
        self._scalars: dict[Any, Tensor] = {}
        self._fresh = itertools.count()
        self.metas: dict[int, tuple[torch.Size, torch.dtype]] = {}
        for tensor in inputs:
            self._name(tensor)
        self.derived = {self.number(tensor) for tensor in data}  # constants that are computed from data

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or every operation would go through torch._dynamo, whose import takes two seconds

    def _name(self, tensor: Tensor) -> int:
        return self._bind(tensor, next(self._fresh))

    def _bind(self, tensor: Tensor, number: int) -> int:
        if id(tensor) not in self._numbers:
            self._alive.append(tensor)
            self._sharing[_storage(tensor)] += 1
        self.metas.setdefault(number, (tensor.shape, tensor.dtype))
        self._numbers[id(tensor)] = number
        return number

    def number(self, tensor: Tensor) -> int:
        """A tensor's number; one that was not seen before is a constant."""
        if id(tensor) not in self._numbers:
            self.constants[self._name(tensor)] = tensor
        return self._numbers[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable and self.pure:
            return self._in_place(func, args, kwargs)
        named = tree_map(self._value, (self._scaled(func, args), kwargs))
        if _is_dynamic(func, args) and self._varies(named):
            raise TraceError(f"{func} makes Python values or shapes depend on the data")
        result = func(*args, **kwargs)
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
            raise _Impure
        if before in self.constants:
            self.constants[before] = changed.clone()
        named = tree_map(self._value, (args, kwargs))
        result = func(*args, **kwargs)
        self._note(target, named, changed)
        return result

    def _varies(self, named: Any) -> bool:
        return any(isinstance(leaf, Value) and leaf.number not in self.constants for leaf in _leaves(named))

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
        reuse = self.pure and torch.Tag.nondeterministic_seeded not in func.tags
        if reuse and (func in _SHAPED or not self._varies(named)):
            return self._fold(func, named, tensors, is_list)
        key = (func, _hashable(named)) if reuse else None
        if reuse and key in self._known:
            for number, tensor in zip(self._known[key].results, tensors):
                if isinstance(tensor, Tensor):
                    self._bind(tensor, number)
            return
        results = tuple(self._name(t) if isinstance(t, Tensor) else next(self._fresh) for t in tensors)
        args, kwargs = named
        call = Call(func, args, kwargs, results, is_list)
        self.calls.append(call)
        if reuse:
            self._known[key] = call


    def _fold(self, func: Any, named: Any, tensors: list[Any], is_list: bool) -> None:
        """An operation on constants is not repeated, but where it must be for new data."""
        results = tuple(self._name(t) if isinstance(t, Tensor) else next(self._fresh) for t in tensors)
        self.constants.update((n, t) for n, t in zip(results, tensors) if isinstance(t, Tensor))
        leaves = {leaf.number for leaf in _leaves(named) if isinstance(leaf, Value)}
        if func not in _SHAPED and leaves & self.derived:
            self.prologue.append(Call(func, *named, results, is_list))
            self.derived |= set(results)


class _Impure(Exception):
    """A tensor was changed in place."""


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether a view is all of its tensor as it was."""
    return a.shape == b.shape and a.stride() == b.stride()


def _is_dynamic(func: Any, args: Any) -> bool:
    if func is _aten.index.Tensor:  # with masks only
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _functional(func: Any) -> Any:
    """The operation that returns what this one writes into its first argument, if there is one."""
    name = func._schema.name.split("::")[1]
    packet = getattr(_aten, name[:-1], None) if name.endswith("_") and func.namespace == "aten" else None
    return getattr(packet, func._overloadname, None)


def _leaves(tree: Any) -> list[Any]:
    return tree_leaves(tree, is_leaf=_is_value)


def _hashable(tree: Any) -> Any:
    leaves, spec = tree_flatten(tree, is_leaf=_is_value)
    return tuple((type(leaf), leaf) for leaf in leaves), spec


class Tape:
    """A recorded function.

    :param function: a pure function of tensors that returns tensors.
    :param inputs: example inputs; replay needs the same shapes and types.
    :param data: tensors that the function reads besides, and that :meth:`rebind` may replace.
    :raises TraceError: if Python values depend on the tensors.

    Example::

        >>> tape = Tape(lambda x: (x.sin() + 0 * x.sin().sum(), x.new_zeros(2)), [torch.zeros(3)])
        >>> tape.run([torch.ones(3)])
        [tensor([0.8415, 0.8415, 0.8415]), tensor([0., 0.])]
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], data: Sequence[Tensor] = ()
    ):
        self.num_inputs, self.pure = len(inputs), True
        self.inputs = [(tensor.shape, tensor.dtype) for tensor in inputs]
        try:
            self._record(function, inputs, data)
        except _Impure:  # then order matters, and nothing may be shared, moved or left out
            self.pure = False
            self._record(function, inputs, data)
        self._replay = self._generate()

    def _record(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], data: Any) -> None:
        inputs = [tensor.detach().clone() for tensor in inputs]  # no two the same object
        with torch.autograd.set_multithreading_enabled(False), _Recorder(inputs, data, self.pure) as recorder:
            results = function(*inputs)
        self.results = [recorder.number(tensor) for tensor in results]
        self.calls = _needed(recorder.calls, self.results) if self.pure else recorder.calls
        used = {v.number for call in self.calls for v in _values(call)} | set(self.results)
        self.constants = {n: t.detach() for n, t in recorder.constants.items() if n in used}
        self.metas = recorder.metas
        self.data = [recorder.number(tensor) for tensor in data]
        self.prologue = _needed(recorder.prologue, list(used))
        self._sources = {v.number: recorder.constants[v.number] for call in self.prologue for v in _values(call)}

    def _generate(self) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """The replay as Python source: one operation a line, tensors dropped after their last use."""
        scope: dict[str, Any] = {f"v{n}": tensor for n, tensor in self.constants.items()}
        last = {value.number: i for i, call in enumerate(self.calls) for value in _values(call)}
        keep = set(self.results) | set(self.constants)
        inputs = "".join(f"v{i}, " for i in range(self.num_inputs))
        lines = ["def replay(inputs):", f"    {inputs}= inputs"]
        names = itertools.count()
        for i, call in enumerate(self.calls):
            args, kwargs = self._arguments(call, scope, names)
            target = f"f{next(names)}"
            scope[target] = call.target if call.kwargs else _SHORT.get(call.target, call.target)
            results = "".join(f"v{n}, " for n in call.results) if call.is_list else f"v{call.results[0]}"
            dead = sorted({value.number for value in _values(call) if last[value.number] == i} - keep)
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
    def rebind(self, data: Sequence[Tensor]) -> None:
        """Replay with other data from now on.

        :param data: tensors of the same shapes and types as were given first.
        """
        values = self._sources | dict(zip(self.data, data))
        for call in self.prologue:
            named = tree_map(lambda a: values[a.number] if _is_value(a) else a, (call.args, call.kwargs), is_leaf=_is_value)
            made = call.target(*named[0], **named[1])
            values.update(zip(call.results, made if call.is_list else [made]))
        self._sources = {number: values[number] for number in self._sources}
        self.constants = {n: values.get(n, tensor) for n, tensor in self.constants.items()}
        self._scope.update((f"v{n}", tensor) for n, tensor in self.constants.items())

    def graph(self) -> GraphModule:
        """The same as an ``fx`` graph, for ``torch.compile``."""
        graph, root = Graph(), torch.nn.Module()
        nodes: dict[int, Any] = {i: graph.placeholder(f"v{i}") for i in range(self.num_inputs)}
        for number, tensor in self.constants.items():
            root.register_buffer(f"v{number}", tensor)
            nodes[number] = graph.get_attr(f"v{number}")
        for call in self.calls:
            named, spec = tree_flatten((call.args, call.kwargs), is_leaf=_is_value)
            args, kwargs = tree_unflatten([nodes[a.number] if isinstance(a, Value) else a for a in named], spec)
            node = graph.call_function(call.target, args, kwargs)
            for i, number in enumerate(call.results):
                nodes[number] = graph.call_function(operator.getitem, (node, i)) if call.is_list else node
        graph.output([nodes[number] for number in self.results])
        return GraphModule(root, graph)

    @property
    def is_random(self) -> bool:
        """Whether replay draws random numbers of its own."""
        return any(torch.Tag.nondeterministic_seeded in call.target.tags for call in self.calls)

    def __len__(self) -> int:
        return len(self.calls)


def _needed(calls: list[Call], results: list[int]) -> list[Call]:
    """Without what the results do not depend on."""
    needed, kept = set(results), []
    for call in reversed(calls):
        if needed & set(call.results):
            kept.append(call)
            needed |= {value.number for value in _values(call)}
    return kept[::-1]


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, Value)


def _values(call: Call) -> list[Value]:
    return [leaf for leaf in _leaves((call.args, call.kwargs)) if isinstance(leaf, Value)]
