r"""Continuously indexed flows against the flows inside them, on densities with separate modes.

    python -m benchmarks.lattices [--side 3] [--steps 8000] [--seeds 1] [--json FILE]

The target is a lattice of equal normals, whose best ELBO is 0; a fit that finds m of K modes has log(m / K) at best.
Each row is one fit of ``VI`` with the same objective, particles and steps; "annealed" flattens ``log p`` for the first
half of the steps. The plain flow is given wider networks until it has no fewer parameters than the indexed one.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyro
import torch

from benchmarks.targets import Target, lattice
from pyro_nflows import ELBO, VI, AutoCIF, AutoFlow, recipes
from pyro_nflows.bounds import elbo_bounds
from pyro_nflows.log_joint import LogJoint

NUM_LAYERS = 8
HIDDEN = 32


@dataclass
class Row:
    """One fit."""

    guide: str
    annealed: bool
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
            f"{self.guide:<12}{'yes' if self.annealed else 'no':>9}{self.seed:>5}{self.params:>8}"
            f"{self.elbo:>9.3f}{self.elbo_se:>7.3f}{self.lower:>9.3f}{self.estimate:>10.3f}"
            f"{self.num_modes:>6}{self.smallest:>7.3f}{self.largest:>7.3f}"
            f"{self.ess:>7.2f}{self.pareto_k:>7.2f}{self.seconds:>8.0f}"
        )


HEAD = (
    f"{'guide':<12}{'annealed':>9}{'seed':>5}{'params':>8}{'ELBO':>9}{'s.e.':>7}{'(M+1)':>9}{'M-sample':>10}"
    f"{'modes':>6}{'least':>7}{'most':>7}{'ESS':>7}{'k-hat':>7}{'seconds':>8}"
)


def inner(hidden: int) -> recipes.Build:
    """The flow that is indexed, or stands alone with wider networks."""
    return partial(recipes.realnvp, num_layers=NUM_LAYERS, hidden_dims=(hidden, hidden))


def num_params(layer: torch.nn.Module) -> int:
    """Trainable numbers of a layer."""
    return sum(p.numel() for p in layer.parameters())


def matching_width(build: Callable[[int], recipes.Build], at_least: int, dim: int = 2) -> int:
    """The least width, in steps of 4, at which the plain flow has no fewer parameters."""
    width = HIDDEN
    while num_params(build(width)(dim)) < at_least:
        width += 4
    return width


def indexed(model: Callable[..., Any]) -> AutoCIF:
    """The continuously indexed guide: two indices a layer."""
    return AutoCIF(model, inner(HIDDEN), index_dim=2, hidden_dims=(HIDDEN, HIDDEN), init_scale=1.0)


def plain(model: Callable[..., Any]) -> AutoFlow:
    """Its inner flow with no fewer parameters."""
    cif = recipes.cif(2, inner(HIDDEN), 2, (HIDDEN, HIDDEN))
    return AutoFlow(model, inner(matching_width(inner, num_params(cif))), init_scale=1.0)


def fit(name: str, guide: AutoFlow, target: Target, annealed: bool, seed: int, steps: int) -> Row:
    """Fit one guide and look at its draws."""
    vi = VI(guide, objective=ELBO(256), num_steps=steps, annealing=0.5 * annealed, seed=seed, progress_bar=False)
    began = time.perf_counter()
    vi.run(*target.args)
    seconds = time.perf_counter() - began
    shares = target.modes({"z": vi.get_samples(20_000, resample=False)["z"]})  # type: ignore[misc]
    joint = LogJoint(target.model, guide)
    bounds = elbo_bounds(lambda z: joint(z, *target.args), guide.layer, num_samples=64)  # type: ignore[arg-type]
    found = vi.diagnostics()
    return Row(
        name,
        annealed,
        seed,
        num_params(guide),
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
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    target, rows = lattice(options.side), []
    print(f"lattice of {options.side**2} modes, {platform.machine()}, torch {torch.__version__}\n\n{HEAD}", flush=True)
    for seed in range(options.seeds):
        for name, make in (("couplings", plain), ("CIF", indexed)):
            for annealed in (False, True):
                pyro.set_rng_seed(seed)
                rows.append(fit(name, make(target.model), target, annealed, seed, options.steps))
                print(rows[-1], flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
