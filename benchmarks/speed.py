r"""Microseconds a training step, and seconds to the first ones: Pyro's SVI, ours by each engine, and NumPyro.

    python -m benchmarks.speed [--particles 1,16,256] [--repeats 5] [--no-numpyro] [--quick]
                               [--json FILE] [--plot FILE]

Models: eight schools (non-centered), a logistic regression of 1,000 rows and 25 columns, and one of 10,000 rows and
10 columns of which a step sees 100. The flow is three affine autoregressive layers with two hidden layers of 32 tanh
units; the objective the ELBO by its total gradient; the optimiser Adam at 1e-3. Pyro runs its own ``AutoIAFNormal`` in
``svi.step``; NumPyro its ``AutoIAFNormal`` in the loop that ``svi.run`` compiles. A last model is the default
``AutoFlow`` with the schedule's path gradient on eight schools, which NumPyro does not have.

Numbers are medians of interleaved repeats. The picture shows the cost against the latent dimension (networks as wide as
that, and at least 32) and the particles. "Cold" is the wall-clock time of a fresh process, imports and compiling
included, to the first 1,000 and 10,000 steps of eight schools with 16 particles; with an empty cache of compiled code,
and with one that an earlier process has filled.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal
from torch import Tensor

from benchmarks import speed_plot
from pyro_nflows import ELBO, AutoFlow, AutoIAF
from pyro_nflows.engine import Engine, Inputs, Program, Round, Trainer, prepare
from pyro_nflows.inference.elbo import Gradient
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint

Args = tuple[Tensor, ...]
Model = Callable[..., None]
#: Runs a block of steps; and how many those are.
Block = tuple[Callable[[], Any], int]
EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SE = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(effect: Tensor, se: Tensor) -> None:
    """Non-centered."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mu + tau * theta, se), obs=effect)


def _logits(beta: Tensor, x: Tensor) -> Tensor:
    return (beta @ x.T).reshape(*beta.shape[:-2], len(x))  # Pyro's particle plate leaves beta (K, 1, columns)


def logistic(x: Tensor, y: Tensor) -> None:
    """A logistic regression."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=_logits(beta, x)), obs=y)


def subsampled(x: Tensor, y: Tensor) -> None:
    """The same with 100 rows a step."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("row", len(x), subsample_size=100) as index:
        pyro.sample("y", dist.Bernoulli(logits=_logits(beta, x[index])), obs=y[index])


def correlated(precision: Tensor) -> None:
    """A Gaussian of any dimension, for the cost against it."""
    zero = torch.zeros(len(precision))
    z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
    pyro.factor("coupling", -0.5 * (z * (z @ precision)).sum(-1))


def regression_data(rows: int, columns: int) -> Args:
    """A design, and outcomes from it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator)
    beta = torch.randn(columns, generator=generator)
    return x, torch.bernoulli(torch.sigmoid(x @ beta), generator=generator)


MODELS: dict[str, tuple[str, Model, Args]] = {
    "eight schools": ("eight_schools", eight_schools, (EFFECT, SE)),
    "logistic 1000x25": ("logistic", logistic, regression_data(1000, 25)),
    "100 rows of 10000x10": ("subsampled", subsampled, regression_data(10_000, 10)),
}
three_layers = partial(AutoIAF, num_layers=3, hidden_dims=(32, 32))


def program_of(
    make: Callable[..., AutoFlow], model: Model, args: Args, num_particles: int, gradient: Gradient = Gradient.TOTAL
) -> Program:
    """The training step of a guide of ours."""
    pyro.clear_param_store()
    guide = make(model)
    guide.set_up(args, {})
    joint = LogJoint(BoundModel(model, args), guide.latents)
    joint.prepare()
    layer = guide.plain_layer()
    return Program(joint, layer, ELBO(num_particles), gradient, num_particles)


def our_block(program: Program, engine: Engine, num_steps: int) -> Block:
    """Steps as ``VI`` runs them, their random numbers included."""
    like = program.init().params

    def inputs(num: int) -> Inputs:
        noise = like.new_empty(num, program.num_particles, program.noise_width).normal_()
        return Inputs(noise, like.new_full((num,), 1e-3), like.new_ones(num), like.new_zeros(num))

    runner, state = prepare(program, engine, inputs(3)), program.init()
    if runner.engine is not engine:
        raise RuntimeError(f"{engine.value} was asked for, and {runner.engine.value} is what runs")

    def go() -> None:
        nonlocal state
        state, _ = runner.run(state, inputs(num_steps))

    return go, num_steps


def pyro_block(make: Callable[..., Any], model: Model, args: Args, num_particles: int) -> Block:
    """``svi.step`` in Pyro's own loop."""
    pyro.clear_param_store()
    loss = Trace_ELBO(
        num_particles=num_particles,
        vectorize_particles=num_particles > 1,
        max_plate_nesting=1,
    )
    svi = SVI(model, make(model), pyro.optim.Adam({"lr": 1e-3}), loss)
    return lambda: [svi.step(*args) for _ in range(10)], 10


