r"""Side by side with zuko, normflows and nflows: the same flows, the same data, the same optimiser.

    python -m benchmarks.peers [--flows MAF,RealNVP] [--rounds 25] [--steps 1500] [--no-fit] [--json FILE]

Each library's flow has the same layers and networks (:mod:`benchmarks.peer_flows`). "forward" draws (base to data),
"inverse" is a log density, "train" a step of Adam on the negative log-likelihood; all eager, a batch of 256, float32,
one thread. Times are of the processor, not of the clock, for other jobs may share the machine; rounds go through the
libraries in turn, and a ratio is the median over the rounds of the ratio within the round. A ratio above 1: the other
library is slower. "with skip" is ours too, with the linear skip that our networks have by default.

Likelihoods are of fresh data after the same number of steps of Adam on the same batches, from the same start and with
the same scales; differences to ours have standard errors, of points and of seeds together.
"""

import argparse
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.datasets import two_moons
from benchmarks.peer_flows import LIBRARIES
from benchmarks.peer_parts import Peer, same_scale, share_start, start_masked

#: Name of the flow, dimension, layers, width of the two hidden layers.
CASES = [
    ("MAF", 2, 5, 64),
    ("MAF", 32, 5, 128),
    ("RealNVP", 2, 8, 64),
    ("RealNVP", 32, 8, 128),
    ("spline", 2, 4, 64),
    ("spline", 32, 4, 128),
    ("Glow", 2, 8, 64),
    ("Glow", 32, 8, 128),
    ("Glow, images", 32, 4, 32),
]
BATCH, FRESH = 256, 10_000
TASKS = ("forward", "inverse", "train")
OURS = "pyro_nflows"
Row = dict[str, Any]


def correlated(num_samples: int, seed: int = 0) -> Tensor:
    """In 32 dimensions: two thirds of one normal and one third of another, each with correlations of its own."""
    rule = torch.Generator().manual_seed(1)
    factors = torch.eye(32) + 0.7 * torch.randn(2, 32, 32, generator=rule) / 32**0.5
    means = torch.randn(2, 32, generator=rule)
    generator = torch.Generator().manual_seed(seed)
    which = (torch.rand(num_samples, generator=generator) < 1 / 3).long()
    noise = torch.randn(num_samples, 32, generator=generator)
    return means[which] + (factors[which] @ noise[..., None])[..., 0]


def data_of(dim: int, num_samples: int, seed: int) -> Tensor:
    """Two moons, or a mixture in 32 dimensions."""
    return two_moons(num_samples, seed) if dim == 2 else correlated(num_samples, seed)


def peers_of(name: str, dim: int, num_layers: int, width: int, seed: int, own: bool = False) -> dict[str, Peer]:
    """The flow by each library that has it, started alike: couplings from the same numbers, and from the same data.

    With what is each library's ``own``, or else the same: our skip, and how others keep a scale positive.
    """
    peers = {}
    for library, makers in LIBRARIES.items():
        if name in makers and (own or library != "with skip"):
            torch.manual_seed(seed)
            peers[library] = makers[name](dim, num_layers, width)
            if not own:
                same_scale(peers[library])
    for peer in peers.values():
        if name == "MAF":  # the libraries order the hidden units in ways of their own
            start_masked(peer)
        peer.module.train()
        getattr(peer.module, "initialize", peer.log_prob)(data_of(dim, 1000, seed + 1))
    if name != "MAF":  # after ours were widened
        share_start(peers)
    return peers


