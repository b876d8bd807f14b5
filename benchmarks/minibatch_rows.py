r"""Groups with latents of their own by minibatches of 500: errors, seconds and memory, and what a step costs.

    python -m benchmarks.minibatch_rows [--rows 100000] [--guides ours,pyro,numpyro] [--seeds 3]
    python -m benchmarks.minibatch_rows --steps [--rows 1000,100000,1000000]

N groups of ten observations. Errors of mu and log tau are against quadrature, means in posterior standard deviations
and standard deviations as ratios; so are those of 100 of the groups: the root mean square error of their means, and
the mean ratio of their standard deviations with its spread, of which ``1 / sqrt(2 S)`` is noise of the ``S`` draws.
Seconds are of processor time, and each fit has a process of its own, of which the largest memory is shown. The
``AutoNormal`` of Pyro and of NumPyro are trained by Adam on the same minibatches' ELBO, with 4,000 steps of sizes that
fall from 0.02, or as many as visit each group 20 times. ``--steps`` times steps alone, after the first ones.
"""

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from benchmarks.structure import Case, case, errors, grid
from pyro_nflows import VI, AutoFlow
from pyro_nflows.engine import Engine
from pyro_nflows.engine.minibatch_steps import Example, MinibatchSteps
from pyro_nflows.engine.program import Inputs, Program
from pyro_nflows.inference.minibatch_fit import minibatches
from pyro_nflows.inference.tabled import TabledRows
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.row_terms import RowTerms
from pyro_nflows.model.rows import Rows
from pyro_nflows.objectives.base import Gradient, Objective
from pyro_nflows.objectives.draws import base_noise
from pyro_nflows.system.exclusive import validation

#: Rows that are compared with quadrature, draws of the normal guides, and particles of a step of ours.
NUM_ROWS, NUM_DRAWS, NUM_PARTICLES = 100, 2000, 32
#: Steps that are timed, after as many that are not.
TIMED = 100

#: Draws of mu, of tau and of the first rows, and what is to be said of the fit.
Found = tuple[dict[str, Tensor], str]


def num_steps(num_rows: int) -> int:
    """Of the normal guides."""
    return max(4000, 20 * num_rows // 500)


def ours(chosen: Case, seed: int) -> Found:
    """A fit by ``VI``."""
    vi = VI(AutoFlow(chosen.model), seed=seed, progress_bar=False).run(*chosen.args)
    draws, found = vi.get_samples(len(vi.posterior.draws.z)), vi.diagnostics()
    draws["z"] = draws["z"][:, :NUM_ROWS]
    return draws, f"{found['outcome'].name}, ESS {found['ess']:.2f}"


def pyro_normal(chosen: Case, seed: int) -> Found:
    """A fit of Pyro's ``AutoNormal``."""
    pyro.set_rng_seed(seed)
    num = num_steps(chosen.args[0].shape[1])
    guide, step = _pyro_step(chosen, num)
    for _ in range(num):
        step()
    hidden = pyro.poutine.block(chosen.model, expose=["mu", "tau"])
    draws = Predictive(hidden, guide=guide, num_samples=NUM_DRAWS, return_sites=["mu", "tau"])(*chosen.args)
    loc, scale = (getattr(guide, name).z.detach()[:NUM_ROWS] for name in ("locs", "scales"))
    return {**draws, "z": loc + scale * torch.randn(NUM_DRAWS, NUM_ROWS)}, ""


def _pyro_step(chosen: Case, num: int) -> tuple[AutoNormal, Callable[[], Any]]:
    pyro.clear_param_store()
    y, size = chosen.args[0], chosen.args[0].shape[1]
    guide = AutoNormal(chosen.model, create_plates=lambda y: pyro.plate("groups", size, subsample_size=500, dim=-1))
    optim = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02}, "gamma": 0.01 ** (1 / num)}
    )
    svi = SVI(chosen.model, guide, optim, Trace_ELBO())

    def step() -> None:
        svi.step(y)
        optim.step()

    return guide, step


def numpyro_normal(chosen: Case, seed: int) -> Found:
    """A fit of NumPyro's ``AutoNormal``."""
    num = num_steps(chosen.args[0].shape[1])
    get_params, state, step = _numpyro_step(chosen, num, seed)
    for _ in range(num):
        state = step(state)
    return _numpyro_draws(get_params(state), seed), ""


def _numpyro_draws(params: Any, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    known = {name: torch.tensor(value.__array__().copy()) for name, value in params.items()}
    found = {}
    for name in ("mu", "tau", "z"):
        loc, scale = known[f"{name}_auto_loc"], known[f"{name}_auto_scale"]
        loc, scale = (loc[:NUM_ROWS], scale[:NUM_ROWS]) if loc.dim() else (loc, scale)
        value = loc + scale * torch.randn(NUM_DRAWS, *loc.shape)
        found[name] = value.exp() if name == "tau" else value
    return found


def _numpyro_step(chosen: Case, num: int, seed: int) -> tuple[Any, Any, Callable[[Any], Any]]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    def model(y: Any) -> None:
        mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), numpyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("groups", y.shape[1], subsample_size=500, dim=-1) as i:
            z = numpyro.sample("z", dist.Normal(mu, tau))
            with numpyro.plate("observations", len(y), dim=-2):
                numpyro.sample("y", dist.Normal(z, 1.0), obs=y[:, i])

    y, guide = jnp.asarray(chosen.args[0].numpy()), AutoNormal(model)
    optim = numpyro.optim.Adam(lambda i: 0.02 * 0.01 ** (i / num))
    svi = SVI(model, guide, optim, Trace_ELBO())
    state = svi.init(jax.random.PRNGKey(seed), y)
    update = jax.jit(lambda state: svi.update(state, y)[0], donate_argnums=0)
    return svi.get_params, state, update


