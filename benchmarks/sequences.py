r"""Series with a known density: how far flows of sequences are from it, and what their draws cost.

    python -m benchmarks.sequences [--steps 600] [--seeds 2] [--positions 128]

Every step of training sees new series, so nothing is overfitted. The excess is the mean of
:math:`(\log p(y) - \log q(y)) / T` over test series: the divergence of the flow, in nats a step, zero for the exact
density.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.flows import num_params
from pyro_nflows.layers.base import Chain, Layer
from pyro_nflows.transformers import RationalQuadratic

BATCH, NUM_TEST = 64, 1000
DRAWN, NUM_DRAWS = (256, 1024), 16
#: Of the networks: each reads 1 plus their sum positions.
DILATIONS = (1, 2, 4, 8, 16)
#: Coefficients and standard deviations of the two regimes, and how likely each step changes the regime.
REGIMES, CHANGE = ((0.9, 0.3), (-0.5, 1.0)), 0.05


class Process(NamedTuple):
    """How to draw ``(N, T)`` series, and their exact log density."""

    draw: Callable[[int, int], Tensor]
    log_prob: Callable[[Tensor], Tensor]


def draw_second_order(num: int, length: int) -> Tensor:
    """An autoregressive process of order two, from zero."""
    x = torch.zeros(num, length + 2)
    noise = torch.randn(num, length)
    for t in range(length):
        x[:, t + 2] = 0.5 * x[:, t + 1] + 0.3 * x[:, t] + noise[:, t]
    return x[:, 2:]


def second_order_log_prob(x: Tensor) -> Tensor:
    """Its exact density."""
    past = torch.nn.functional.pad(x, (2, 0))
    return Normal(0.5 * past[:, 1:-1] + 0.3 * past[:, :-2], 1.0).log_prob(x).sum(-1)


def draw_switching(num: int, length: int) -> Tensor:
    """An autoregressive process of order one whose coefficient and noise change with a hidden Markov chain."""
    coefficient, sd = torch.tensor(REGIMES).unbind(-1)
    state, last, steps = torch.randint(2, (num,)), torch.zeros(num), []
    for _ in range(length):
        last = coefficient[state] * last + sd[state] * torch.randn(num)
        steps.append(last)
        state = torch.where(torch.rand(num) < CHANGE, 1 - state, state)
    return torch.stack(steps, -1)


def switching_log_prob(x: Tensor) -> Tensor:
    """Its exact density, by the forward recursion over regimes."""
    coefficient, sd = torch.tensor(REGIMES).unbind(-1)
    past = torch.nn.functional.pad(x, (1, 0))[:, :-1, None]
    emitted = Normal(coefficient * past, sd).log_prob(x[..., None])
    change = torch.tensor([[1 - CHANGE, CHANGE], [CHANGE, 1 - CHANGE]]).log()
    forward = emitted[:, 0] - math.log(2)
    for t in range(1, x.shape[-1]):
        forward = (forward[:, :, None] + change).logsumexp(1) + emitted[:, t]
    return forward.logsumexp(-1)


PROCESSES = {
    "AR(2)": Process(draw_second_order, second_order_log_prob),
    "switching": Process(draw_switching, switching_log_prob),
}


def wavenet(length: int) -> Layer:
    """An affine layer at the data's end, and splines, each of which reads 32 positions.

    Splines are the identity beyond their bound. By the affine layer, what they see is what a position is given the
    past, in its standard deviations; on the data themselves, one position of 1,200 of AR(2) is beyond a bound of 5.
    """
    splines = flows.wavenet((length, 1), 1, 16, DILATIONS, RationalQuadratic(8, 5.0), inverted=True)
    return Chain(*splines, *flows.wavenet((length, 1), 1, 16, DILATIONS, inverted=True))


def maf(length: int) -> Layer:
    """Two layers, as narrow as they can be: they have more parameters than the WaveNet all the same."""
    return flows.maf(length, 2, (4,))


FLOWS: dict[str, Callable[[int], Layer]] = {"wavenet": wavenet, "maf": maf}


def fit(flow: Layer, process: Process, length: int, num_steps: int) -> None:
    """Maximum likelihood, the step size falling to zero."""
    optimizer = torch.optim.Adam(flow.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        loss = -FlowDistribution(flow).log_prob(process.draw(BATCH, length)).mean() / length
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def excess(flow: Layer, process: Process, y: Tensor) -> Tensor:
    """Nats a step, of each test series."""
    with torch.no_grad():
        return (process.log_prob(y) - FlowDistribution(flow).log_prob(y)) / y.shape[-1]


def draw_seconds(lengths: Sequence[int], times: int = 15) -> list[float]:
    """Processor time of some draws of a WaveNet of each length, in turns; the least of several."""
    drawn = [FlowDistribution(flows.wavenet((n, 1), 2, 16, DILATIONS, inverted=True)) for n in lengths]
    runs = [functools.partial(flow.sample, torch.Size([NUM_DRAWS])) for flow in drawn]
    rounds = [[_timed(run) for run in runs] for _ in range(times + 1)]
    return [min(each) for each in zip(*rounds[1:])]


def _timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Flows of sequences against exact densities")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--positions", type=int, default=128)
    args = parser.parse_args()
    short, long = draw_seconds(DRAWN)
    times = f"{short:.3f} and {long:.3f} s, {long / short:.2f} times as long"
    print(f"{NUM_DRAWS} draws of {DRAWN[0]} and of {DRAWN[1]} positions: {times}", flush=True)
    print(f"{'process':<12}{'flow':<10}{'seed':>5}{'params':>9}{'excess':>9}{'s.e.':>8}{'seconds':>9}", flush=True)
    for name, process in PROCESSES.items():
        found: dict[str, list[Tensor]] = {flow: [] for flow in FLOWS}
        for seed in range(args.seeds):
            for label, build in FLOWS.items():
                torch.manual_seed(seed)
                flow = build(args.positions)
                seconds = _timed(functools.partial(fit, flow, process, args.positions, args.steps))
                torch.manual_seed(1000 + seed)
                gap = excess(flow, process, process.draw(NUM_TEST, args.positions))
                found[label].append(gap)
                error = gap.std() / NUM_TEST**0.5
                row = (
                    f"{name:<12}{label:<10}{seed:>5}{num_params(flow):>9}{gap.mean():>9.4f}{error:>8.4f}{seconds:>9.0f}"
                )
                print(row, flush=True)
        difference = torch.stack(found["maf"]) - torch.stack(found["wavenet"])
        error = difference.std() / difference.numel() ** 0.5
        print(f"{name}: MAF is {difference.mean():.4f} (s.e. {error:.4f}) nats a step behind", flush=True)


if __name__ == "__main__":
    main()
