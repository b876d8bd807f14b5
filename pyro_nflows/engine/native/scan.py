r"""A recorded step run many times by one call of compiled code: :math:`(s, x_t) \mapsto (s', y_t)`."""

import contextlib
import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..pace import Pace
from ..tape import Tape
from ..threads import threads_asked
from .build import Build, linear_library
from .compilers import CompilerError
from .emit import LINEAR, Emitter
from .lower import Lowering
from .memory import ALIGNMENT
from .plan import Buffer, Extern, Ref
from .room import copied, room
from .team import MOST, TEAMS, Chosen

#: Seconds between looks at signals.
MOMENT = 0.1


class Halted(RuntimeError):
    """A run was told to stop."""


class Scan:
    r"""A tape as compiled code; compiling goes on in the background from the start.

    :param tape: a recording without changes in place; its first ``num_carried`` results are the next step's first
        inputs.
    :param num_carried: how many.
    :raises CompilerError: if there is no compiler.

    Example::

        >>> scan = Scan(Tape(lambda s, x: (s + x, s * x), [torch.zeros(()), torch.zeros(())]), num_carried=1)
        >>> scan.run([torch.tensor(1.0)], [torch.tensor([1.0, 2.0, 3.0])])
        ([tensor(7.0000)], [tensor([ 1.0000,  4.0000, 12.0000])])
    """

    def __init__(self, tape: Tape, num_carried: int):
        if not tape.pure:
            raise NotImplementedError("the function changes tensors in place")
        lowering = Lowering(tape)
        self.inputs, self.results = lowering.inputs, lowering.results
        self.num_carried, self.is_random = num_carried, tape.is_random
        self.program = Emitter(lowering, num_carried).program()
        if self.program.is_shared:
            TEAMS.start()
        self._linear = [linear_library(prefix) for prefix in self.program.linear]
        self._build = Build(self.program.source)
        self._library: Any = None

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`run` would start at once."""
        return self._library is not None or all(build.is_ready for build in (*self._linear, self._build))

    def finish(self) -> bool:
        """Load what is compiled; whether it is there. Else a short compilation ends by itself, others are stopped."""
        if self.is_ready:
            with contextlib.suppress(CompilerError, OSError):
                self.load()
                return True
        self._build.leave()
        return False

    def run(self, state: Sequence[Tensor], streams: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """All steps: the last state, and what each step gave, stacked.

        :param state: the carried tensors.
        :param streams: the other inputs, with a leading dimension of steps.
        """
        return Run(self).run(state, streams)

    def load(self) -> None:
        """Wait for the compiler.

        :raises CompilerError: if it failed.
        """
        if self._library is None:
            linear, library = [build.load() for build in self._linear], self._build.load()
            found = [getattr(of, p + name) for p, of in zip(self.program.linear, linear) for name in LINEAR]
            self.addresses = (ctypes.c_void_p * len(found))(*(ctypes.cast(f, ctypes.c_void_p) for f in found))
            self._library = library


class Run:
    """One run's memory, so that several may run side by side.

    Set ``halted`` from another thread to have it stop within a moment. Where a step is long, threads share it: as many
    as torch has, or ``most`` if that is set, and none where that is no faster. What is computed is the same.

    :param scan: the code.
    :param tape: the scan's, or that :meth:`~..tape.Tape.bound` to other data.
    :raises CompilerError: if there is no compiled code, or if the other data lie in memory in another way.
    """

    def __init__(self, scan: Scan, tape: Tape | None = None):
        scan.load()
        self.scan, self.inputs, self.results, program = scan, scan.inputs, scan.results, scan.program
        self.memory = _aligned(program.size)
        self.own, self.most, self.chosen = _aligned(program.own), cast(int | None, None), Chosen()
        self.tape, self._made = tape, dict[Buffer, Tensor]()
        self.constants = [self._constant(buffer) for buffer in program.constants]
        self.externs = [self._extern(e) for e in program.externs]
        self.pace, self.halted = Pace(MOMENT), False

    def run(self, state: Sequence[Tensor], streams: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        carried = self.scan.num_carried
        steps = len(streams[0])
        streams = [stream.contiguous() for stream in streams]
        for ref, tensor in zip(self.inputs, state):
            self._tensor(ref).copy_(tensor)
        collected = [ref.meta.new_empty((steps, *ref.meta.shape), device="cpu") for ref in self.results[carried:]]
        with torch.inference_mode():
            self._go(steps, _pointers(streams), _pointers(collected))
        return [copied(self._tensor(ref)) for ref in self.inputs[:carried]], collected

    def _go(self, steps: int, streams: Any, collected: Any) -> None:
        """Run the code from stop to stop; between them, Python hears signals, and torch does what C does not.

        Code that called back into Python could not do this: what is raised in a callback is lost.
        """
        step, stop, run = ctypes.c_int64(0), 0, self.scan._library.run
        most = self._most()
        memory, own = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (self.memory, self.own))
        given = memory, _pointers(self.constants), streams, collected, self.scan.addresses, own, ctypes.byref(step)
        for part in self.pace.parts(steps):
            num, end, began = self.chosen.next(most), ctypes.c_int64(part.stop), time.perf_counter()
            with TEAMS.lent(num) as team:
                while stop := run(*given, end, ctypes.c_int(stop), *team):
                    if stop <= len(self.externs):
                        self.externs[stop - 1]()
                    self._check()
            self.chosen.note(num, (time.perf_counter() - began) / (part.stop - part.start))
            self._check()

    def _most(self) -> int:
        """As many threads as may share a step, with memory of its own for each."""
        program = self.scan.program
        most = min(self.most or threads_asked(), MOST) if program.is_shared else 1
        if len(self.own) < most * program.own:
            self.own = _aligned(most * program.own)
        return most

    def _check(self) -> None:
        if self.halted:
            raise Halted("another member of the ensemble was interrupted")

    def _constant(self, buffer: Buffer) -> Tensor:
        """A constant, as it is with this run's data."""
        if buffer not in self._made:
            kept = made = cast(Tensor, buffer.constant)
            if self.tape is not None and buffer.origin is not None:
                made = buffer.origin(self.tape.constants)
            if made.shape != kept.shape:
                raise CompilerError(f"data of shape {tuple(made.shape)} in place of {tuple(kept.shape)}")
            self._made[buffer] = made
        return self._made[buffer]

    def _tensor(self, ref: Ref) -> Tensor:
        """A tensor on this run's memory."""
        buffer = ref.buffer
        if buffer.constant is not None:
            flat = self._constant(buffer).reshape(-1)
        else:
            size = buffer.numel * buffer.dtype.itemsize
            flat = self.memory[buffer.offset : buffer.offset + size].view(buffer.dtype)
        offset = flat.storage_offset() + int(ref.meta.storage_offset())
        return flat.as_strided(ref.meta.shape, ref.meta.stride(), offset)

    def _extern(self, extern: Extern) -> Callable[[], None]:
        is_ref = lambda leaf: isinstance(leaf, Ref)  # noqa: E731
        args, kwargs = tree_map(
            lambda a: self._tensor(a) if is_ref(a) else a, (extern.args, extern.kwargs), is_leaf=is_ref
        )
        outs = [self._tensor(ref) for ref in extern.outs]

        def call() -> None:
            results = extern.target(*args, **kwargs)
            for out, result in zip(outs, results if extern.is_list else [results]):
                out.copy_(result)

        return call


def _aligned(size: int) -> Tensor:
    memory = room((size + ALIGNMENT,), torch.uint8)
    start = -memory.data_ptr() % ALIGNMENT
    return memory[start : start + size]


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(1, len(tensors)))(*[t.data_ptr() for t in tensors])
