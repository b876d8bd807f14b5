"""Throughput of one fit on one process and on several of ``torch.distributed``: ``python -m benchmarks.several``.

Each process computes on one thread. Steps of both ways are timed in turns, and
the least of some repeats is taken: what other programs do on the machine makes steps longer, never shorter. What is
timed is a round of training, handing out of state and noise included. ``--groups 20000`` fits as many groups by
minibatches, from start to verdict, on one process and then on all.
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

from pyro_nflows import VI, AutoFlow
from pyro_nflows.engine import Engine, Trainer, part_of_steps
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
    "logistic regression, 100,000 x 5": lambda: logistic(100_000, 5),
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
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ.update(store)
    torch.distributed.init_process_group("gloo")
    part_of_steps.LEAST = part_of_steps.LEAST_COMPILED = 0.0  # so that short steps are shared, too
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


def groups(y: Tensor) -> None:
    """Many groups with a mean of their own each, some of them at a time."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", y.shape[1], subsample_size=500, dim=-1) as i:
        z = pyro.sample("z", dist.Normal(mu, tau))
        with pyro.plate("observations", len(y), dim=-2):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[:, i])


def fit_groups(rank: int, size: int, port: int, num: int, found: Any) -> None:
    """One process of a whole fit by minibatches."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    if size > 1:
        torch.distributed.init_process_group("gloo")
    generator = torch.Generator().manual_seed(0)
    z = 1 + 0.7 * torch.randn(num, generator=generator)
    y = z + torch.randn(10, num, generator=generator)
    began = time.perf_counter()
    vi = VI(AutoFlow(groups), seed=0, progress_bar=False).run(y)
    if rank == 0:
        top = vi.posterior.draws.z[:, :2]
        moments = [*top.mean(0).tolist(), *top.std(0).tolist()]
        found.put((time.perf_counter() - began, vi.verdict().outcome.name, moments))


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


def first_of(run: Callable[..., None], size: int, given: Sequence[Any]) -> Any:
    """What the first of some processes finds.

    :param run: what each of them does: given its rank, their number, a port, and what follows.
    """
    context = multiprocessing.get_context("spawn")
    found, port = context.Queue(), free_port()
    processes = [context.Process(target=run, args=(rank, size, port, *given, found)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        while True:
            try:
                return found.get(timeout=1.0)
            except queue.Empty:
                if any(process.exitcode for process in processes):
                    raise RuntimeError(f"{given[0]}: a process has ended") from None
    finally:
        for process in processes:
            process.join(10.0)
            process.kill()


def compare_fits(num: int, size: int) -> None:
    """Print the table of whole fits."""
    print(f"| {num:,} groups, processes | seconds | verdict | means of mu and log tau | their sds |")
    print("|---|---|---|---|---|")
    for processes in (1, size):
        seconds, verdict, moments = first_of(fit_groups, processes, (num,))
        text = [f"{value:.4f}" for value in moments]
        columns = f"{', '.join(text[:2])} | {', '.join(text[2:])}"
        print(f"| {processes} | {seconds:.0f} | `{verdict}` | {columns} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, for each row")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--groups", type=int, help="to fit by minibatches, in the place of timing steps")
    options = parser.parse_args(argv)
    size = options.processes
    if options.groups:
        return compare_fits(options.groups, size)
    print(f"| model | engine | 1 process | {size} processes | ratio | processor time of rank 0, 1 to {size} |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        for engine in ENGINES:
            (one, several), cpu = first_of(measure, size, (name, engine, options.seconds))
            micro = f"{1e6 * one:,.0f} | {1e6 * several:,.0f} | {one / several:.2f}"
            print(f"| {name} | {engine.value} | {micro} | {cpu[0] / cpu[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
