r"""Microseconds a step: Pyro's SVI, and ours by each engine, on the same flow, objective and optimiser.

    python -m benchmarks.speed [--particles 1,16,256] [--repeats 5] [--json FILE]

Two models, eight schools (non-centered) and a logistic regression of 1,000 rows and 25 columns; three affine
autoregressive layers; the ELBO by its total gradient, Adam at 1e-3. Medians of interleaved repeats, each of as many
steps as fit into half a second. "trace" is the seconds that recording a step takes in a warm process.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_nflows import ELBO, AutoIAF
from pyro_nflows.engine import Engine, Inputs, Program, compile_step
from pyro_nflows.log_joint import LogJoint
from pyro_nflows.objectives import Gradient

EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SE = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> None:
    """Non-centered."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mu + tau * theta, SE), obs=EFFECT)


def logistic(x: Tensor, y: Tensor) -> None:
    """A logistic regression."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    logits = (beta @ x.T).reshape(*beta.shape[:-2], len(x))  # Pyro's particle plate leaves beta (K, 1, 25)
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def regression_data() -> tuple[Tensor, Tensor]:
    """1,000 rows of 25 columns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 25, generator=generator)
    beta = torch.randn(25, generator=generator)
    return x, torch.bernoulli(torch.sigmoid(x @ beta), generator=generator)


MODELS: dict[str, tuple[Callable[..., None], tuple[Tensor, ...]]] = {
    "eight schools": (eight_schools, ()),
    "logistic 1000x25": (logistic, regression_data()),
}
Step = Callable[[], Any]


def pyro_step(model: Callable[..., None], args: tuple[Tensor, ...], num_particles: int) -> Step:
    """``svi.step`` in Pyro's own loop."""
    pyro.clear_param_store()
    guide = AutoIAF(model, num_layers=3)
    loss = Trace_ELBO(num_particles=num_particles, vectorize_particles=num_particles > 1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    return partial(svi.step, *args)


def our_step(model: Callable[..., None], args: tuple[Tensor, ...], num_particles: int, engine: Engine) -> Step:
    """A step of ``VI``."""
    pyro.clear_param_store()
    guide = AutoIAF(model, num_layers=3)
    guide._setup_prototype(*args)
    joint = LogJoint(model, guide)
    joint.prepare(*args)
    layer: Any = guide.layer
    program = Program(lambda z: joint(z, *args), layer, ELBO(num_particles), Gradient.TOTAL, num_particles)
    state = program.init()

    def inputs() -> Inputs:
        noise = torch.randn(num_particles, program.noise_width)
        return Inputs(noise, torch.tensor(1e-3), torch.tensor(1.0))

    step, chosen = compile_step(program, engine, inputs())
    if chosen is not engine:
        raise RuntimeError(f"{engine.value} was asked for, and {chosen.value} is what runs")

    def run() -> None:
        nonlocal state
        state, _ = step(state, inputs())

    return run


def microseconds(step: Step, seconds: float = 0.5) -> float:
    """Time a step, over as many as fit."""
    step()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        count += 1
    return 1e6 * (time.perf_counter() - began) / count


def measure(name: str, num_particles: int, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    model, args = MODELS[name]
    steps: dict[str, Step] = {"pyro": pyro_step(model, args, num_particles)}
    for engine in (Engine.EAGER, Engine.TRACED):
        began = time.perf_counter()
        steps[engine.value] = our_step(model, args, num_particles, engine)
        seconds = time.perf_counter() - began
    times: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(repeats):
        for key, step in steps.items():
            times[key].append(microseconds(step))
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {"model": name, "particles": num_particles, **medians, "trace": seconds}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", default="1,16,256")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    print(f"{platform.machine()}, torch {torch.__version__}, one thread; microseconds a step\n")
    print(f"{'model':<18}{'particles':>10}{'Pyro SVI':>10}{'eager':>10}{'traced':>10}{'ratio':>8}{'trace s':>9}")
    for name in MODELS:
        for num in map(int, options.particles.split(",")):
            row = measure(name, num, options.repeats)
            rows.append(row)
            print(
                f"{name:<18}{num:>10}{row['pyro']:>10.0f}{row['eager']:>10.0f}{row['traced']:>10.0f}"
                f"{row['pyro'] / row['traced']:>8.1f}{row['trace']:>9.2f}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
