r"""Continuously indexed flows against the flows inside them, on densities with separate modes.

    python -m benchmarks.lattices [--sides 3,4] [--scales 0.1,1,10,trained] [--inner splines] [--annealing 0.8]
        [--steps 8000] [--seeds 1] [--json FILE]

The target is a lattice of equal normals, whose best ELBO is 0; a fit that finds m of K modes has log(m / K) at best.
Each row is one fit of ``VI`` with the same objective, particles and steps; "annealing" is the share of the steps for
which ``log p`` is flattened. "Base" is the standard deviation of the flow's base, held at its value, or trained from 1;
the location and scale at the guide's other end are trained in every row. "Splines" are the flow of Caterini et al.
(2021), five autoregressive layers of eight bins; "couplings" are eight affine ones, for which separate modes are
harder. The plain flow is given wider networks until it has no fewer parameters than the indexed one.

Source: Caterini, Cornish, Sejdinovic and Doucet (2021), Variational Inference with Continuously-Indexed Normalizing
Flows, UAI.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import cast

import pyro
import torch

from benchmarks.targets import Target, lattice
from pyro_nflows import ELBO, VI, AutoFlow, flows
from pyro_nflows.diagnostics.bounds import elbo_bounds
from pyro_nflows.flows import num_params, widened
from pyro_nflows.layers import LocScale
from pyro_nflows.layers.base import Chain, Layer
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.transformers import RationalQuadratic

HIDDEN = 32
#: The base whose standard deviation is trained.
TRAINED = "trained"


@dataclass
class Row:
    """One fit."""

    modes: int
    inner: str
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
            f"{self.modes:>5}  {self.inner:<10}{self.guide:>7}{self.base:>8}"
            f"{self.annealing:>10.2f}{self.seed:>5}{self.params:>8}"
            f"{self.elbo:>9.3f}{self.elbo_se:>7.3f}{self.lower:>9.3f}{self.estimate:>10.3f}"
            f"{self.num_modes:>6}{self.smallest:>7.3f}{self.largest:>7.3f}"
            f"{self.ess:>7.2f}{self.pareto_k:>7.2f}{self.seconds:>8.0f}"
        )


HEAD = (
    f"{'modes':>5}  {'inner':<10}{'guide':>7}{'base':>8}"
    f"{'annealing':>10}{'seed':>5}{'params':>8}{'ELBO':>9}{'s.e.':>7}{'(M+1)':>9}{'M-sample':>10}"
    f"{'found':>6}{'least':>7}{'most':>7}{'ESS':>7}{'k-hat':>7}{'seconds':>8}"
)


def splines(dim: int, hidden: int) -> Chain:
    """The published flow; a draw is one pass through each layer."""
    return flows.iaf(dim, 5, (hidden, hidden), RationalQuadratic(num_bins=8, bound=3.0))


def couplings(dim: int, hidden: int) -> Chain:
    """A flow that stretches and shifts only."""
    return flows.realnvp(dim, num_layers=8, hidden_dims=(hidden, hidden))


#: The flows inside, and the hidden units of the index's networks.
INNER: dict[str, tuple[Callable[[int, int], Chain], tuple[int, ...]]] = {
    "splines": (splines, (10, 10)),
    "couplings": (couplings, (HIDDEN, HIDDEN)),
}


def plain(dim: int, inner: str, base: str, hidden: int) -> Layer:
    """A flow by itself; its base is its first layer."""
    scale = LocScale(dim, init_scale=1.0 if base == TRAINED else float(base)).requires_grad_(base == TRAINED)
    return Chain(scale, *INNER[inner][0](dim, hidden))


def cif(dim: int, inner: str, base: str) -> Layer:
    """Continuously indexed, one index a layer."""
    return flows.cif(dim, partial(plain, inner=inner, base=base, hidden=HIDDEN), 1, INNER[inner][1])


def as_large(dim: int, inner: str, base: str) -> Layer:
    """The inner flow by itself, with no fewer parameters."""
    build = partial(plain, dim, inner, base)
    return widened(build, num_params(cif(dim, inner, base)), 4)


GUIDES: dict[str, Callable[..., Layer]] = {"plain": as_large, "CIF": cif}


def fit(name: str, inner: str, base: str, target: Target, annealing: float, seed: int, steps: int) -> Row:
    """Fit one guide and look at its draws."""
    guide = AutoFlow(target.model, partial(GUIDES[name], inner=inner, base=base), init_scale=1.0)
    vi = VI(guide, objective=ELBO(256), num_steps=steps, annealing=annealing, seed=seed, progress_bar=False)
    began = time.perf_counter()
    vi.run(*target.args)
    seconds = time.perf_counter() - began
    layer = cast(Layer, guide.layer)
    shares = target.modes({"z": vi.get_samples(20_000, resample=False)["z"]})  # type: ignore[misc]
    joint = LogJoint(BoundModel(target.model, target.args), guide.latents)
    bounds = elbo_bounds(joint, layer, num_inner=64)
    found = vi.diagnostics()
    return Row(
        len(shares),
        inner,
        name,
        base,
        annealing,
        seed,
        num_params(layer),
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
    parser.add_argument("--sides", default="3,4", help="modes along a side of the lattice")
    parser.add_argument("--scales", default=f".1,1,10,{TRAINED}", help="standard deviations of the base")
    parser.add_argument("--inner", default="splines", help=f"flows, separated by commas: {', '.join(INNER)}")
    parser.add_argument("--annealing", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    rows = []
    targets = [lattice(int(side)) for side in options.sides.split(",")]
    print(f"lattices, {platform.machine()}, torch {torch.__version__}\n\n{HEAD}", flush=True)
    for seed in range(options.seeds):
        for target, inner, base, name in product(targets, options.inner.split(","), options.scales.split(","), GUIDES):
            pyro.set_rng_seed(seed)
            rows.append(fit(name, inner, base, target, options.annealing, seed, options.steps))
            print(rows[-1], flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