GUIDES: dict[str, Callable[[Case, int], Found]] = {
    "ours": ours,
    "pyro": pyro_normal,
    "numpyro": numpyro_normal,
}


def row_errors(z: Tensor, chosen: Case) -> str:
    """Of the first rows, against quadrature."""
    means: Tensor = chosen.means  # type: ignore[assignment]
    mu, t, weight = grid(means, chosen.variance)
    kept = weight > 1e-12 * weight.max()
    mu, t, weight = mu[kept], t[kept], weight[kept] / weight[kept].sum()
    precision = (-2 * t).exp() + 1 / chosen.variance
    away, ratios = list[Tensor](), list[Tensor]()
    for value, mean in zip(z.double().T, means[:NUM_ROWS].double()):
        center = (mu * (-2 * t).exp() + mean / chosen.variance) / precision
        right = weight @ center
        sd = (weight @ (1 / precision + (center - right) ** 2)).sqrt()
        away.append((value.mean() - right) / sd)
        ratios.append(value.std() / sd)
    off, ratio = torch.stack(away), torch.stack(ratios)
    return f"{float(off.square().mean().sqrt()):6.3f}{float(ratio.mean()):7.3f} +- {float(ratio.std()):.3f}"


def fit(num_rows: int, guide: str, seed: int) -> str:
    """One row of the table."""
    chosen, began = case(f"minibatch_{num_rows}"), time.process_time()
    draws, said = GUIDES[guide](chosen, seed)
    seconds, memory = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{seconds:8.0f}{memory:6.1f}{errors(draws, chosen)}{row_errors(draws['z'], chosen)}  {said}"


# ---- the cost of a step -----------------------------------------------------------------------------------------


def _our_step(chosen: Case) -> Callable[[], Any]:
    """A step of the whole flow, compiled, with its rows looked up and put back."""
    guide = AutoFlow(chosen.model)
    guide.set_up(chosen.args, {})
    terms = RowTerms(BoundModel(guide.bare_model, chosen.args, {}), guide.latents)
    small, state = TabledRows(guide, terms).steps(True, 3e-3, [])
    program = Program(terms.log_joint, small, Objective(), Gradient.PATH, NUM_PARTICLES, [], 1e3 * terms.num_rows)
    steps, one = MinibatchSteps(program, terms.choose, Engine.COMPILED), torch.ones(())
    batches = minibatches(terms.num_rows, terms.size, 2 * TIMED + 1)

    def step(first: bool = False) -> None:
        numbers = next(batches)
        rows = Rows.of(guide.hierarchy, {terms.plate: numbers})  # type: ignore[arg-type]
        index, factors = state.index(rows), state.factors(rows)
        before = state.take(index)
        inputs = Inputs(base_noise(small, NUM_PARTICLES), 1e-4 * one, one, 0 * one)
        if first:
            steps.prepare(Example(before, inputs, factors, numbers), TIMED, numbers.flip(0))
        state.put(index, steps.run(before, inputs, factors, numbers)[0])

    step(True)
    return step


def cost(num_rows: int, guide: str) -> str:
    """Milliseconds of a step."""
    chosen = case(f"minibatch_{num_rows}")
    step: Callable[[], Any]
    if guide == "ours":
        step = _our_step(chosen)
    elif guide == "pyro":
        step = _pyro_step(chosen, TIMED)[1]
    else:
        _, state, update = _numpyro_step(chosen, TIMED, 0)
        kept = [state]

        def step() -> None:
            kept[0] = update(kept[0])
            kept[0].rng_key.block_until_ready()

    with validation(guide != "ours"):
        for _ in range(TIMED):
            step()
        began = time.process_time()
        for _ in range(TIMED):
            step()
    milliseconds = 1e3 * (time.process_time() - began) / TIMED
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{milliseconds:10.2f}{memory:8.1f}"


def _alone(function: Callable[..., str], *args: Any) -> str:
    """In a process of its own, whose memory is then its own too."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="")
    parser.add_argument("--guides", default="ours,pyro,numpyro")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", action="store_true")
    options = parser.parse_args(arguments)
    rows = options.rows or ("1000,100000,1000000" if options.steps else "100000")
    columns = f"{'ms a step':>10}{'GB':>8}" if options.steps else f"{'CPU s':>8}{'GB':>6}{'mu; log tau':>26}  100 rows"
    print(f"{'groups':>9}{'guide':>9}{'' if options.steps else ' seed'}{columns}")
    for num in map(int, rows.split(",")):
        for guide in options.guides.split(","):
            for seed in range(1 if options.steps else options.seeds):
                found = _alone(cost, num, guide) if options.steps else _alone(fit, num, guide, seed)
                print(f"{num:>9}{guide:>9}{'' if options.steps else f'{seed:>5}'}{found}", flush=True)


if __name__ == "__main__":
    main()
