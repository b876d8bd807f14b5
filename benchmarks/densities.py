r"""Continuously indexed flows against the same flows without an index, fitted to samples in the plane.

    python -m benchmarks.densities [--flows maf,residual,spline] [--sets two_moons,...] [--steps N] [--seeds 3]
        [--json FILE] [--pictures DIR]

Each pair has equally many parameters: the baseline, which may have more layers, is as wide as that takes. Both
see the same minibatches, step sizes and number of steps; an indexed one maximises a bound of the likelihood. The test
log-likelihood of an indexed flow is the estimate of 100 samples, on average too low. A Gaussian kernel density estimate
with a bandwidth chosen on held-out rows is the floor. The difference "CIF - baseline" is paired by test point and seed;
its standard error counts both seeds and test points.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.datasets import DATASETS, ENTROPY
from benchmarks.kernels import fit_kernels
from benchmarks.likelihood import maximise
from pyro_nflows import FlowDistribution, flows
from pyro_nflows.engine.runners import Runner
from pyro_nflows.flows import num_params, widened
from pyro_nflows.layers import ActNorm
from pyro_nflows.layers.base import Chain, Layer
from pyro_nflows.transformers import RationalQuadratic

NUM_TRAIN, NUM_HELD_OUT, NUM_TEST = 20_000, 1_000, 10_000
NUM_SAMPLES = 100
LogProb = Callable[..., Tensor]


class Family(NamedTuple):
    """A flow by ``(latent_dim, num_layers, hidden_dims)``, the layers of the baseline and of the indexed flow, the
    width of the indexed flow's networks, and how both are trained."""

    build: Callable[..., Layer]
    baseline_layers: int
    indexed_layers: int
    width: int
    steps: int
    batch_size: int

    def flow(self, num_layers: int, width: int) -> flows.Build:
        """The flow of a size."""
        return partial(self.build, num_layers=num_layers, hidden_dims=(width, width))


FAMILIES = {
    "maf": Family(flows.maf, 20, 5, 32, 6000, 1024),
    "residual": Family(partial(flows.residual, inverted=True), 5, 5, 16, 4000, 512),
    "spline": Family(flows.spline_autoregressive, 5, 5, 16, 4000, 512),
}


@dataclass
class Row:
    """One fit."""

    data: str
    flow: str
    seed: int
    params: int
    log_prob: float
    log_prob_se: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.data:<16}{self.flow:<14}{self.seed:>5}{self.params:>8}"
            f"{self.log_prob:>10.4f}{self.log_prob_se:>8.4f}{self.seconds:>9.0f}"
        )


@dataclass
class Difference:
    """Test log-likelihood of the indexed flow minus the baseline's."""

    data: str
    flow: str
    mean: float
    se: float

    def __str__(self) -> str:
        better = "CIF" if self.mean > 2 * self.se else self.flow if self.mean < -2 * self.se else "neither"
        return f"{self.data:<16}CIF - {self.flow:<19}{'':>5}{self.mean:>+9.4f}{self.se:>8.4f}  better: {better}"


HEAD = f"{'data':<16}{'flow':<14}{'seed':>5}{'params':>8}{'test':>10}{'s.e.':>8}{'seconds':>9}"


def ended(flow: Layer) -> Chain:
    """With an end that data normalise."""
    return Chain(*flow, ActNorm(2))  # type: ignore[misc]


def indexed(family: Family, options: argparse.Namespace) -> Chain:
    """The continuously indexed flow."""
    inner = family.flow(family.indexed_layers, family.width)
    spline = RationalQuadratic(options.num_bins, 4.0) if options.num_bins else None
    return ended(flows.cif(2, inner, options.index_dim, (family.width,) * 2, spline, skip=True))


def baseline(family: Family, options: argparse.Namespace) -> Layer:
    """The flow without an index, of no fewer parameters."""
    return widened(
        lambda width: ended(family.flow(family.baseline_layers, width)(2)), num_params(indexed(family, options))
    )


def estimate(flow: Layer) -> LogProb:
    """Its log density, in parts that fit into memory."""
    density = FlowDistribution(flow)

    @torch.no_grad()
    def log_prob(x: Tensor, num_samples: int = NUM_SAMPLES) -> Tensor:
        num_samples = num_samples if flow.inverse_noise_dim else 1
        return torch.cat([density.log_prob(rows, num_samples) for rows in x.split(1000)])

    return log_prob


