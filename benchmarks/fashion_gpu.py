"""Training of the flows of 28 by 28 images side by side on a GPU, each step of a flow one graph of all its kernels.

A step of these flows is some thousand small kernels, which Python starts more slowly than a GPU runs them. So the step
is recorded once and played again, on a stream of the flow's own: the flows' kernels run side by side. What changes from
step to step (which images, the noise, the step size) is written into tensors that the graph reads, and nothing is read
back.

Flows of a pair take the same number of steps, on the same images with the same noise on their levels: none begins a
step before all have ended the step three before. Pairs, and other flows, share the card as they come.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from benchmarks.fashion_data import DIM, bits_per_dimension, to_reals
from benchmarks.fashion_flows import PAIRS
from benchmarks.fashion_strata import in_strata
from benchmarks.fashion_training import Fit, rate_at, tell
from pyro_nflows.numerics import standard_normal_log_prob

#: Steps without effect before a graph is recorded, and steps that may be under way.
NUM_WARMUP, AHEAD = 3, 2
#: Seconds between looks.
LOOK = 30.0


class Stepper:
    """A flow's training steps. On the processor they are as they are; on a GPU, :meth:`record` makes them a graph.

    :param images: all levels, on the flow's device, of which a step takes ``size``.
    """

    def __init__(self, fit: Fit, images: Tensor, size: int, entered: ExitStack):
        self.fit, self.images = fit, images
        device = images.device
        self.on_gpu = device.type == "cuda"
        self.bounds = entered.enter_context(in_strata(fit.flow))
        self.parameters = [p for p in fit.flow.parameters() if p.requires_grad]
        self.levels = torch.zeros(size, DIM, dtype=torch.uint8, device=device)
        self.uniform = torch.zeros(size, DIM, device=device)
        self.noise = torch.zeros(size, fit.flow.inverse_noise_dim, device=device)
        self.bits, self.rate = torch.zeros((), device=device), torch.zeros((), device=device)
        self.optimizer = torch.optim.Adam(self.parameters, self.rate, fused=True, capturable=self.on_gpu)
        self.of_levels, self.of_layers = (torch.Generator(device).manual_seed(fit.seed) for _ in range(2))
        self.stream = torch.cuda.Stream(device) if self.on_gpu else None
        self.graph: torch.cuda.CUDAGraph | None = None

    def kernels(self) -> None:
        """One step, from the tensors that hold its batch. A gradient that is not finite changes nothing."""
        flow = self.fit.flow
        self.bounds.renew()
        reals, log_det = to_reals(self.levels.to(self.uniform.dtype) + self.uniform)
        x, log_weight = flow.inverse(reals, self.noise if flow.inverse_noise_dim else None)
        bits = bits_per_dimension(standard_normal_log_prob(x) - log_weight + log_det).mean()
        bits.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.found_inf = 1 - norm.isfinite().float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.bits.copy_(bits.detach())

    def record(self) -> float:
        """Make the step a graph, if that can be done; seconds of one step by itself."""
        with torch.cuda.stream(self.stream):
            for _ in range(NUM_WARMUP):  # of step size zero
                self.eager()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.kernels()
            self.graph = graph
        except RuntimeError as error:
            print(f"  {self.fit.name}: no graph, its steps run as they are: {str(error).splitlines()[0]}", flush=True)
            torch.cuda.synchronize()
        began = time.monotonic()
        with torch.cuda.stream(self.stream):
            for _ in range(NUM_WARMUP):
                self.play()
        torch.cuda.synchronize()
        return (time.monotonic() - began) / NUM_WARMUP

    def eager(self) -> None:
        """The step, kernel by kernel."""
        self.optimizer.zero_grad()
        self.kernels()

    def play(self) -> None:
        """The step."""
        if self.graph is None:
            self.eager()
        else:
            self.graph.replay()

    def __call__(self, index: Tensor, share: float) -> None:
        """The step of these images, when a share of training is done; on a GPU, it is only begun."""
        with torch.cuda.stream(self.stream):
            torch.index_select(self.images, 0, index, out=self.levels)
            self.uniform.uniform_(generator=self.of_levels)
            self.noise.normal_(generator=self.of_layers)
            self.rate.fill_(self.fit.method.rate * rate_at(share))
            self.play()
        self.fit.num_steps += 1

    def wait(self) -> float:
        """Until all is done; bits per dimension of the last batch."""
        if self.stream is not None:
            self.stream.synchronize()
        return float(self.bits)

    def mark(self) -> torch.cuda.Event | None:
        """The end of what has been begun."""
        return None if self.stream is None else self.stream.record_event()


def orders(number: int, size: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Which images, as :func:`~benchmarks.fashion_training.batches` has them, without a wait but once an epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = None
    while True:
        before, order = order, torch.randperm(number, generator=generator).to(device)
        yield from (index for index in order.split(size) if len(index) == min(size, number))
        del before  # kept an epoch longer: its last steps may still be read on other streams


def in_groups(steppers: Sequence[Stepper]) -> list[list[Stepper]]:
    """The flows of a pair together, each other flow by itself."""
    of_pair = {name: pair[0] for pair in PAIRS for name in pair}
    groups: dict[str, list[Stepper]] = {}
    for stepper in steppers:
        groups.setdefault(of_pair.get(stepper.fit.name, stepper.fit.name), []).append(stepper)
    return list(groups.values())


def advance(
    group: Sequence[Stepper], size: int, share_done: Callable[[int], float], keep: Callable[[Sequence[Fit]], None]
) -> None:
    """Steps of all flows of a group, until all is done."""
    fits, images = [stepper.fit for stepper in group], group[0].images
    streams = {seed: orders(len(images), size, seed, images.device) for seed in sorted({fit.seed for fit in fits})}
    marks: deque[list[torch.cuda.Event | None]] = deque()
    number, began = 0, time.monotonic()
    told = kept = began
    while (share := share_done(number)) < 1:
        now = {seed: next(stream) for seed, stream in streams.items()}
        for stepper in group:
            stepper(now[stepper.fit.seed], share)
        marks.append([stepper.mark() for stepper in group])
        number += 1
        for mark in marks.popleft() if len(marks) > AHEAD else ():
            if mark is not None:
                mark.synchronize()
        if (at := time.monotonic()) - told > LOOK:
            told = at
            tell(fits, [stepper.wait() for stepper in group], number, share)
            print(f"    {number / (at - began):.1f} steps a second, of each", flush=True)
            if at - kept > 4 * LOOK:
                kept = at
                keep(fits)
    bits = [stepper.wait() for stepper in group]
    for fit in fits:
        fit.seconds += time.monotonic() - began
    keep(fits)
    tell(fits, bits, number, 1.0)
    print(f"    {number / max(1e-9, time.monotonic() - began):.2f} steps a second, of each", flush=True)


def train(
    fits: Sequence[Fit],
    images: Tensor,
    size: int,
    share_done: Callable[[], Callable[[int], float]],
    keep: Callable[[Sequence[Fit]], None],
) -> None:
    """All groups at once, each in a thread of its own; one that fails says so, and the others go on.

    :param share_done: called when all is ready, gives the share of training that is done after so many steps.
    """
    with ExitStack() as entered:
        steppers = [Stepper(fit, images, size, entered) for fit in fits]
        for stepper in steppers if images.device.type == "cuda" else ():
            before, began = torch.cuda.memory_reserved(), time.monotonic()
            torch.backends.cuda.matmul.allow_tf32 = stepper.fit.name == "TarFlow"  # bounds of norms are not rounded
            alone = stepper.record()
            print(
                f"  {stepper.fit.name} {stepper.fit.seed}: {1e3 * alone:.1f} ms a step by itself, "
                f"{(torch.cuda.memory_reserved() - before) / 2**30:.1f} GiB, ready in {time.monotonic() - began:.1f} s",
                flush=True,
            )
        share = share_done()
        threads = [threading.Thread(target=advance, args=(group, size, share, keep)) for group in in_groups(steppers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if images.device.type == "cuda":
            torch.cuda.synchronize()
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # for all tests