def microseconds(block: Block, seconds: float) -> float:
    """Time a step, over as many as fit."""
    run, size = block
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        run()
        count += size
    return 1e6 * (time.perf_counter() - began) / count


def medians(blocks: dict[str, Block], repeats: int, seconds: float) -> dict[str, float]:
    """Interleaved, so that a busy machine is unfair to none."""
    for run, _ in blocks.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(repeats):
        for name, block in blocks.items():
            times[name].append(microseconds(block, seconds))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(name: str, num_particles: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    key, model, args = MODELS[name]
    args = tuple(a.to(torch.get_default_dtype()) for a in args)
    peer = partial(AutoIAFNormal, hidden_dim=[32, 32], num_transforms=3)
    blocks = {"pyro": pyro_block(peer, model, args, num_particles)}
    for engine, size in ((Engine.EAGER, 5), (Engine.TRACED, 20), (Engine.COMPILED, 500)):
        blocks[engine.value] = our_block(program_of(three_layers, model, args, num_particles), engine, size)
    if options.numpyro:
        blocks["numpyro"] = numpyro_block(key, args, num_particles)
    return {"model": name, "particles": num_particles, **medians(blocks, options.repeats, options.seconds)}


def measure_default(num_particles: int, options: argparse.Namespace) -> dict[str, Any]:
    """The row of the recommended guide."""
    _, model, args = MODELS["eight schools"]
    args = tuple(a.to(torch.get_default_dtype()) for a in args)
    blocks = {"pyro": pyro_block(AutoFlow, model, args, num_particles)}
    for engine, size in ((Engine.EAGER, 5), (Engine.TRACED, 20), (Engine.COMPILED, 200)):
        program = program_of(AutoFlow, model, args, num_particles, Gradient.PATH)
        blocks[engine.value] = our_block(program, engine, size)
    row = {"model": "default AutoFlow", "particles": num_particles}
    return row | medians(blocks, options.repeats, options.seconds)


def numpyro_block(key: str, args: Args, num_particles: int, num_steps: int = 500, width: int = 32) -> Block:
    """Steps in the loop that NumPyro compiles."""
    from . import numpyro_speed

    double = torch.get_default_dtype() is torch.float64
    arrays = tuple(a.numpy() for a in args)
    return numpyro_speed.block(key, arrays, num_particles, num_steps, double, width), num_steps


def sweep(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Cost against the latent dimension (16 particles) and against particles (eight schools)."""
    rows = []
    for dim in (10, 30, 100, 300, 1000):
        args = (0.5 * torch.ones(dim, dim) / dim,)
        rows.append({"dim": dim, **_ours_and_theirs("correlated", correlated, args, 16, options, max(32, dim))})
    _, model, args = MODELS["eight schools"]
    for num in (1, 4, 16, 64, 256, 1024, 4096):
        rows.append({"particles": num, **_ours_and_theirs("eight_schools", model, args, num, options)})
    return rows


def _ours_and_theirs(
    key: str, model: Model, args: Args, num_particles: int, options: argparse.Namespace, width: int = 32
) -> dict[str, float]:
    make = partial(AutoIAF, num_layers=3, hidden_dims=(width, width))
    engines = [Engine.COMPILED] if width > 300 else [Engine.TRACED, Engine.COMPILED]
    program = program_of(make, model, args, num_particles)
    blocks = {engine.value: our_block(program, engine, 20) for engine in engines}
    if options.numpyro:
        blocks["numpyro"] = numpyro_block(key, args, num_particles, 20, width)
    return medians(blocks, 3, 0.2)


# ---- cold starts --------------------------------------------------------------------------------------------


def cold_steps(num_steps: int) -> None:
    """What a fresh process of ours does."""
    _, model, args = MODELS["eight schools"]
    program = program_of(three_layers, model, args, 16)
    trainer = Trainer(program.log_joint, progress_bar=False)
    trainer.run(program.layer, ELBO(16), Gradient.TOTAL, Round(num_steps, 16, 1e-3), "")


def cold(who: str, num_steps: int, repeats: int) -> float:
    """Wall-clock seconds of a fresh process, the median."""
    ours = ["benchmarks.speed", "--cold-steps", str(num_steps)]
    command = [sys.executable, "-m", *(["benchmarks.numpyro_speed", str(num_steps)] if who == "NumPyro" else ours)]
    times = []
    with tempfile.TemporaryDirectory() as filled:
        for i in range(-1, repeats):
            with tempfile.TemporaryDirectory() as empty:
                folder = filled if "filled" in who else empty
                began = time.perf_counter()
                subprocess.run(command, env=os.environ | {"PYRO_NFLOWS_CACHE": folder}, check=True)
                if i >= 0:
                    times.append(time.perf_counter() - began)
    return statistics.median(times)


# ---- tables -------------------------------------------------------------------------------------------------

METHODS = ("pyro", "eager", "traced", "compiled", "numpyro")


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Microseconds a step."""
    kind = str(torch.get_default_dtype()).split(".")[1]
    print(f"{kind}; microseconds a step\n")
    heads = "".join(f"{name:>10}" for name in METHODS)
    print(f"{'model':<22}{'particles':>10}{heads}{'pyro/ours':>11}{'numpyro/ours':>14}")
    rows = []
    for name in [*MODELS, None]:
        for num in map(int, options.particles.split(",")):
            row = measure(name, num, options) if name else measure_default(num, options)
            rows.append(row | {"dtype": kind})
            values = "".join(f"{row[m]:>10.0f}" if m in row else f"{'-':>10}" for m in METHODS)
            ratios = [row[m] / row["compiled"] if m in row else float("nan") for m in ("pyro", "numpyro")]
            print(f"{row['model']:<22}{num:>10}{values}{ratios[0]:>11.1f}{ratios[1]:>14.2f}", flush=True)
    print()
    return rows


def cold_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a fresh process."""
    print("seconds of a fresh process to the first steps of eight schools, 16 particles\n")
    print(f"{'':<26}{'1,000':>8}{'10,000':>8}")
    rows = []
    for who in ["ours, empty cache", "ours, filled cache", *(["NumPyro"] if options.numpyro else [])]:
        seconds = {num: cold(who, num, 3) for num in (1000, 10_000)}
        rows.append({"who": who, **{str(num): value for num, value in seconds.items()}})
        print(f"{who:<26}{seconds[1000]:>8.2f}{seconds[10_000]:>8.2f}", flush=True)
    print()
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", default="1,16,256")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each timing")
    parser.add_argument("--no-numpyro", dest="numpyro", action="store_false")
    parser.add_argument("--quick", action="store_true", help="single precision only; no cold starts, no sweep")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--plot", help="write a picture of the sweep here")
    parser.add_argument("--cold-steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.cold_steps:
        cold_steps(options.cold_steps)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, torch on one thread")
    rows: dict[str, Any] = {"steps": table(options)}
    if not options.quick:
        torch.set_default_dtype(torch.float64)
        rows["steps"] += table(options)
        torch.set_default_dtype(torch.float32)
        rows |= {"cold": cold_table(options), "sweep": sweep(options)}
        if options.plot:
            speed_plot.plot(rows["sweep"], options.plot)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
