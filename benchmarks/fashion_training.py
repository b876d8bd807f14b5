"""Training of the flows of 28 by 28 images on the processor, a step of each in turn."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.fashion_data import bits_per_dimension, dequantised, to_reals
from benchmarks.fashion_flows import Method
from pyro_nflows import FlowDistribution
from pyro_nflows.layers.base import Layer

#: Images of a step on the processor and on a GPU, and those that a flow starts from.
BATCH, GPU_BATCH, NUM_START = 64, 256, 500
#: Of training, in which the step size grows.
WARMUP = 0.05


@dataclass
class Fit:
    """A flow in training.

    :param seconds: that its steps took.
    """

    name: str
    seed: int
    method: Method
    flow: Layer
    num_steps: int = 0
    seconds: float = 0.0


def begun(name: str, method: Method, seed: int, train: Tensor, device: torch.device) -> Fit:
    """A flow that has started from the first images."""
    torch.manual_seed(seed)
    flow = method.build().to(device)
    reals, _ = to_reals(dequantised(train[:NUM_START].to(device)))
    flow.initialize(reals)
    return Fit(name, seed, method, flow)


def batches(train: Tensor, seed: int, size: int = BATCH) -> Iterator[Tensor]:
    """Levels, epoch after epoch, in an order of the seed's own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(train), generator=generator)
        for index in order.split(size):
            if len(index) == min(size, len(train)):
                yield train[index]


def rate_at(share: float) -> float:
    """The step size in units of its largest, when a share of training is done."""
    return min(1.0, (share + 1e-3) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def log_density(flow: Layer, pixels: Tensor, num_samples: int = 1) -> Tensor:
    """Of pixels in ``[0, 256]^784``, or a bound of it."""
    reals, log_det = to_reals(pixels)
    return FlowDistribution(flow).log_prob(reals, num_samples) + log_det


def step(fit: Fit, optimizer: torch.optim.Optimizer, levels: Tensor, share: float) -> float:
    """One step of a flow, when a share of its training is done; bits per dimension of the batch."""
    began = time.process_time()
    optimizer.param_groups[0]["lr"] = fit.method.rate * rate_at(share)
    bits = bits_per_dimension(log_density(fit.flow, dequantised(levels))).mean()
    optimizer.zero_grad()
    bits.backward()
    norm = nn.utils.clip_grad_norm_(fit.flow.parameters(), 1.0)
    if norm.isfinite():
        optimizer.step()
    fit.num_steps += 1
    fit.seconds += time.process_time() - began
    return float(bits.detach())


def train(
    fits: Sequence[Fit],
    images: Tensor,
    size: int,
    share_done: Callable[[int], float],
    keep: Callable[[Sequence[Fit]], None],
) -> None:
    """Each flow in turn takes a step, until all is done; each seed's flows see the same batches."""
    streams = {seed: batches(images, seed, size) for seed in sorted({fit.seed for fit in fits})}
    optimizers = [torch.optim.Adam(fit.flow.parameters(), fit.method.rate) for fit in fits]
    number = 0
    told = time.monotonic()
    while (share := share_done(number)) < 1:
        now = {seed: next(stream) for seed, stream in streams.items()}
        bits = [step(fit, optimizer, now[fit.seed], share) for fit, optimizer in zip(fits, optimizers)]
        number += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            tell(fits, bits, number, share)
            keep(fits)
    keep(fits)


def tell(fits: Sequence[Fit], bits: Sequence[float], number: int, share: float) -> None:
    """How far training is."""
    each = ", ".join(f"{fit.name} {fit.seed}: {value:.3f}" for fit, value in zip(fits, bits))
    print(f"  step {number}, {share:.0%} done; {each}", flush=True)
