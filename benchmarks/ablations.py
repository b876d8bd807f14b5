r"""The schedule, ingredient by ingredient: what happens to ESS and seconds when one is taken away.

    python -m benchmarks.ablations [--posteriordb PATH] [--targets funnel,garch] [--without SiLU] [--json FILE]

Every row is the default but for one thing.
"""

import argparse
import contextlib
import functools
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import targets
from benchmarks.models import POSTERIORS, add_posteriordb_argument
from pyro_nflows import ELBO, VI, AutoFlow, flows
from pyro_nflows.engine import Round
from pyro_nflows.inference.schedule import Schedule
from pyro_nflows.nets.mlp import MLP

Row = dict[str, Any]
Model = tuple[Callable[..., Any], tuple[Any, ...]]


def model(name: str, path: str | None) -> Model:
    """A posterior or a target by its name."""
    if name in SYNTHETIC:
        target = SYNTHETIC[name]()
        return target.model, target.args
    full = next(key for key in POSTERIORS if name in key)
    return POSTERIORS[full].model, POSTERIORS[full].args(path)


SYNTHETIC: dict[str, Callable[[], targets.Target]] = {
    "funnel": targets.funnel,
    "student_t": functools.partial(targets.student_t, 2.0, 10),
    "lattice": functools.partial(targets.lattice, 3),
}
NAMES = ("schools_centered", "garch", "arK", "funnel", "student_t", "lattice")


def rounds(**changes: Any) -> AbstractContextManager[Any]:
    """The default schedule with something else for each round."""
    default = Schedule()
    changed = [Round(**{**vars(plan), **changes}) for plan in default.rounds]
    return patch.object(Schedule, "of", staticmethod(lambda *_: Schedule(rounds=changed)))


def no_start() -> AbstractContextManager[Any]:
    """Neither Pathfinder's Gaussian nor the affine end's own round."""
    return patch("pyro_nflows.inference.rounds.is_fresh", lambda _: False)


def no_gaussian_round() -> AbstractContextManager[Any]:
    """Pathfinder's Gaussian alone."""
    return patch.object(Schedule, "of", staticmethod(lambda *_: Schedule(max_ends=0)))


def one_round() -> AbstractContextManager[Any]:
    """As many steps as all rounds, in one."""
    total = sum(plan.num_steps for plan in Schedule().rounds)
    return patch.object(Schedule, "of", staticmethod(lambda *_: Schedule(rounds=(Round(total, 128, 3e-3),))))


@contextlib.contextmanager
def tanh() -> Iterator[None]:
    """Networks that level off."""
    plain = MLP.__init__

    def bounded(self: MLP, *args: Any, unbounded: bool = False, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)

    with patch.object(MLP, "__init__", bounded):
        yield


@contextlib.contextmanager
def double() -> Iterator[None]:
    """Float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def diagonal_end() -> AbstractContextManager[Any]:
    """A diagonal affine end."""
    return patch.object(AutoFlow, "_full_rank", False)


def no_search() -> AbstractContextManager[Any]:
    """No second fit."""
    return patch("pyro_nflows.inference.search.MAX_REFITS", 0)


WITHOUT: dict[str, tuple[Callable[[], AbstractContextManager[Any]], dict[str, Any], flows.Build]] = {
    "nothing (the default)": (contextlib.nullcontext, {}, flows.default),
    "a start (Pathfinder, Gaussian round)": (no_start, {}, flows.default),
    "the Gaussian round": (no_gaussian_round, {}, flows.default),
    "the full-rank end": (diagonal_end, {}, flows.default),
    "path gradients (total instead)": (contextlib.nullcontext, {"objective": ELBO(gradient="total")}, flows.default),
    "128 particles (32 instead)": (functools.partial(rounds, num_particles=32), {}, flows.default),
    "rounds (one, of all steps)": (one_round, {}, flows.default),
    "covering": (functools.partial(rounds, covering=False), {}, flows.default),
    "SiLU (tanh instead)": (tanh, {}, flows.default),
    "8 couplings (4 instead)": (contextlib.nullcontext, {}, functools.partial(flows.realnvp, num_layers=4)),
    "couplings (IAF instead)": (contextlib.nullcontext, {}, flows.iaf),
    "couplings (planar instead)": (contextlib.nullcontext, {}, flows.planar),
    "float32 (float64 instead)": (double, {}, flows.default),
    "the search for modes": (no_search, {}, flows.default),
}


def fit(without: str, name: str, seed: int, path: str | None) -> Row:
    """One fit, one ingredient short."""
    change, settings, build = WITHOUT[without]
    with change():
        function, args = model(name, path)
        began = time.perf_counter()
        guide = AutoFlow(function, build, centering=None)  # else the hierarchies among these are next to Gaussian
        vi = VI(guide, seed=seed, progress_bar=False, **settings).run(*args)
        seconds, found = time.perf_counter() - began, vi.diagnostics()
    keys = "elbo", "ess", "pareto_k", "num_steps"
    verdict = found["outcome"].name
    return {"without": without, "target": name, "seed": seed, "seconds": seconds, "verdict": verdict} | {
        key: found[key] for key in keys
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_posteriordb_argument(parser)
    parser.add_argument("--targets", default=",".join(NAMES))
    parser.add_argument("--without", default="", help="a part of an ingredient's name; default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread\n")
    print(f"{'without':<40}{'target':<18}{'seed':>5}{'steps':>8}{'seconds':>9}{'ELBO':>11}{'ESS':>7}{'k-hat':>7}")
    rows: list[Row] = []
    for name in options.targets.split(","):
        for without in WITHOUT:
            for seed in range(options.seeds if options.without in without else 0):
                row = fit(without, name, seed, options.posteriordb)
                rows.append(row)
                print(
                    f"{without:<40}{name:<18}{seed:>5}{row['num_steps']:>8}{row['seconds']:>9.1f}{row['elbo']:>11.3f}"
                    f"{row['ess']:>7.3f}{row['pareto_k']:>7.2f}  {row['verdict']}",
                    flush=True,
                )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
