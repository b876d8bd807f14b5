"""A device that there is not: its tensors say that they are on it, and have their numbers on the CPU.

Without a GPU, it shows what would go wrong on one. An operation on tensors of two devices fails as CUDA's would, a
CPU's generator makes no random numbers there, :func:`transfers` counts what a GPU has to wait for, and random numbers
come from a generator of the device's own. All else is computed by the CPU, so results can be compared with the CPU's.

It is a tensor subclass on torch's backend ``PrivateUse1``, which :func:`start` registers for the rest of the process.
That takes a torch in which such a backend can be written in Python.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, library
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

from pyro_nflows.system import randomness

NAME = "pretend"
#: Whether this torch can have it.
POSSIBLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

_aten = torch.ops.aten
#: A tensor of the CPU may tell a GPU where in its tensor to read and write.
_INDEXED = {_aten.index.Tensor, _aten._unsafe_index.Tensor}
_INDEXED |= {_aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
#: Lists of tensors, in which a number on the CPU is not let pass.
_JOINED = {_aten.cat.default, _aten.stack.default}
#: What is called with no tensor of the device, or writes into one of another shape.
_FIRST = [
    _aten.empty.memory_format,
    _aten.empty_strided.default,
    _aten._to_copy.default,
    _aten.eye.default,
    _aten.eye.m,
]
_FIRST += [
    _aten.arange.default,
    _aten.arange.start,
    _aten.arange.start_step,
    _aten.linspace.default,
    _aten.randperm.generator,
    _aten.randperm.default,
]
_LIBRARIES: list[Any] = []
_TRANSFERS: list[Counter[str]] = []


class PretendTensor(Tensor):
    """Of the same numbers as ``inner``, a tensor of the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendTensor":
        made: PretendTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        return made

    def __init__(self, inner: Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner  # type: ignore[attr-defined]

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.detach().cpu(), spec)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.inner!r} on {NAME}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = self.detach().cpu(), self.dtype, str(self.device), self.requires_grad
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, parts


class PretendGenerator(torch.Generator):
    """Random numbers of the device."""


class _Module(backend_registration._DummyBackendModule if POSSIBLE else object):  # type: ignore[misc]
    """What ``torch.cuda`` is for CUDA."""

    default_generators = (PretendGenerator(),)

    def manual_seed_all(self, seed: int) -> None:
        self.default_generators[0].manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self.default_generators[0].get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.default_generators[0].set_state(state)


def start() -> None:
    """Register the device, once in a process."""
    if _LIBRARIES:
        return
    torch.ones((), requires_grad=True).backward()  # so that the device gets no threads, after which none could fork
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    aten, every = library.Library("aten", "IMPL"), library.Library("_", "IMPL")
    for operation in _FIRST:
        aten.impl(operation.name().removeprefix("aten::"), _kernel(operation), "PrivateUse1")
    every.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
    _LIBRARIES.extend([aten, every])


def _kernel(operation: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(operation, args, kwargs)


@contextmanager
def pretended(default: bool = True) -> Iterator[torch.device]:
    """Within it the device is there, by default as torch's default one.

    Gradients are made by the thread that asks for them, since the device has none of its own.
    """
    start()
    with torch.autograd.set_multithreading_enabled(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.inference_mode, "__enter__", _without_gradients)
        patch.setattr(torch.inference_mode, "__exit__", _as_before)
        patch.setattr(randomness, "KINDS", [*randomness.KINDS, NAME])
        if not default:
            yield torch.device(NAME, 0)
            return
        torch.set_default_device(NAME)
        try:
            yield torch.device(NAME, 0)
        finally:
            torch.set_default_device(None)


def _without_gradients(mode: Any) -> None:
    """In place of inference mode, whose tensors a subclass cannot be, and whose end would turn threads on."""
    mode.instead = torch.set_grad_enabled(not mode.mode)


def _as_before(mode: Any, *_: object) -> None:
    torch.set_grad_enabled(mode.instead.prev)


@contextmanager
def transfers() -> Iterator[Counter[str]]:
    """Counts what a GPU is waited for, by operation: numbers and copies for Python, shapes that depend on data."""
    count: Counter[str] = Counter()
    _TRANSFERS.append(count)
    try:
        yield count
    finally:
        _TRANSFERS.remove(count)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation by the CPU; what it makes is where CUDA's would be."""
    leaves = pytree.tree_leaves((args, kwargs))
    there = _is_there(func, args, kwargs)
    _refuse_mixtures(func, args, leaves)
    _count(func, there, leaves)
    given = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if "device" in given:
        given["device"] = "cpu"
    if torch.Tag.nondeterministic_seeded in func.tags:
        given = _with_generator(func, args, given)
    inner, given = pytree.tree_map_only(PretendTensor, lambda tensor: tensor.inner, (args, given))
    if func is _aten._efficientzerotensor.default:  # has no memory, which only torch's own dispatch knows
        func = _aten.zeros.default
    result = func(*inner, **given)
    if func is _aten._to_copy.default:
        result = result.clone() if result is inner[0] else result
        return PretendTensor(result) if there else result
    if not there:
        return result
    wrapped = pytree.tree_map_only(Tensor, lambda tensor: PretendTensor(tensor), result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _is_there(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether what an operation makes is on the device."""
    device = kwargs.get("device")
    if device is None:
        return func is not _aten._to_copy.default or isinstance(args[0], PretendTensor)
    return torch.device(device).type == NAME


def _refuse_mixtures(func: Any, args: Any, leaves: list[Any]) -> None:
    if func in (_aten.copy_.default, _aten._to_copy.default):
        return
    elsewhere = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, PretendTensor)]
    written = bool(func._schema.is_mutable) and any(leaf is args[0] for leaf in elsewhere)
    several = func not in _INDEXED and any(leaf.dim() > 0 or func in _JOINED for leaf in elsewhere)
    if written or several:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in elsewhere)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
            f"(in {func}; on the CPU: {shapes})"
        )


def _count(func: Any, there: bool, leaves: list[Any]) -> None:
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
    down = not there and any(isinstance(leaf, PretendTensor) for leaf in leaves)
    up = func is _aten._to_copy.default and there and not isinstance(leaves[0], PretendTensor)
    copied = func is _aten.copy_.default and isinstance(leaves[0], PretendTensor) != isinstance(
        leaves[1], PretendTensor
    )
    if tags or down or up or copied:
        for count in _TRANSFERS:
            count[str(func)] += 1


def _with_generator(func: Any, args: Any, kwargs: Any) -> Any:
    """Random numbers are the device's own."""
    names = [argument.name for argument in func._schema.arguments]
    if "generator" not in names:
        return kwargs
    at = names.index("generator")
    given = args[at] if at < len(args) else kwargs.get("generator")
    if given is not None and not isinstance(given, PretendGenerator):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    return kwargs if given is not None else {**kwargs, "generator": _Module.default_generators[0]}
