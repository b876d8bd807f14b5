r"""What a log-determinant costs: a pass of each bijective layer, against an autograd Jacobian and its ``slogdet``.

    python -m benchmarks.costs [--layers Planar,Radial] [--rows 256] [--repeats 7] [--json FILE] [--plot FILE]

A pass is ``layer(x)``, the point and its log-determinant, without gradients, for 256 rows in float32 on one thread. The
Jacobian is ``vmap(jacrev(...))`` of the same layer's map; where it is large, it is timed on fewer rows, and scaled to
as many. Networks have two hidden layers of 32, as by default.

Other jobs may share the machine: rounds go through all layers in turn, the table has the medians of the rounds, and
exponents (least squares in logarithms, from 128 to 512 dimensions) are fitted to the minima.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_nflows.layers import (
    ActNorm,
    Autoregressive,
    Conditional,
    Coupling,
    Elementwise,
    Householder,
    LocScale,
    LULinear,
    Permutation,
    Planar,
    Radial,
    Residual,
    Split,
    Squeeze,
    Sylvester,
    TriangularAffine,
)
from pyro_nflows.layers.base import Inverse, Layer
from pyro_nflows.testing import perturbed
from pyro_nflows.transformers import RationalQuadratic

DIMS = (2, 8, 32, 128, 512)
#: Where exponents are fitted.
LARGE = (128, 181, 256, 362, 512)
LINEAR = ("Planar", "Radial")
#: A Jacobian larger than this many numbers is timed on fewer rows.
MOST = 2**19
LAYERS: dict[str, Callable[[int], Layer]] = {
    "Planar": Planar,
    "Radial": Radial,
    "LocScale": LocScale,
    "ActNorm": ActNorm,
    "Permutation": lambda dim: Permutation(torch.arange(dim).flip(0)),
    "Householder": Householder,
    "Sylvester": Sylvester,
    "Elementwise, spline": Elementwise,
    "Coupling": Coupling,
    "Coupling, spline": lambda dim: Coupling(dim, RationalQuadratic()),
    "Coupling, image": lambda dim: Coupling((2, dim // 2, 1)),
    "Split(Coupling)": lambda dim: Split(Coupling(max(1, dim // 2)), dim),
    "Squeeze": lambda dim: Squeeze((1, dim // 2, 2)),
    "Autoregressive": Autoregressive,
    "Autoregressive, spline": lambda dim: Autoregressive(dim, RationalQuadratic()),
    "Inverse(Autoregressive)": lambda dim: Inverse(Autoregressive(dim)),
    "Conditional(Planar)": lambda dim: Conditional(Planar(dim), 4).at(torch.ones(4)),
    "LULinear": LULinear,
    "TriangularAffine": TriangularAffine,
    "Residual, series": lambda dim: Residual(dim, log_det="series"),
    "Residual, roulette": lambda dim: Residual(dim, log_det="roulette"),
    "Residual, exact": Residual,
}
Row = dict[str, Any]
#: A smaller image cannot be squeezed.
SMALLEST = {"Squeeze": 8}
#: What to time, and what to multiply its seconds by.
Job = tuple[Callable[[], Any], float]


def seconds(run: Callable[[], Any], least: float = 0.02) -> float:
    """Time a call, over as many as fit."""
    count, began = 0, time.process_time()
    while not count or time.process_time() - began < least:
        run()
        count += 1
    return (time.process_time() - began) / count


def mapping(layer: Layer) -> Callable[[Tensor], Tensor]:
    """The map alone, as far as the log-determinant can be left out."""
    if isinstance(layer, Residual):
        return lambda x: x + layer.net(x)
    return lambda x: layer(x)[0]


def log_jacobian(layer: Layer, x: Tensor) -> Tensor:
    """The log-determinant as autograd has it."""
    return torch.linalg.slogdet(torch.func.vmap(torch.func.jacrev(mapping(layer)))(x))[1]


def jobs_of(name: str, dim: int, num_rows: int) -> dict[str, Job]:
    """A layer's pass and its Jacobian."""
    layer = perturbed(lambda: LAYERS[name](dim)).float()
    x = torch.randn(num_rows, layer.input_dim)
    noise = torch.randn(num_rows, layer.noise_dim) if layer.noise_dim else None
    few = max(1, min(num_rows, MOST // dim**2))
    return {
        "pass": (lambda: layer(x, noise), 1.0),
        "jacobian": (lambda: log_jacobian(layer, x[:few]), num_rows / few),
    }


def rounds(jobs: dict[Any, Job], repeats: int) -> dict[Any, list[float]]:
    """Interleaved, so that a busy machine is unfair to none."""
    times: dict[Any, list[float]] = {key: [] for key in jobs}
    with torch.no_grad():
        for i in range(-1, repeats):
            for key, (run, scale) in jobs.items():
                spent = scale * seconds(run, 0.0 if i < 0 else 0.02)
                times[key] += [spent] if i >= 0 else []
    return times


def measure(names: Sequence[str], dim: int, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of one dimension."""
    names = [name for name in names if dim >= SMALLEST.get(name, 1)]
    jobs = {(name, kind): job for name in names for kind, job in jobs_of(name, dim, options.rows).items()}
    times = rounds(jobs, options.repeats)
    for name in names:
        row: Row = {"layer": name, "dim": dim}
        for kind in ("pass", "jacobian"):
            row[kind] = 1e6 * statistics.median(times[name, kind])
            row[f"{kind}_min"] = 1e6 * min(times[name, kind])
        yield row


def exponent(dims: Sequence[int], values: Sequence[float]) -> float:
    """Least squares in logarithms."""
    x, y = torch.tensor(dims).log(), torch.tensor(values).log()
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x))


def exponents(names: Sequence[str], options: argparse.Namespace) -> dict[str, float]:
    """How the time of a pass grows from 128 to 512 dimensions."""
    jobs = {(name, dim): jobs_of(name, dim, options.rows)["pass"] for name in names for dim in LARGE}
    times = rounds(jobs, 3 * options.repeats)
    return {name: exponent(LARGE, [min(times[name, dim]) for dim in LARGE]) for name in names}


def table(names: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """Microseconds of a pass, and of the Jacobian."""
    rows = []
    print(f"{'layer':<26}{'D':>5}{'pass':>12}{'Jacobian':>12}{'ratio':>9}")
    for dim in DIMS:
        for row in measure(names, dim, options):
            rows.append(row)
            ratio = row["jacobian"] / row["pass"]
            print(f"{row['layer']:<26}{dim:>5}{row['pass']:>12.0f}{row['jacobian']:>12.0f}{ratio:>9.1f}", flush=True)
    return rows


#: Panels of the picture, and their layers.
PANELS = {
    "no network": ("Planar", "Radial", "LocScale", "ActNorm", "Permutation", "Householder", "Sylvester", "Squeeze"),
    "matrices, and contractions": (
        "LULinear",
        "TriangularAffine",
        "Residual, series",
        "Residual, roulette",
        "Residual, exact",
    ),
    "couplings, and networks of a context": (
        "Coupling",
        "Coupling, spline",
        "Coupling, image",
        "Split(Coupling)",
        "Conditional(Planar)",
    ),
    "coordinate by coordinate": (
        "Elementwise, spline",
        "Autoregressive",
        "Autoregressive, spline",
        "Inverse(Autoregressive)",
    ),
}


def plot(rows: Sequence[Row], file: str) -> None:
    """Passes as lines, a colour and a mark for each within a panel; the range of the Jacobians as a band."""
    import matplotlib.pyplot as plt

    from benchmarks.pictures import save
    from pyro_nflows.plots.fits import GREY

    figure, axes = plt.subplots(2, 2, figsize=(9, 8.4), sharex=True, sharey=True, layout="constrained", dpi=90)
    jacobians = [(dim, [r["jacobian"] for r in rows if r["dim"] == dim and "jacobian" in r]) for dim in DIMS]
    known = [(dim, min(found), max(found)) for dim, found in jacobians if found]
    for ax, (title, names) in zip(axes.flat, PANELS.items()):
        ax.fill_between(*zip(*known), color=GREY, alpha=0.5, lw=0, label="autograd Jacobian, slogdet")
        for i, name in enumerate(names):
            points = [(row["dim"], row["pass"]) for row in rows if row["layer"] == name]
            if points:
                ax.loglog(*zip(*points), marker="osD^vPX*"[i], ms=4, lw=1.2, color=f"C{i}", label=name)
        ax.set(title=title)
        ax.set_xticks(DIMS, map(str, DIMS))
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize="x-small", ncols=2, loc="upper left")
    for ax in axes[1]:
        ax.set_xlabel("dimension")
    for ax in axes[:, 0]:
        ax.set_ylabel("microseconds, 256 rows")
    axes[0, 0].set_ylim(top=3e10)  # room for the names
    save(figure, file)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and the exponents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(LAYERS).replace(", ", ";"), help="names, ';' for ', ' in them")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--plot", help="write a picture here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = [name.replace(";", ", ") for name in options.layers.split(",")]
    print(f"{platform.machine()}, torch {torch.__version__}, one thread; microseconds for {options.rows} rows\n")
    rows, growth = table(names, options), exponents([n for n in names if n in LINEAR], options)
    for name, value in growth.items():
        print(f"{name}: time grows as D^{value:.2f} from {LARGE[0]} to {LARGE[-1]} dimensions")
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"rows": rows, "exponents": growth}, file, indent=1)


if __name__ == "__main__":
    main()
