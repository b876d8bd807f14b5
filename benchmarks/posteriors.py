r"""How good, and how soon? The twelve posteriors with reference draws, by default settings and by the usual ways.

    python -m benchmarks.posteriors --posteriordb PATH [--methods flow,normal] [--seeds 1]
                                    [--limit SECONDS] [--json FILE] [--plot FILE]

Each fit runs in a process of its own. "Cold" is the seconds of its imports and of the fit, tracing and compiling
included (and of reading neither data nor reference draws); "warm" is a second run in the same process. Nothing is set
by hand for any posterior. Methods:

``flow``    ``VI(AutoFlow(model)).run(data)``
``normal``  Pyro's ``AutoMultivariateNormal``, ``Trace_ELBO`` of 16 particles, Adam at 1e-3, 20,000 steps
``iaf``     Pyro's ``AutoIAFNormal``, the same
``nuts``    Pyro's ``NUTS``, four chains of 1,000 + 1,000
``np-nuts`` NumPyro's ``NUTS``, the same
``np-bnaf`` NumPyro's ``AutoBNAFNormal``, Adam at 1e-3, 20,000 steps of 16 particles

Errors are the worst over the parameters: of the mean in reference standard deviations, and of the standard deviation as
a share; for weighed draws before and after importance resampling.
"""

import argparse
import functools
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoIAFNormal, AutoMultivariateNormal, init_to_value
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from benchmarks import error_plot
from benchmarks.models import POSTERIORS, Posterior, add_posteriordb_argument, errors, reference
from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics import weights as diagnostics
from pyro_nflows.diagnostics.verdict import Evidence, judge
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint

NUM_DRAWS = 22_500
Row = dict[str, Any]


def weighed(posterior: Posterior, guide: AutoFlow, z: Tensor, log_weight: Tensor, path: str | None) -> Row:
    """What the weights say, and the errors before and after resampling."""
    resampled = z[diagnostics.psis_resample(log_weight, len(z))]
    truth = reference(posterior.name, path)
    before, after = (errors(posterior.to_reference(guide.constrain(rows)), truth) for rows in (z, resampled))
    return {
        "elbo": float(diagnostics.elbo(log_weight).value),
        "iwae": float(diagnostics.log_evidence(log_weight).value),
        "ess": float(diagnostics.ess(log_weight)),
        "pareto_k": float(diagnostics.pareto_k(log_weight)),
        "mean_error": before[0],
        "sd_error": before[1],
        "mean_error_psis": after[0],
        "sd_error_psis": after[1],
        "verdict": judge(Evidence(log_weight, [], [], torch.ones(1))).outcome.name,
    }


def by_flow(posterior: Posterior, args: tuple[Any, ...], seed: int, path: str | None) -> Row:
    """Our default, whatever it is today."""
    began = time.perf_counter()
    vi = VI(AutoFlow(posterior.model), seed=seed, progress_bar=False).run(*args)
    first = time.perf_counter() - began
    began = time.perf_counter()
    VI(AutoFlow(posterior.model), seed=seed, progress_bar=False).run(*args)
    warm = time.perf_counter() - began
    draws = vi.posterior.draws
    row = weighed(posterior, vi.guide, draws.z, draws.log_weight, path)
    return row | {
        "steps": vi.history.num_steps,
        "first": first,
        "warm": warm,
        "verdict": vi.verdict().outcome.name,
        "engine": vi.history.engines[-1].value if vi.history.engines else "none",
    }


