"""One measurement of ``benchmarks.scale``, in a process of its own: ``python -m benchmarks.scale_cells JSON``.

The JSON says what to measure; the last line that is printed is a JSON of what was found. Memory is what the process
took at the most beyond what it had when its data were made.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import scale_models

#: Steps of a repeat, at the fewest: training runs fifty at once, and what is done once for them is not a step's.
FEWEST = 20
#: Particles of a step.
PARTICLES = 128
#: Draws of a NumPyro guide, and steps of its training; warm-up and draws of each of NUTS' chains.
DRAWS, STEPS, CHAINS, WARMUP = 4000, 3000, 2, 500
Row = dict[str, Any]


def peak() -> float:
    """Megabytes that the process took at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


@contextlib.contextmanager
def alone(threads: list[int] | None) -> Iterator[None]:
    """Keep other programs off the processors for a moment, where the system lets us.

    :param threads: those that work, to be spread over the processors; None, and nothing is done.
    """
    free = sorted(os.sched_getaffinity(0)) if threads else []
    for i, thread in enumerate(threads or []):
        os.sched_setaffinity(thread, {free[i % len(free)]})
        os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        for thread in threads or []:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
                os.sched_setaffinity(thread, free)


def workers(run: Callable[[], None]) -> list[int]:
    """The threads of this process: the first and the last that was made, and then those that work most."""

    def nanoseconds() -> dict[int, int]:
        folders = Path("/proc/self/task").iterdir()
        return {int(folder.name): int((folder / "schedstat").read_text().split()[0]) for folder in folders}

    before = nanoseconds()
    run()
    took = {thread: total - before.get(thread, 0) for thread, total in nanoseconds().items()}
    ends = (min(took), max(took))  # ours: the second may not have had a processor just now
    return sorted(took, key=lambda thread: (thread not in ends, thread != ends[0], -took[thread]))


def timed(run: Callable[[int], Any], job: Row) -> Row:
    """Microseconds a step: the least of many short repeats, by the wall's clock and by the processor's."""
    run(2)
    began = time.process_time()
    run(2)
    num = max(FEWEST, min(500, int(0.03 / max(1e-6, (time.process_time() - began) / 2))))
    run(num)
    threads = workers(lambda: run(num)) if job["alone"] else None
    wall, processor = [], []
    for _ in range(job["bursts"]):
        with alone(threads):
            for _ in range(job["repeats"]):
                clocks = time.perf_counter(), time.process_time()
                run(num)
                wall.append((time.perf_counter() - clocks[0]) / num)
                processor.append((time.process_time() - clocks[1]) / num)
        time.sleep(0.1)
    return {"us": 1e6 * min(wall), "us_median": 1e6 * float(np.median(wall)), "us_processor": 1e6 * min(processor)}


# ---- a step -------------------------------------------------------------------------------------------------------


def our_step(job: Row) -> Row:
    """A step of ``VI`` as it is compiled."""
    import torch

    from pyro_nflows import AutoFlow, AutoIAF
    from pyro_nflows.engine import Engine, Inputs, prepare
    from pyro_nflows.engine.backends import Best
    from pyro_nflows.engine.runners import Compiled
    from pyro_nflows.inference.elbo import Gradient

    from .speed import program_of

    torch.set_num_threads(1)  # no threads of torch's beside ours
    args, before = tuple(map(torch.tensor, scale_models.data(job["model"], job["size"]))), peak()
    model, width = scale_models.models("pyro")[job["model"]], max(32, job["size"])
    iaf = job["method"] == "AutoIAF"

    def make(model: Callable[..., None]) -> Any:
        return AutoIAF(model, num_layers=3, hidden_dims=(width, width)) if iaf else AutoFlow(model)

    program = program_of(make, model, args, PARTICLES, Gradient.TOTAL if iaf else Gradient.PATH)
    like = program.init().params

    def inputs(num: int) -> Inputs:
        noise = like.new_empty(num, PARTICLES, program.noise_width).normal_()
        return Inputs(noise, like.new_full((num,), 1e-4), like.new_ones(num), like.new_zeros(num))

    runner, state = prepare(program, Engine.COMPILED, inputs(3)), program.init()
    if isinstance(runner, Best) and isinstance(runner.runner, Compiled):  # as many threads as asked for, faster or not
        runner.runner.memory.most = job["threads"]
        runner.runner.memory.chosen.next = lambda most: most  # type: ignore[method-assign]

    def run(num: int) -> None:
        runner.run(state, inputs(num))

    return {"engine": runner.engine.value, **timed(run, job), "mb": peak() - before}