def train_step(peer: Peer, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step, the same for all."""
    optimizer.zero_grad()
    loss = -peer.log_prob(x).mean()
    loss.backward()
    optimizer.step()
    return loss


def quietly(run: Callable[[Tensor], Any], x: Tensor) -> Any:
    """Without gradients."""
    with torch.no_grad():
        return run(x)


def seconds(run: Callable[[], Any], least: float) -> float:
    """Time a call, over as many as fit."""
    count, began = 0, time.process_time()
    while not count or time.process_time() - began < least:
        run()
        count += 1
    return (time.process_time() - began) / count


def timed(peers: dict[str, Peer], dim: int, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """For each task the rounds' seconds, by library."""
    x, z = data_of(dim, BATCH, 0), torch.randn(BATCH, dim)
    jobs: dict[str, dict[str, Callable[[], Any]]] = {task: {} for task in TASKS}
    for library, peer in peers.items():
        optimizer = torch.optim.Adam(peer.module.parameters(), 1e-4, fused=True)
        jobs["train"][library] = partial(train_step, peer, optimizer, x)
        jobs["forward"][library] = partial(quietly, peer.sample, z)
        jobs["inverse"][library] = partial(quietly, peer.log_prob, x)
    rounds: dict[str, list[dict[str, float]]] = {task: [] for task in TASKS}
    for i in range(-2, options.rounds):
        for task in TASKS:
            times = {library: seconds(job, options.seconds if i >= 0 else 0) for library, job in jobs[task].items()}
            rounds[task] += [times] if i >= 0 else []
    return rounds


def speed(case: tuple[str, int, int, int], options: argparse.Namespace) -> list[Row]:
    """A row for each task."""
    rows = []
    for task, rounds in timed(peers_of(*case, seed=0, own=True), case[1], options).items():
        row: Row = {"flow": case[0], "dim": case[1], "task": task}
        row["microseconds"] = {name: 1e6 * statistics.median(r[name] for r in rounds) for name in rounds[0]}
        row["ratio"] = {n: statistics.median(r[n] / r[OURS] for r in rounds) for n in rounds[0] if n != OURS}
        rows.append(row)
        ratios = "".join(f"{row['ratio'].get(n, math.nan):>11.2f}" for n in LIBRARIES if n != OURS)
        print(f"{case[0]:<14}{case[1]:>4}  {task:<9}{row['microseconds'][OURS]:>10.0f}{ratios}", flush=True)
    return rows


def trained(peer: Peer, dim: int, seed: int, num_steps: int) -> Tensor:
    """Log densities of fresh points after training."""
    x = data_of(dim, 20_000, 2 + 2 * seed)
    picks = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(peer.module.parameters(), 2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        train_step(peer, optimizer, x[torch.randint(len(x), (BATCH,), generator=picks)])
        schedule.step()
    peer.module.eval()
    fresh = data_of(dim, FRESH, 3 + 2 * seed)
    return torch.cat([quietly(peer.log_prob, part) for part in fresh.split(1000)])


def likelihood(case: tuple[str, int, int, int], options: argparse.Namespace) -> Row:
    """Of each library; differences to ours with standard errors, of points and of seeds together."""
    found: dict[str, list[Tensor]] = {}
    for seed in range(options.seeds):
        for name, peer in peers_of(*case, seed=seed).items():
            found.setdefault(name, []).append(trained(peer, case[1], seed, options.steps))
    row: Row = {"flow": case[0], "dim": case[1], "log_prob": {n: float(torch.cat(v).mean()) for n, v in found.items()}}
    row["params"] = {name: peer.num_params for name, peer in peers_of(*case, seed=0).items()}
    row["se"], row["difference"] = {}, {}
    for name, values in found.items():
        if name != OURS:
            gaps = torch.stack([b - a for a, b in zip(found[OURS], values)])
            spread = gaps.mean(1).var() / len(gaps) if len(gaps) > 1 else torch.zeros(())
            row["difference"][name] = float(gaps.mean())
            row["se"][name] = float((gaps.var(1).mean() / gaps.numel() + spread).sqrt())
    cells = "".join(f"  {n} {d:+.3f} ± {row['se'][n]:.3f}" for n, d in row["difference"].items())
    print(f"{case[0]:<14}{case[1]:>4}{row['log_prob'][OURS]:>10.3f}{cells}   parameters {row['params']}", flush=True)
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", default="", help="parts of names, separated by commas; default all")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.02, help="of each timing")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-fit", dest="fit", action="store_false", help="timings only")
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="likelihoods only")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="nflows|normflows")  # of functions that torch will drop
    cases = [case for case in CASES if any(part in f"{case[0]} {case[1]}" for part in options.flows.split(","))]
    print(f"{platform.machine()}, torch {torch.__version__}, one thread\n")
    rows: dict[str, Any] = {"speed": [], "likelihood": []}
    if options.speed:
        others = "".join(f"{name:>11}" for name in LIBRARIES if name != OURS)
        print(f"{'flow':<14}{'D':>4}  {'task':<9}{'ours, us':>10}{others}")
        rows["speed"] = [row for case in cases for row in speed(case, options)]
    if options.fit:
        print(f"\n{'flow':<14}{'D':>4}{'ours':>10}  differences to ours, nats")
        rows["likelihood"] = [likelihood(case, options) for case in cases]
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