def peer(make: Callable[..., AutoContinuous]) -> Callable[..., Row]:
    """A Pyro guide in Pyro's loop."""

    def fit(posterior: Posterior, args: tuple[Any, ...], seed: int, path: str | None, steps: int = 20_000) -> Row:
        ours, values = start(posterior, args)
        began = time.perf_counter()
        guide = make(posterior.model, init_loc_fn=init_to_value(values=values))
        loss = Trace_ELBO(num_particles=16, vectorize_particles=True)
        svi = SVI(posterior.model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
        for _ in range(steps):
            svi.step(*args)
        first = time.perf_counter() - began
        with torch.no_grad():
            q = guide.get_posterior()
            z = q.sample((NUM_DRAWS,))
            joint = LogJoint(BoundModel(posterior.model, args), ours.latents)
            joint.prepare()
            log_p = torch.cat([joint(rows) for rows in z.split(2000)])
            log_weight = torch.nan_to_num((log_p - q.log_prob(z)).double(), nan=-math.inf)
        return weighed(posterior, ours, z, log_weight, path) | {"steps": steps, "first": first}

    return fit


def by_nuts(posterior: Posterior, args: tuple[Any, ...], seed: int, path: str | None) -> Row:
    """Pyro's NUTS."""
    _, values = start(posterior, args)
    began = time.perf_counter()
    model = InitMessenger(init_to_value(values=values))(posterior.model)  # flat priors cannot be sampled
    kernel = NUTS(model, init_strategy=init_to_value(values=values))
    mcmc = MCMC(kernel, num_samples=1000, warmup_steps=1000, num_chains=4, mp_context="spawn", disable_progbar=True)
    mcmc.run(*args)
    first = time.perf_counter() - began
    mean, sd = errors(posterior.to_reference(mcmc.get_samples()), reference(posterior.name, path))
    return {"first": first, "mean_error": mean, "sd_error": sd}


def by_numpyro_nuts(posterior: Posterior, args: tuple[Any, ...], seed: int, path: str | None) -> Row:
    """NumPyro's NUTS."""
    import jax
    from numpyro.infer import MCMC, NUTS

    from benchmarks.numpyro_models import MODELS

    began = time.perf_counter()
    arrays = [a.numpy() if isinstance(a, Tensor) else a for a in args]
    mcmc = MCMC(
        NUTS(MODELS[posterior.name]),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(seed), *arrays)
    samples = {name: torch.tensor(jax.device_get(draws)) for name, draws in mcmc.get_samples().items()}
    first = time.perf_counter() - began
    mean, sd = errors(posterior.to_reference(samples), reference(posterior.name, path))
    return {"first": first, "mean_error": mean, "sd_error": sd}


def by_numpyro_bnaf(posterior: Posterior, args: tuple[Any, ...], seed: int, path: str | None) -> Row:
    """NumPyro's block neural autoregressive flow, by its own defaults."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoBNAFNormal

    from benchmarks.numpyro_models import MODELS

    began = time.perf_counter()
    model = MODELS[posterior.name]
    arrays = [jnp.array(a.numpy()) if isinstance(a, Tensor) else a for a in args]
    guide = AutoBNAFNormal(model, num_flows=1)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO(num_particles=16))
    result = svi.run(jax.random.PRNGKey(seed), 20_000, *arrays, progress_bar=False)
    values = guide.sample_posterior(jax.random.PRNGKey(1), result.params, sample_shape=(NUM_DRAWS,))
    first = time.perf_counter() - began
    samples = {name: torch.tensor(jax.device_get(v)) for name, v in values.items()}
    mean, sd = errors(posterior.to_reference(samples), reference(posterior.name, path))
    return {"first": first, "steps": 20_000, "mean_error": mean, "sd_error": sd}


def start(posterior: Posterior, args: tuple[Any, ...]) -> tuple[AutoFlow, dict[str, Tensor]]:
    """A flow guide that knows the sites, and the values at zero in unconstrained space."""
    guide = AutoFlow(posterior.model)
    guide.set_up(args, {})
    values = guide.constrain(torch.zeros(1, guide.latent_dim))
    return guide, {name: value[0] for name, value in values.items()}


METHODS: dict[str, Callable[..., Row]] = {
    "flow": by_flow,
    "normal": peer(AutoMultivariateNormal),
    "iaf": peer(AutoIAFNormal),
    "nuts": by_nuts,
    "np-nuts": by_numpyro_nuts,
    "np-bnaf": by_numpyro_bnaf,
}
COLUMNS = {
    "steps": "7d",
    "cold": "8.1f",
    "warm": "8.1f",
    "elbo": "10.3f",
    "iwae": "10.3f",
    "ess": "7.3f",
    "pareto_k": "9.2f",
    "mean_error": "11.3f",
    "sd_error": "9.3f",
    "mean_error_psis": "16.3f",
    "sd_error_psis": "14.3f",
}


def one(method: str, name: str, seed: int, path: str | None) -> None:
    """One fit, in this process: its row as JSON on the last line."""
    torch.set_num_threads(1)
    pyro.set_rng_seed(seed)
    posterior = POSTERIORS[name]
    args = posterior.args(path)
    guide, _ = start(posterior, args)
    row = METHODS[method](posterior, args, seed, path)
    print(json.dumps(row | {"dim": guide.latent_dim}))


def apart(method: str, name: str, seed: int, path: str | None, limit: int | None = None) -> Row:
    """The same in a process of its own, with no compiled code to find; it is ended at the limit."""
    command = [sys.executable, "-m", "benchmarks.posteriors", "--one", method, name, str(seed)]
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | {"PYRO_NFLOWS_CACHE": empty}
        given = ["--posteriordb", path] if path else []
        given += ["--limit", str(limit)] if limit else []
        done = subprocess.run([*command, *given], capture_output=True, text=True, env=environment)
    head = {"posterior": name, "method": method, "seed": seed}
    if done.returncode == -signal.SIGXCPU:
        return head | {"error": f"not done after {limit} s of processor time", "limit": limit}
    if done.returncode:
        return head | {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    row = json.loads(done.stdout.strip().splitlines()[-1])
    return head | row | {"cold": row["first"] + import_seconds("numpyro.infer" if "np-" in method else "pyro_nflows")}


@functools.cache
def import_seconds(module: str) -> float:
    """What a fresh process needs for it."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        times.append(time.perf_counter() - began)
    return min(times)


def line(row: Row) -> str:
    """A row of the table."""
    if "error" in row:
        return f"{row['posterior']:<42}{row['method']:<8}{row['seed']:>4}  failed: {row['error'][:100]}"
    cells = (
        format(row[key], spec) if key in row else " " * int(spec.split(".")[0].rstrip("d"))
        for key, spec in COLUMNS.items()
    )
    name = f"{row['posterior']:<42}{row['method']:<8}{row['seed']:>4}"
    return f"{name}{row['dim']:>5}{''.join(cells)}  {row.get('verdict', '')}"


def head() -> str:
    """The head of the table."""
    cells = "".join(f"{key:>{int(spec.split('.')[0].rstrip('d'))}}" for key, spec in COLUMNS.items())
    return f"{'posterior':<42}{'method':<8}{'seed':>4}{'dim':>5}{cells}  verdict"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_posteriordb_argument(parser)
    parser.add_argument("--methods", default="flow,normal,iaf", help=f"some of {','.join(METHODS)}")
    parser.add_argument("--posteriors", default="", help="parts of names, separated by commas; default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, help="seconds of processor time after which a fit is given up")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--plot", help="write a picture here")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "POSTERIOR", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        if options.limit:
            resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit + 5))
        return one(options.one[0], options.one[1], int(options.one[2]), options.posteriordb)
    parts = options.posteriors.split(",")
    names = [name for name in POSTERIORS if any(part in name for part in parts)]
    print(f"{platform.machine()}, torch {torch.__version__}, one thread\n\n{head()}", flush=True)
    rows: list[Row] = []
    for name in names:
        for method in options.methods.split(","):
            for seed in range(options.seeds):
                rows.append(apart(method, name, seed, options.posteriordb, options.limit))
                print(line(rows[-1]), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    if options.plot:
        error_plot.plot(rows, options.plot)


if __name__ == "__main__":
    main()
