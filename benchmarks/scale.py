r"""What grows with what: microseconds and memory of a step, and seconds to an answer, ours and NumPyro's.

    python -m benchmarks.scale [--parts dims,rows,fits] [--dims 10,30,100] [--rows 1000,10000] [--threads 1,2]
                               [--fits banded:10000,centered:100] [--methods AutoFlow,AutoIAF] [--no-nuts]
                               [--seconds 300] [--alone] [--json FILE] [--plot FILE]

- ``dims``: a step of 128 particles on a banded Gaussian of 10 to 10,000 dimensions: ``AutoFlow`` as it chooses itself,
  and ``AutoIAF`` of three layers as wide as the latents; NumPyro's ``AutoMultivariateNormal``,
  ``AutoLowRankMultivariateNormal`` and the equal ``AutoIAFNormal``. The exponents are those of the least-squares line
  in logarithms from 300 dimensions on.
- ``rows``: a step on a logistic regression of 20 coefficients and 1,000 to 1,000,000 rows.
- ``fits``: seconds to an answer. Ours is ``VI(AutoFlow(model))`` by default, with its verdict; NumPyro's guides take
  3,000 steps of Adam with 16 particles, and say nothing of themselves; NUTS runs two chains of 500 and 1,000. Errors of
  means, in standard deviations, and the ratio of standard deviations furthest from one, are against the exact Gaussian
  or NUTS.

Everything is measured in a process of its own. With one thread, a process may use one processor only. Microseconds are
the least of many short repeats: other jobs may share the machine. ``--alone`` keeps them off for a tenth of a second
at a time, where the system allows that (Linux, for root). What takes longer than ``--seconds`` is stopped, and said to
be.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import scale_models

Row = dict[str, Any]
OURS = ("AutoFlow", "AutoIAF")
THEIRS = ("AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoIAFNormal")
#: The greatest dimension that is measured, where memory or compiling allow no more.
MOST = {"AutoIAF": 1000, "AutoIAFNormal": 1000, "AutoMultivariateNormal": 3000}
DIMS = (10, 30, 100, 300, 1000, 3000, 10_000)
ROWS = (1000, 10_000, 100_000, 1_000_000)
FITS = (
    "diagonal:10000",
    "banded:10000",
    *(f"{name}:{size}" for name in ("centered", "noncentered", "walk") for size in (100, 500, 2500)),
    *(f"cox:{size}" for size in (10, 20, 40)),
)
#: Dimensions from which exponents are fitted.
LARGE = 300


def cell(job: Row, seconds: float) -> Row:
    """A measurement in a process of its own; what was asked for, and what was found, or an error."""
    threads = job["threads"]
    eigen = "" if threads > 1 else "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "XLA_FLAGS": eigen, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.scale_cells", json.dumps(job)]
    options: Any = {"env": env, "preexec_fn": _on_one(threads)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True, **options)
    except subprocess.TimeoutExpired:
        return job | {"error": f"over {seconds:.0f} s"}
    except subprocess.CalledProcessError as error:
        return job | {"error": (error.stderr.strip().split("\n") or [""])[-1][:60] or f"status {error.returncode}"}
    found: Row = json.loads(done.stdout.strip().split("\n")[-1])
    return job | found


def _on_one(threads: int) -> Callable[[], None] | None:
    """In the new process: one processor, if there is to be one thread."""
    if threads > 1 or not hasattr(os, "sched_setaffinity"):
        return None
    one = {min(os.sched_getaffinity(0))}
    return lambda: os.sched_setaffinity(0, one)


# ---- steps --------------------------------------------------------------------------------------------------------


def steps(model: str, sizes: Sequence[int], options: argparse.Namespace) -> list[Row]:
    """The table of a part."""
    print(f"{model}: microseconds a step of 128 particles (the least; processor's), and megabytes\n")
    print(f"{'size':>9}{'threads':>8}  {'guide':<30}{'us':>11}{'median':>11}{'processor':>11}{'MB':>8}")
    rows = []
    for size in sizes:
        for method in (
            m for m in options.methods if size <= MOST.get(m, size) and (model == "banded" or m != "AutoIAF")
        ):
            for threads in options.threads:
                job = {"kind": "our_step" if method in OURS else "their_step", "model": model, "size": size}
                job |= {"method": method, "threads": threads, "alone": options.alone}
                rows.append(cell(job | {"bursts": options.bursts, "repeats": 4}, options.seconds))
                print(_step_line(rows[-1]), flush=True)
    print()
    return rows


def _step_line(row: Row) -> str:
    head = f"{row['size']:>9,}{row['threads']:>8}  {row['method']:<30}"
    if "error" in row:
        return head + row["error"]
    return head + f"{row['us']:>11,.0f}{row['us_median']:>11,.0f}{row['us_processor']:>11,.0f}{row['mb']:>8,.0f}"


def exponents(rows: Sequence[Row]) -> dict[str, float]:
    """How a step's time grows from 300 dimensions on: the slope in logarithms, by guide and threads."""
    found = {}
    for key in dict.fromkeys((row["method"], row["threads"]) for row in rows):
        points = [(row["size"], row["us"]) for row in rows if (row["method"], row["threads"]) == key and "us" in row]
        large = np.log([point for point in points if point[0] >= LARGE])
        if len(large) > 1:
            found[f"{key[0]}, threads {key[1]}"] = float(np.polyfit(large[:, 0], large[:, 1], 1)[0])
    return found


# ---- fits ---------------------------------------------------------------------------------------------------------


