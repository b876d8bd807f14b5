r"""Mass moved block by block: JKO flows against splines trained as a whole, and to a posterior of eight modes.

    python -m benchmarks.jko [--seeds 2] [--steps 1000] [--blocks 8] [--kinds continuous,splines] [--picture FILE]

Densities: a JKO flow against an autoregressive flow of splines trained as a whole (that of ``benchmarks.densities``),
on the same 20,000 points: the test log-likelihood of 10,000 others. "Finer" is the same flow with eight times as many
steps of the solver: what of it is the solver's error. The share of draws that are nearest to each mode says whether one
is missing. Posterior: eight normals on a circle, for which the best ELBO is 0 and a fit that finds m of 8 modes has
log(m / 8) at best; the mass starts as a normal that reaches them all.
"""

import argparse
import functools
import math
import platform
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.datasets import ENTROPY
from benchmarks.densities import FAMILIES, NUM_TEST, NUM_TRAIN, ended, estimate, sample
from benchmarks.likelihood import maximise
from pyro_nflows import VI, AutoJKO, FlowDistribution, fit_jko, flows
from pyro_nflows.flows import num_params
from pyro_nflows.layers import Continuous
from pyro_nflows.layers.base import Layer

SETS = ("two_moons", "eight_gaussians")
NUM_DRAWS = 20_000
#: Places of the mass that are drawn.
NUM_PANELS = 4
#: What blocks are, ``D -> Layer``; None for the default.
KINDS: dict[str, Callable[[int], Layer] | None] = {
    "continuous": None,
    "splines": functools.partial(flows.spline, num_layers=4),
}


def modes() -> Tensor:
    """Of the eight normals, whose standard deviation is 0.2."""
    angle = math.pi / 4 * torch.arange(8)
    return 2 * torch.stack([angle.cos(), angle.sin()], -1)


def eight_normals() -> None:
    """The same as a posterior."""
    parts = dist.Normal(modes(), 0.2).to_event(1)
    pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(8)), parts))


def shares(z: Tensor) -> Tensor:
    """Of draws, of which each mode is the nearest."""
    return torch.cdist(z, modes()).argmin(-1).bincount(minlength=8) / len(z)


def whole_splines(data: str, seed: int) -> Tensor:
    """A row of splines that are trained as a whole; their test log densities."""
    torch.manual_seed(seed)
    family = FAMILIES["spline"]
    flow, began = ended(family.flow(family.baseline_layers, 32)(2)), time.process_time()
    maximise(flow, sample(data, NUM_TRAIN, 0), family.steps, batch_size=family.batch_size, rate=4e-3, seed=seed)
    seconds = time.process_time() - began
    log_prob = estimate(flow)(sample(data, NUM_TEST, 2))
    print(
        f"{data:<16}{'splines, whole':<14}{seed:>5}{num_params(flow):>8}{log_prob.mean():>9.4f}{'':>9}{seconds:>6.0f}"
    )
    return log_prob


def jko(data: str, kind: str, seed: int, options: argparse.Namespace, best: Tensor) -> None:
    """A row of a JKO flow, and what each of its blocks came to."""
    torch.manual_seed(seed)
    flow, began = flows.jko(2, options.blocks, build=KINDS[kind], inverted=True), time.process_time()
    fit = fit_jko(sample(data, NUM_TRAIN, 0), flow, num_steps=options.steps, seed=seed, progress_bar=False)
    seconds = time.process_time() - began
    test, taken = sample(data, NUM_TEST, 2), len(fit.distances)
    found = estimate(fit.layer)(test)
    size = num_params(flow) // options.blocks * taken
    with torch.no_grad():
        gap, lowest = best - found, float(shares(FlowDistribution(fit.layer).sample((NUM_DRAWS,))).min())
    for block in flow.modules():
        if isinstance(block, Continuous):
            block.num_steps *= 8
    finer = float(estimate(fit.layer)(test).mean())
    print(f"{data:<16}{kind:<14}{seed:>5}{size:>8}{found.mean():>9.4f}{finer:>9.4f}{seconds:>6.0f}", end="")
    print(f"  behind splines: {gap.mean():.4f} (s.e. {gap.std() / NUM_TEST**0.5:.4f})", end="")
    print(f"; least share {lowest:.3f}" if data == "eight_gaussians" else "")
    parts = [f"{value:.4f}" for value in fit.log_probs]
    print(
        f"{'':<16}held out, by block: {', '.join(parts)}; h {', '.join(f'{h:.2f}' for h in fit.step_sizes)}", flush=True
    )


def posterior(kind: str, seed: int, options: argparse.Namespace) -> None:
    """A row of a guide."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    began = time.process_time()
    guide = AutoJKO(eight_normals, options.blocks, build=KINDS[kind], whitened=False, init_scale=1.5)
    vi = VI(guide, seed=seed, progress_bar=False).run()
    seconds, found = time.process_time() - began, vi.diagnostics()
    lowest = float(shares(vi.get_samples(NUM_DRAWS)["z"]).min())
    print(
        f"{'posterior':<16}{kind:<14}{seed:>5}{num_params(guide.plain_layer().flow):>8}{found['elbo']:>9.4f}{'':>9}"
        f"{seconds:>6.0f}  ESS {found['ess']:.2f}, least share {lowest:.3f}, {found['outcome'].name}"
    )
    parts = [f"{value:.4f}" for value in vi.history.bounds]
    print(f"{'':<16}bound, by block: {', '.join(parts)}", flush=True)


def draw(file: str) -> None:
    """The mass after each block, of the posterior and of two moons."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    torch.manual_seed(0)
    vi = VI(AutoJKO(eight_normals, whitened=False, init_scale=1.5), seed=0, progress_bar=False).run()
    moons = fit_jko(sample("two_moons", NUM_TRAIN, 0), seed=0, progress_bar=False)
    paths = [path[:NUM_PANELS] for path in (vi.history.path, moons.path)]
    fig, axes = pyplot.subplots(2, NUM_PANELS, figsize=(9, 4.7), layout="constrained")
    for row, path in zip(axes, paths):
        first = path[0][0]
        color = first[:, 1].atan2(first[:, 0]) if path is paths[0] else (first[:, 1] > 0).double()
        for number, ax in enumerate(row):
            ax.set(xticks=[], yticks=[], aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
            if number < len(path):
                ax.scatter(*path[number][0].T, s=4, c=color, cmap="twilight" if path is paths[0] else "coolwarm")
                ax.set_title(f"after block {number}" if number else "at first", fontsize="medium")
            else:
                ax.axis("off")
    fig.savefig(file, dpi=80)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000, help="of Adam, for each block")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--kinds", default=",".join(KINDS), help="with commas between")
    parser.add_argument("--picture", metavar="FILE", help="draw the mass after each block, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.picture:
        draw(options.picture)
        return
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, processor seconds\n")
    print(f"{'target':<16}{'flow':<14}{'seed':>5}{'params':>8}{'test':>9}{'finer':>9}{'s':>6}", flush=True)
    for data in SETS:
        whole = [whole_splines(data, seed) for seed in range(options.seeds)]
        best = max(whole, key=lambda log_prob: float(log_prob.mean()))
        print(f"{'':<16}no density can beat {-ENTROPY[data]:.4f}")
        for kind in options.kinds.split(","):
            for seed in range(options.seeds):
                jko(data, kind, seed, options, best)
    for kind in options.kinds.split(","):
        for seed in range(options.seeds):
            posterior(kind, seed, options)


if __name__ == "__main__":
    main()
