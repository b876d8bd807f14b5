"""Throughput of one fit on one process and on several of ``torch.distributed``: ``python -m benchmarks.several``.

Each process has one thread, and a core of its own where there are so many. Steps of both ways are timed in turns, and
the least of some repeats is taken: what other programs do on the machine makes steps longer, never shorter. What is
timed is a round of training, handing out of state and noise included.
"""

import argparse
import contextlib
import multiprocessing
import os
import queue
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from torch import Tensor

from pyro_nflows import AutoFlow
from pyro_nflows.engine import Engine, Trainer
from pyro_nflows.engine.given import inputs_of, schedule_of
from pyro_nflows.engine.program import Program
from pyro_nflows.engine.round import Round
from pyro_nflows.engine.runners import Compiled
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.portable import at_hand
from pyro_nflows.inference.running import Fitter
from pyro_nflows.inference.together import Follower, share
from pyro_nflows.objectives.base import Gradient
from pyro_nflows.objectives.covering import Covering
from pyro_nflows.system.ranks import Ranks, ranks_here

#: Steps that are timed at once, and seconds of each repeat.
BLOCK, NUM_PARTICLES = 20, 128


def gaussian(dim: int) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """A Gaussian with correlations."""

    def model(scale_tril: Tensor) -> None:
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(dim), scale_tril=scale_tril))

    return model, (torch.eye(dim) + 0.1 * torch.ones(dim, dim).tril(-1),)


def logistic(num_rows: int, dim: int) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """A logistic regression."""
    x = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor, y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(0.0, torch.ones(dim)).to_event(1))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    return model, (x, (x.sum(1) > 0).float())


MODELS: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Tensor, ...]]]] = {
    "Gaussian, 30 dimensions": lambda: gaussian(30),
    "Gaussian, 100 dimensions": lambda: gaussian(100),
    "logistic regression, 1,000 x 25": lambda: logistic(1000, 25),
    "logistic regression, 20,000 x 5": lambda: logistic(20_000, 5),
}
ENGINES = Engine.TRACED, Engine.COMPILED


def steps_of(trainer: Trainer, program: Program, engine: Engine) -> Callable[[], float]:
    """Runs a block of steps, and says how many seconds of one step that took."""
    trainer.engine = engine
    _, runner = trainer._get(program.layer, Covering(0.0), Gradient.PATH, ROUND)
    state, schedule = program.init(), schedule_of(ROUND, 0.0, program.params())
    given = inputs_of(program, schedule, 0, BLOCK)

    def run() -> float:
        began = time.perf_counter()
        runner.run(state, given)
        return (time.perf_counter() - began) / BLOCK

    for _ in range(2):
        run()
    if engine is Engine.COMPILED and runner.engine is not Engine.COMPILED and not isinstance(runner, Compiled):
        raise RuntimeError(f"no compiled steps: {runner.note}")
    return run


ROUND = Round(BLOCK, NUM_PARTICLES, 1e-3)


def measure(rank: int, size: int, port: int, name: str, engine: Engine, seconds: float, found: Any) -> None:
    """One process: times one model's steps, alone and with the others."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ.update(store)
    torch.distributed.init_process_group("gloo")
    ranks, (model, call) = ranks_here(), MODELS[name]()
    guide = AutoFlow(model)
    if rank:
        follow(ranks, guide, (call, {}))
        return
    torch.manual_seed(0)
    plan = Plan(engine=engine)
    alone, together = (_trainer(guide, plan, call) for _ in range(2))
    with at_hand(guide, (call, {})):
        share(ranks, together, guide, together.log_joint, plan)  # type: ignore[arg-type]
    program = Program(alone.log_joint, guide.plain_layer(), Covering(0.0), Gradient.PATH, NUM_PARTICLES)
    ways = [steps_of(trainer, program, engine) for trainer in (alone, together)]
    best, until = [float("inf")] * 2, time.perf_counter() + seconds
    cpu = list[float]()
    while time.perf_counter() < until:
        best = [min(least, way()) for least, way in zip(best, ways)]
    for way in ways:
        began = time.process_time()
        for _ in range(5):
            way()
        cpu.append((time.process_time() - began) / (5 * BLOCK))
    ranks.tell("result", b"")
    found.put((best, cpu))


def _trainer(guide: AutoFlow, plan: Plan, call: Sequence[Tensor]) -> Trainer:
    return Fitter(guide).alone(plan, (tuple(call), {}), None)[1]


def follow(ranks: Ranks, guide: AutoFlow, call: Any) -> None:
    """What a process does that does not lead."""
    with at_hand(guide, call), contextlib.ExitStack() as stack:
        follower = Follower(ranks, stack)
        while True:
            name, content = ranks.hear()
            if name == "result":
                return follower.close()
            getattr(follower, name)(*content)


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def row(name: str, engine: Engine, size: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of a step, alone and together, by the clock and of this process."""
    context = multiprocessing.get_context("spawn")
    found, port = context.Queue(), free_port()
    args = [(rank, size, port, name, engine, seconds, found) for rank in range(size)]
    processes = [context.Process(target=measure, args=each) for each in args]
    for process in processes:
        process.start()
    try:
        while True:
            try:
                return found.get(timeout=1.0)  # type: ignore[no-any-return]
            except queue.Empty:
                if any(process.exitcode for process in processes):
                    raise RuntimeError(f"{name}: a process has ended") from None
    finally:
        for process in processes:
            process.join(10.0)
            process.kill()


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, for each row")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args(argv)
    size = options.processes
    print(f"| model | engine | 1 process | {size} processes | ratio | processor time of rank 0, 1 to {size} |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        for engine in ENGINES:
            (one, several), cpu = row(name, engine, size, options.seconds)
            micro = f"{1e6 * one:,.0f} | {1e6 * several:,.0f} | {one / several:.2f}"
            print(f"| {name} | {engine.value} | {micro} | {cpu[0] / cpu[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
