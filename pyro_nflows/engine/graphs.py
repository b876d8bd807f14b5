r"""A recorded step as a CUDA graph: one launch a step, where a replay launches each of its operations.

A GPU takes some microseconds for each operation of a small model, and Python takes several times as long to ask for
it. A graph is asked for once a step. Noise, schedule and losses of a block of steps lie on the device, and the step
reads the row whose number a counter on the device tells, so that nothing is copied between steps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..system.randomness import forked
from .native import Scan
from .native.scan import Halted
from .tape import Tape

#: Runs of a step before it is captured, in which libraries of the device take what memory they need.
WARM_UP = 3
#: Steps of a block that lie on the device at once, and the bytes that these may take.
MOST_STEPS, MOST_BYTES = 64, 2**28


class Graph:
    r"""A tape as a CUDA graph, with the interface of :class:`~.native.Scan`: :math:`(s, x_t) \mapsto (s', y_t)`.

    :param tape: a recording without changes in place; its first ``num_carried`` results are the next step's first
        inputs.
    :param num_carried: how many.
    :param device: where it runs. Elsewhere than on a CUDA device there are no graphs, and the recording is replayed.

    Example::

        >>> tape = Tape(lambda s, x: (s + x, s * x), [torch.zeros(()), torch.zeros(())])
        >>> graph = Graph(tape, num_carried=1, device=torch.device("cpu"))
        >>> GraphRun(graph).run([torch.tensor(1.0)], [torch.tensor([1.0, 2.0, 3.0])])
        ([tensor(7.)], [tensor([ 1.,  4., 12.])])
    """

    #: There is nothing to wait for: a graph is captured when its memory is made.
    is_ready = True

    def __init__(self, tape: Tape, num_carried: int, device: torch.device):
        if not tape.pure:
            raise NotImplementedError("the function changes tensors in place")
        self.tape, self.num_carried, self.device = tape, num_carried, device
        self.is_random = tape.is_random

    def finish(self) -> bool:
        """As of compiled code: whether it is there."""
        return True


class GraphRun:
    """One graph with memory of its own, and a stream, so that several may run side by side.

    :param scan: what it is captured of.
    :param tape: the graph's, or that :meth:`~.tape.Tape.bound` to other data.
    :raises RuntimeError: if an operation of the tape cannot be captured, such as one that waits for the device.
    """

    def __init__(self, scan: Graph, tape: Tape | None = None):
        self.scan, self.tape = scan, tape or scan.tape
        #: As of compiled code, which threads may share; a graph has none.
        self.most: int | None = None
        #: Set from another thread to have it stop between two blocks.
        self.halted = False
        carried, inputs = scan.num_carried, self.tape.inputs
        self.state = [torch.zeros(shape, dtype=dtype, device=scan.device) for shape, dtype in inputs[:carried]]
        size = sum(shape.numel() * dtype.itemsize for shape, dtype in inputs[carried:])
        self.capacity = max(1, min(MOST_STEPS, MOST_BYTES // max(1, size)))
        self.streams = [
            torch.zeros((self.capacity, *shape), dtype=dtype, device=scan.device) for shape, dtype in inputs[carried:]
        ]
        metas = [self.tape.metas[number] for number in self.tape.results[carried:]]
        self.collected = [
            torch.zeros((self.capacity, *shape), dtype=dtype, device=scan.device) for shape, dtype in metas
        ]
        self.number = torch.zeros(1, dtype=torch.long, device=scan.device)
        self._replay = captured(self._step, scan.device)

    def _step(self) -> None:
        """One step, from memory to memory."""
        carried = self.scan.num_carried
        given = [stream.index_select(0, self.number).squeeze(0) for stream in self.streams]
        results = self.tape.run([*self.state, *given])
        own = {tensor.untyped_storage().data_ptr() for tensor in self.state}
        results = [part.clone() if part.untyped_storage().data_ptr() in own else part for part in results]
        for tensor, part in zip(self.state, results):
            tensor.copy_(part)
        for stack, part in zip(self.collected, results[carried:]):
            stack.index_copy_(0, self.number, part[None])
        self.number.add_(1).remainder_(self.capacity)

    @torch.no_grad()
    def run(self, state: Sequence[Tensor], streams: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """All steps: the last state, and what each step gave, stacked.

        :param state: the carried tensors.
        :param streams: the other inputs, with a leading dimension of steps.
        """
        for tensor, part in zip(self.state, state):
            tensor.copy_(part)
        found: list[list[Tensor]] = []
        for start in range(0, len(streams[0]), self.capacity):
            if self.halted:
                raise Halted("another member of the ensemble was interrupted")
            parts = [stream[start : start + self.capacity] for stream in streams]
            num = len(parts[0])
            for stack, part in zip(self.streams, parts):
                stack[:num].copy_(part)
            self.number.zero_()
            self._replay(num)
            found.append([stack[:num].clone() for stack in self.collected])
        return [tensor.clone() for tensor in self.state], [torch.cat(parts) for parts in zip(*found)]


def captured(step: Callable[[], None], device: torch.device) -> Callable[[int], None]:
    """Runs a step so many times: as a CUDA graph on a CUDA device, else as it is.

    :param step: changes tensors in place, and always the same ones; it is run some times here.
    """
    if device.type != "cuda":

        def repeat(num: int) -> None:
            for _ in range(num):
                step()

        return repeat
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.no_grad(), forked():
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                step()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
        torch.cuda.current_stream(device).wait_stream(stream)

    def launch(num: int) -> None:
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(num):
                graph.replay()
        torch.cuda.current_stream(device).wait_stream(stream)
        stream.synchronize()  # so that the time of a block is what it took

    return launch


def scan_of(tape: Tape, num_carried: int, like: Tensor) -> Scan | Graph:
    """The tape as code for a device: compiled C, or a CUDA graph."""
    return Scan(tape, num_carried) if like.device.type == "cpu" else Graph(tape, num_carried, like.device)