class Contest:
    """The fits of a table, with the log-likelihood of every test point."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.rows: list[Row] = []
        self.values: dict[tuple[str, str], list[Tensor]] = {}
        self.runners: dict[str, Runner] = {}
        self.shown: dict[tuple[str, str], LogProb] = {}
        self.differences: list[Difference] = []

    def run(self) -> None:
        """All of it, a row at a time."""
        for data in self.options.sets:
            self.floor(data)
            for name in self.options.flows:
                for kind, make in ((name, baseline), (f"CIF-{name}", indexed)):
                    for seed in range(self.options.first_seed, self.options.first_seed + self.options.seeds):
                        self.fit(data, kind, FAMILIES[name], make, seed)
                self.compare(data, name)

    def floor(self, data: str) -> None:
        """The kernel density estimate."""
        began = time.perf_counter()
        found = fit_kernels(sample(data, NUM_TRAIN, 0), sample(data, NUM_HELD_OUT, 1))
        self.take(data, f"KDE, {found.bandwidth:.3f}", 0, 2 * NUM_TRAIN + 1, found.log_prob, began)

    def fit(self, data: str, name: str, family: Family, make: Callable[..., Layer], seed: int) -> None:
        """One flow."""
        torch.manual_seed(seed)
        flow, began = make(family, self.options), time.perf_counter()
        self.runners[name] = maximise(
            flow,
            sample(data, NUM_TRAIN, 0),
            self.options.steps or family.steps,
            batch_size=self.options.batch_size or family.batch_size,
            rate=self.options.rate,
            seed=seed,
            runner=self.runners.get(name),
        )
        self.take(data, name, seed, num_params(flow), estimate(flow), began)

    def take(self, data: str, name: str, seed: int, params: int, log_prob: LogProb, began: float) -> None:
        """Judge a fit."""
        seconds = time.perf_counter() - began
        torch.manual_seed(1000 + seed)
        values = log_prob(sample(data, NUM_TEST, 2)).double()
        self.values.setdefault((data, name), []).append(values)
        self.shown.setdefault((data, name), log_prob)
        mean, se = float(values.mean()), float(values.std()) / len(values) ** 0.5
        self.rows.append(Row(data, name, seed, params, mean, se, seconds))
        print(self.rows[-1], flush=True)

    def compare(self, data: str, name: str) -> None:
        """The paired difference of a family on a data set."""
        mean, se = difference(self.values[data, name], self.values[data, f"CIF-{name}"])
        self.differences.append(Difference(data, name, mean, se))
        print(self.differences[-1], flush=True)


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """Mean of ``theirs - ours`` over seeds and test points; the error counts both, or points alone for one seed."""
    each = torch.stack([b - a for a, b in zip(ours, theirs)])
    variance = float(each.mean(0).var()) / each.shape[1]
    if len(each) > 1:
        variance += float(each.mean(1).var()) / len(each)
    return float(each.mean()), variance**0.5


def sample(data: str, num_samples: int, seed: int) -> Tensor:
    """Rows of a data set."""
    return DATASETS[data](num_samples, seed)


def draw(contest: Contest, folder: Path) -> None:
    """A picture for each family: the data, the kernel estimate, the baseline and the indexed flow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for family in contest.options.flows:
        names = ["KDE", family, f"CIF-{family}"]
        fig, axes = pyplot.subplots(len(names), len(contest.options.sets), squeeze=False, layout="constrained")
        for column, data in zip(axes.T, contest.options.sets):
            panel_column(column, contest, data, names)
        fig.set_size_inches(2.4 * len(contest.options.sets), 2.5 * len(names))
        fig.savefig(folder / f"densities_{family}.png", dpi=80)
        pyplot.close(fig)


def panel_column(column: Any, contest: Contest, data: str, names: Sequence[str]) -> None:
    """One data set's pictures."""
    x = sample(data, NUM_TEST, 2)
    centre, reach = (x.amax(0) + x.amin(0)) / 2, 0.55 * float((x.amax(0) - x.amin(0)).max())
    axis = torch.linspace(-reach, reach, 120)
    grid = centre + torch.cartesian_prod(axis, axis)
    found = {n.split(",")[0]: f for (d, n), f in contest.shown.items() if d == data}
    values = {name: (found[name](grid) if name == "KDE" else found[name](grid, 16)).exp() for name in names}
    most = float(values["KDE"].max())  # one scale for all panels of a data set
    for ax, name in zip(column, names):
        ax.imshow(values[name].view(120, 120).T.numpy(), origin="lower", cmap="Blues", vmin=0.0, vmax=most)
        ax.set(xticks=[], yticks=[], title=f"{data.replace('_', ' ')}, {name}" if ax is column[0] else name)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=names_of(FAMILIES), default=list(FAMILIES), help=", ".join(FAMILIES))
    parser.add_argument("--sets", type=names_of(DATASETS), default=list(DATASETS), help=", ".join(DATASETS))
    parser.add_argument("--steps", type=int, help="of every family; each has its own otherwise")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, help="of every family")
    parser.add_argument("--rate", type=float, default=4e-3, help="first step size; it falls along a cosine")
    parser.add_argument("--index-dim", type=int, default=1)
    parser.add_argument("--num-bins", type=int, default=8, help="of the index's splines; 0 for Gaussians")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--pictures", type=Path, help="write a picture of each family into this folder")
    return parser.parse_args(argv)


def names_of(known: dict[str, Any]) -> Callable[[str], list[str]]:
    """A list of names, with commas between."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
        return names

    return parse


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = parsed(argv)
    contest = Contest(options)
    print(
        f"{NUM_TRAIN} training and {NUM_TEST} test points, {options.seeds} seeds; "
        f"{platform.machine()}, torch {torch.__version__}\n\n{HEAD}",
        flush=True,
    )
    contest.run()
    print("\nno density can beat:", ", ".join(f"{d} {-ENTROPY[d]:.4f}" for d in options.sets if d in ENTROPY))
    if options.json:
        found = {"rows": contest.rows, "differences": contest.differences}
        Path(options.json).write_text(json.dumps({k: [asdict(row) for row in v] for k, v in found.items()}, indent=1))
    if options.pictures:
        draw(contest, options.pictures)


if __name__ == "__main__":
    main()