def fits(options: argparse.Namespace) -> list[Row]:
    """Seconds to an answer, and how right it is."""
    print("seconds to an answer\n")
    head = f"{'model':<18}{'method':<30}{'outcome':<14}{'ESS':>6}{'steps':>8}{'seconds':>9}{'processor':>10}{'MB':>7}"
    print(head + f"{'mean':>8}{'sd':>7}")
    rows = []
    for name in options.fits:
        model, size = name.split(":")
        given = {"model": model, "size": int(size), "threads": max(options.threads), "seconds": options.seconds}
        kinds = [("nuts", "NUTS")] if options.nuts and model not in ("diagonal", "banded") else []
        kinds += [("our_fit" if m in OURS else "their_fit", m) for m in options.methods if m != "AutoIAF"]
        right: tuple[np.ndarray, np.ndarray] | None = None
        if model in ("diagonal", "banded"):
            right = scale_models.exact(model, scale_models.data(model, int(size)))
        for kind, method in kinds:
            row = cell(given | {"kind": kind, "method": method}, 1.5 * options.seconds + 60)
            if kind == "nuts" and "mean" in row:
                right = np.array(row["mean"]), np.array(row["sd"])
            rows.append(row | _errors(row, right))
            print(_fit_line(rows[-1]), flush=True)
    print()
    return rows


def _errors(row: Row, right: tuple[np.ndarray, np.ndarray] | None) -> Row:
    """The worst mean, in standard deviations, and the ratio of standard deviations furthest from one."""
    if right is None or "mean" not in row or row["kind"] == "nuts":
        return {}
    some = np.linspace(0, len(right[0]) - 1, len(row["mean"])).astype(int)
    mean, sd = right[0][some], right[1][some]
    ratios = np.array(row["sd"]) / sd
    worst = ratios[np.nanargmax(np.abs(np.log(ratios)))]
    return {"mean_error": float(np.nanmax(np.abs(np.array(row["mean"]) - mean) / sd)), "sd_ratio": float(worst)}


def _fit_line(row: Row) -> str:
    head = f"{row['model'] + ' ' + str(row['size']):<18}{row['method']:<30}"
    if "error" in row:
        return head + row["error"]
    ess = f"{row['ess']:.2f}" if "ess" in row else "-"
    line = f"{row['outcome']:<14}{ess:>6}{row['steps']:>8,}{row['seconds']:>9.1f}{row['seconds_processor']:>10.1f}"
    errors = f"{row['mean_error']:>8.3f}{row['sd_ratio']:>7.2f}" if "mean_error" in row else f"{'-':>8}{'-':>7}"
    return head + line + f"{row['mb']:>7,.0f}" + errors


# ---- pictures -----------------------------------------------------------------------------------------------------


def plot(found: dict[str, list[Row]], file: str) -> None:
    """Microseconds and megabytes of a step against dimensions, and against rows."""
    import matplotlib.pyplot as plt

    parts = [part for part in ("dims", "rows") if found.get(part)]
    figure, axes = plt.subplots(2, len(parts), figsize=(4.5 * len(parts), 6.5), layout="constrained", squeeze=False)
    for column, part in zip(axes.T, parts):
        rows = [row for row in found[part] if "us" in row]
        for key in dict.fromkeys((row["method"], row["threads"]) for row in rows):
            some = sorted((row["size"], row["us"], row["mb"]) for row in rows if (row["method"], row["threads"]) == key)
            sizes, times, memory = zip(*some)
            style = {"marker": "o", "markersize": 3, "linestyle": "--" if key[1] == 1 else "-"}
            color = f"C{[*OURS, *THEIRS].index(key[0])}"
            threads = "one thread" if key[1] == 1 else f"{key[1]} threads"
            column[0].loglog(sizes, times, color=color, label=f"{key[0]}, {threads}", **style)
            if key[1] > 1 or len({row["threads"] for row in rows}) == 1:
                column[1].loglog(sizes, [max(1, mb) for mb in memory], color=color, **style)
        column[1].set_xlabel("latent dimension" if part == "dims" else "rows")
    axes[0, 0].set_ylabel("microseconds a step")
    axes[1, 0].set_ylabel("megabytes")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=7
    )
    figure.savefig(file, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        return lambda text: [kind(part) for part in text.split(",") if part]

    parser.add_argument("--parts", type=listed(str), default=["dims", "rows", "fits"])
    parser.add_argument("--dims", type=listed(int), default=DIMS)
    parser.add_argument("--rows", type=listed(int), default=ROWS)
    parser.add_argument("--threads", type=listed(int), default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--fits", type=listed(str), default=FITS, help="NAME:SIZE, ...")
    parser.add_argument("--methods", type=listed(str), default=[*OURS, *THEIRS])
    parser.add_argument("--no-nuts", dest="nuts", action="store_false")
    parser.add_argument("--seconds", type=float, default=300, help="that each measurement may take")
    parser.add_argument("--bursts", type=int, default=8, help="groups of repeats of each step")
    parser.add_argument("--alone", action="store_true", help="keep other programs off for moments")
    parser.add_argument("--json", help="write the rows here; rows that are there are kept")
    parser.add_argument("--plot", help="write a picture here")
    options = parser.parse_args(argv)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}\n")
    found: dict[str, list[Row]] = {}
    if options.json and Path(options.json).exists():
        found = json.loads(Path(options.json).read_text())
    for part in options.parts:
        if part == "fits":
            rows = fits(options)
        else:
            rows = steps(*(("banded", options.dims) if part == "dims" else ("regression", options.rows)), options)
        found[part] = found.get(part, []) + rows
        if options.json:
            Path(options.json).write_text(json.dumps(found, indent=1))
    for key, exponent in exponents(found.get("dims", [])).items():
        print(f"a step grows with the dimension to the power {exponent:.2f}: {key}")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
