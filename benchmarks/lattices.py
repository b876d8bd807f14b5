r"""Continuously indexed flows against the flows inside them, on densities with separate modes.

    python -m benchmarks.lattices [--side 3] [--scales .1,1,10,trained] [--annealing .8] [--steps 12000] [--seeds 1]
        [--json FILE]

The target is a lattice of equal normals, whose best ELBO is 0; a fit that finds m of K modes has log(m / K) at best.
Each row is one fit of ``VI`` with the same objective, particles and steps; "annealing" is the share of the steps for
which ``log p`` is flattened. "Base" is the standard deviation of the flow's base, held at its value, or trained from 1;
the location and scale at the guide's other end are trained in every row. The plain flow is given wider networks until
it has no fewer parameters than the indexed one.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import pyro
import torch

from benchmarks.targets import Target, lattice
from pyro_nflows import ELBO, VI, AutoFlow, recipes
from pyro_nflows.bounds import elbo_bounds
from pyro_nflows.layer import Chain, Layer
from pyro_nflows.layers import LocScale
from pyro_nflows.log_joint import LogJoint
from pyro_nflows.recipes import num_params, widened

NUM_LAYERS = 8
HIDDEN = 32
#: The base whose standard deviation is trained.
TRAINED = "trained"


@dataclass
class Row:
    """One fit."""

    guide: str
    base: str
    annealing: float
    seed: int
    params: int
    elbo: float
    elbo_se: float
    lower: float
    estimate: float
    num_modes: int
    smallest: float
    largest: float
    ess: float
    pareto_k: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.guide:<12}{self.base:>8}{self.annealing:>10.2f}{self.seed:>5}{self.params:>8}"
            f"{self.elbo:>9.3f}{self.elbo_se:>7.3f}{self.lower:>9.3f}{self.estimate:>10.3f}"
            f"{self.num_modes:>6}{self.smallest:>7.3f}{self.largest:>7.3f}"
            f"{self.ess:>7.2f}{self.pareto_k:>7.2f}{self.seconds:>8.0f}"
        )


HEAD = (
    f"{'guide':<12}{'base':>8}{'annealing':>10}{'seed':>5}{'params':>8}{'ELBO':>9}{'s.e.':>7}{'(M+1)':>9}{'M-sample':>10}"
    f"{'modes':>6}{'least':>7}{'most':>7}{'ESS':>7}{'k-hat':>7}{'seconds':>8}"
)


def inner(dim: int, hidden: int, base: str) -> Layer:
    """The flow that is indexed, or stands alone with wider networks; its base is first."""
    scale = LocScale(dim, init_scale=1.0 if base == TRAINED else float(base)).requires_grad_(base == TRAINED)
    return Chain(scale, *recipes.realnvp(dim, num_layers=NUM_LAYERS, hidden_dims=(hidden, hidden)))


def cif(dim: int, base: str) -> Layer:
    """Continuously indexed, one index a layer."""
    return recipes.cif(dim, partial(inner, hidden=HIDDEN, base=base), 1, (HIDDEN, HIDDEN))


def couplings(dim: int, base: str) -> Layer:
    """The inner flow with no fewer parameters."""
    return widened(lambda width: inner(dim, width, base), num_params(cif(dim, base)), 4)


GUIDES: dict[str, Callable[..., Layer]] = {"couplings": couplings, "CIF": cif}


def fit(name: str, base: str, target: Target, annealing: float, seed: int, steps: int) -> Row:
    """Fit one guide and look at its draws."""
    guide = AutoFlow(target.model, partial(GUIDES[name], base=base), init_scale=1.0)
    vi = VI(guide, objective=ELBO(256), num_steps=steps, annealing=annealing, seed=seed, progress_bar=False)
    began = time.perf_counter()
    vi.run(*target.args)
    seconds = time.perf_counter() - began
    shares = target.modes({"z": vi.get_samples(20_000, resample=False)["z"]})  # type: ignore[misc]
    joint = LogJoint(target.model, guide)
    bounds = elbo_bounds(lambda z: joint(z, *target.args), guide.layer, num_samples=64)  # type: ignore[arg-type]
    found = vi.diagnostics()
    return Row(
        name,
        base,
        annealing,
        seed,
        num_params(guide.layer),
        found["elbo"],
        found["elbo_se"],
        float(bounds.lower.value),
        float(bounds.estimate.value),
        int((shares > 0.1 / len(shares)).sum()),
        float(shares.min()),
        float(shares.max()),
        found["ess"],
        found["pareto_k"],
        seconds,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=3, help="modes along a side of the lattice")
    parser.add_argument("--scales", default=f".1,1,10,{TRAINED}", help="standard deviations of the base")
    parser.add_argument("--annealing", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    target, rows = lattice(options.side), []
    print(f"lattice of {options.side**2} modes, {platform.machine()}, torch {torch.__version__}\n\n{HEAD}", flush=True)
    for seed in range(options.seeds):
        for base in options.scales.split(","):
            for name in GUIDES:
                pyro.set_rng_seed(seed)
                rows.append(fit(name, base, target, options.annealing, seed, options.steps))
                print(rows[-1], flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
