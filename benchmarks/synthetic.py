r"""How good on targets with a known answer? The default, and nothing set by hand.

    python -m benchmarks.synthetic [--targets lattice,many_well] [--seeds 1] [--json FILE]

``gap`` is how far the ELBO is below the log evidence, ``error`` the importance estimate's error of it;
``mean`` and ``sd`` are the worst errors of the draws of ``get_samples``, in standard deviations and as a share.
``share`` is a mode's mass in the guide's own draws: the worst ratio to its true mass (1 is right), and the worst
difference. Blank where the target has no such answer.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import regressions, targets
from benchmarks.targets import Target
from pyro_nflows import VI, AutoFlow

TARGETS: dict[str, Callable[[], Target]] = {
    "funnel-10": targets.funnel,
    "banana": targets.banana,
    "U1": partial(targets.energy, 1),
    "U2": partial(targets.energy, 2),
    "U3": partial(targets.energy, 3),
    "U4": partial(targets.energy, 4),
    "lattice-9": partial(targets.lattice, 3),
    "lattice-16": partial(targets.lattice, 4),
    "many_well-32": partial(targets.many_well, 16),
    "student_t-10": partial(targets.student_t, 2.0, 10),
    "gaussian-100": partial(targets.gaussian, 100, 1e6),
    "horseshoe": regressions.horseshoe,
}
COLUMNS = {
    "dim": "5d",
    "seconds": "8.1f",
    "steps": "7d",
    "gap": "9.4f",
    "error": "9.4f",
    "ess": "7.3f",
    "pareto_k": "9.2f",
    "mean": "8.3f",
    "sd": "8.3f",
    "share_ratio": "12.2f",
    "share_difference": "17.3f",
}
Row = dict[str, Any]


def moments(target: Target, samples: dict[str, torch.Tensor]) -> Row:
    """The worst errors of means and standard deviations."""
    mean = [(samples[s].mean(0) - target.mean[s]).abs() / target.sd[s] for s in target.sd]
    sd = [(samples[s].std(0) / target.sd[s] - 1).abs() for s in target.sd]
    return {"mean": max(float(e.max()) for e in mean), "sd": max(float(e.max()) for e in sd)} if sd else {}


def shares(target: Target, samples: dict[str, torch.Tensor]) -> Row:
    """The worst ratio and difference of a mode's share."""
    if target.modes is None or target.mode_masses is None:
        return {}
    found, truth = target.modes(samples), target.mode_masses
    ratio = torch.maximum(found / truth, truth / found)
    return {"share_ratio": float(ratio.max()), "share_difference": float((found - truth).abs().max())}


def fit(name: str, seed: int) -> Row:
    """The default on one target."""
    target = TARGETS[name]()
    began = time.perf_counter()
    vi = VI(AutoFlow(target.model), seed=seed, progress_bar=False).run(*target.args)
    seconds, found = time.perf_counter() - began, vi.diagnostics()
    num = len(vi.log_weight)
    row = {"target": name, "seed": seed, "dim": vi.guide.latent_dim, "seconds": seconds, "steps": found["num_steps"]}
    if target.log_z is not None:
        row |= {"gap": target.log_z - found["elbo"], "error": found["iwae"] - target.log_z}
    row |= {"ess": found["ess"], "pareto_k": found["pareto_k"], "verdict": found["outcome"].name}
    return row | moments(target, vi.get_samples(num)) | shares(target, vi.get_samples(num, resample=False))


def line(row: Row) -> str:
    """A row of the table."""
    widths = {key: int(spec[:-1].split(".")[0]) for key, spec in COLUMNS.items()}
    cells = (format(row[key], spec) if key in row else " " * widths[key] for key, spec in COLUMNS.items())
    return f"{row['target']:<14}{row['seed']:>4}{''.join(cells)}  {row['verdict']}"


def head() -> str:
    """The head of the table."""
    return f"{'target':<14}{'seed':>4}" + "".join(f"{k:>{int(s[:-1].split('.')[0])}}" for k, s in COLUMNS.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="", help="parts of names, separated by commas; default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread\n\n{head()}", flush=True)
    rows = []
    for name in TARGETS:
        for seed in range(options.seeds if any(part in name for part in options.targets.split(",")) else 0):
            rows.append(fit(name, seed))
            print(line(rows[-1]), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