def their_step(job: Row) -> Row:
    """A step of NumPyro's SVI, in the loop that ``svi.run`` compiles."""
    import jax
    import jax.numpy as jnp

    args, before = tuple(map(jnp.array, scale_models.data(job["model"], job["size"]))), peak()
    svi = _svi(job, PARTICLES, 1e-4)
    state = svi.init(jax.random.PRNGKey(0), *args)
    made: dict[int, Any] = {}

    def run(num: int) -> None:
        if num not in made:
            made[num] = jax.jit(lambda s: jax.lax.scan(lambda c, _: svi.update(c, *args), s, None, length=num))
        jax.block_until_ready(made[num](state))

    return {**timed(run, job), "mb": peak() - before}


def _svi(job: Row, num_particles: int, step_size: float) -> Any:
    import numpyro
    from jax.example_libraries import stax
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    model = scale_models.models("numpyro")[job["model"]]
    width = max(32, job["size"])
    options = {"num_flows": 3, "hidden_dims": [width, width], "nonlinearity": stax.Tanh}
    guide = getattr(autoguide, job["method"])(model, **(options if job["method"] == "AutoIAFNormal" else {}))
    return SVI(model, guide, numpyro.optim.Adam(step_size), Trace_ELBO(num_particles=num_particles))


# ---- a fit --------------------------------------------------------------------------------------------------------


def our_fit(job: Row) -> Row:
    """``VI(AutoFlow(model))`` by default, within the seconds that there are."""
    import torch

    from pyro_nflows import VI, AutoFlow

    torch.set_num_threads(job["threads"])
    args, before = tuple(map(torch.tensor, scale_models.data(job["model"], job["size"]))), peak()
    clocks = time.perf_counter(), time.process_time()
    guide = AutoFlow(scale_models.models("pyro")[job["model"]])
    vi = VI(guide, seed=0, progress_bar=False, max_seconds=job["seconds"])
    vi.run(*args)
    found = vi.diagnostics()
    took = {"seconds": time.perf_counter() - clocks[0], "seconds_processor": time.process_time() - clocks[1]}
    draws = {name: value.double().numpy() for name, value in vi.get_samples(DRAWS).items()}
    notes = {"outcome": found["outcome"].name, "ess": found["ess"], "steps": found["num_steps"]}
    return {**took, **notes, "mb": peak() - before, **_moments(draws, job)}


def their_fit(job: Row) -> Row:
    """NumPyro's guide after a fixed number of steps; there is nothing that says whether it is right."""
    import jax
    import jax.numpy as jnp

    args, before = tuple(map(jnp.array, scale_models.data(job["model"], job["size"]))), peak()
    clocks, svi = (time.perf_counter(), time.process_time()), _svi(job, 16, 5e-3)
    result = svi.run(jax.random.PRNGKey(0), STEPS, *args, progress_bar=False)
    result.losses.block_until_ready()
    took = {"seconds": time.perf_counter() - clocks[0], "seconds_processor": time.process_time() - clocks[1]}
    draws = svi.guide.sample_posterior(jax.random.PRNGKey(1), result.params, sample_shape=(DRAWS,))
    notes = {"outcome": "-", "steps": STEPS}
    return {**took, **notes, "mb": peak() - before, **_moments({k: np.asarray(v) for k, v in draws.items()}, job)}


def nuts(job: Row) -> Row:
    """NumPyro's NUTS, some chains one after the other."""
    import jax
    import jax.numpy as jnp
    from numpyro.diagnostics import gelman_rubin
    from numpyro.infer import MCMC, NUTS

    args, before = tuple(map(jnp.array, scale_models.data(job["model"], job["size"]))), peak()
    clocks = time.perf_counter(), time.process_time()
    kernel = NUTS(scale_models.models("numpyro")[job["model"]])
    mcmc = MCMC(kernel, num_warmup=WARMUP, num_samples=2 * WARMUP, num_chains=CHAINS, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(0), *args)
    chains = {name: np.asarray(value, float) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    took = {"seconds": time.perf_counter() - clocks[0], "seconds_processor": time.process_time() - clocks[1]}
    rhat = max(float(np.max(gelman_rubin(value))) for value in chains.values())
    draws = {name: value.reshape(-1, *value.shape[2:]) for name, value in chains.items()}
    outcome = {"outcome": f"R-hat {rhat:.3f}", "steps": CHAINS * 3 * WARMUP}
    return {**took, **outcome, "mb": peak() - before, **_moments(draws, job)}


def _moments(draws: dict[str, np.ndarray], job: Row) -> Row:
    """Means and standard deviations of some hundred latents, kept for the comparison."""
    flat = np.concatenate([value.reshape(len(value), -1) for _, value in sorted(draws.items())], 1)
    some = np.linspace(0, flat.shape[1] - 1, min(flat.shape[1], 200)).astype(int)
    return {"mean": flat.mean(0)[some].tolist(), "sd": flat.std(0)[some].tolist()}


KINDS = {"our_step": our_step, "their_step": their_step, "our_fit": our_fit, "their_fit": their_fit, "nuts": nuts}


def main() -> None:
    """What the argument says."""
    job = json.loads(sys.argv[1])
    print(json.dumps(KINDS[job["kind"]](job)))


if __name__ == "__main__":
    main()
