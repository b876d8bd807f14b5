r"""Do guides survive ordinary learning rates in a plain ``SVI`` loop, and what ELBO do they reach?

    python -m benchmarks.plain_svi [--guides AutoFlow,AutoIAF] [--models cars] [--rates 0.05,0.01,0.001] [--losses all]
                                   [--optimiser Adam] [--steps 2000] [--seeds 1] [--quick] [--workers 2] [--cells FILE]

Every cell is the ELBO of the last guide less that of the best full-rank Gaussian, in nats (above zero: better than any
Gaussian), with the worst of the seeds; ``NaN@k``: a parameter was not finite, or the loop raised an error, at step k.
Optimiser and loss change from cell to cell, so that each guide meets all of them at each rate; ``--losses all`` runs
every loss in every cell. With ``--quick`` each loop begins where ``VI(guide, effort="quick")`` has put the guide.
Pyro's own guides are in the same table. The whole table takes hours: with ``--cells``, each cell is written to a file
as it is done, and those that are there already are not run again.
"""

import argparse
import itertools
import json
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal
from pyro.optim import Adam, ClippedAdam

import pyro_nflows as nf
from benchmarks.svi_models import MODELS
from pyro_nflows.engine import Round, Trainer
from pyro_nflows.layers.base import Chain
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.modes.gaussians import Gaussian
from pyro_nflows.modes.pathfinder import best_start
from pyro_nflows.objectives.base import Gradient

GUIDES: dict[str, Callable[..., Any]] = {
    guide.__name__: guide
    for guide in (
        nf.AutoFlow,
        nf.AutoRealNVP,
        nf.AutoNICE,
        nf.AutoIAF,
        nf.AutoMAF,
        nf.AutoSpline,
        nf.AutoGlow,
        nf.AutoPlanar,
        nf.AutoRadial,
        nf.AutoResidual,
        nf.AutoCNF,
        nf.AutoFlowified,
        nf.AutoCIF,
        nf.AutoDAIS,
    )
}
GUIDES |= {"Pyro AutoMultivariateNormal": AutoMultivariateNormal, "Pyro AutoIAFNormal": AutoIAFNormal}
#: Of a guide, a step size and a number of steps. The last one is for our guides, and only where it is asked for.
OPTIMISERS: dict[str, Callable[[Any, float, int], Any]] = {
    "ClippedAdam": lambda guide, rate, num_steps: ClippedAdam({"lr": rate}),
    "Adam": lambda guide, rate, num_steps: Adam({"lr": rate}),
    "guide.optimizer": lambda guide, rate, num_steps: guide.optimizer(rate, num_steps),
}
LOSSES: dict[str, Callable[[], Any]] = {
    "Trace_ELBO(1)": Trace_ELBO,
    "Trace_ELBO(100)": lambda: Trace_ELBO(100, vectorize_particles=True, max_plate_nesting=1),
    "TraceMeanField(16)": lambda: TraceMeanField_ELBO(16, vectorize_particles=True, max_plate_nesting=1),
    "Renyi(16)": lambda: RenyiELBO(0, 16, vectorize_particles=True, max_plate_nesting=1),
    "ELBO(16)": lambda: nf.ELBO(16),
    "IWAE(16)": lambda: nf.IWAE(16),
}
#: What one particle's worth of Pyro's Renyi bound cannot do: it is wrong for joint guides under a shared plate.
PYROS = [name for name in LOSSES if name not in ("ELBO(16)", "IWAE(16)")]


#: Guide, model, rate, optimiser, loss, number of steps, seed; and "quick" where the loop begins at a quick fit
Task = tuple[Any, ...]
#: The ELBO reached, and the step at which training broke
Reached = tuple[float, int | None]


def best_gaussian(model: Callable[[], None]) -> float:
    """The ELBO of the best full-rank Gaussian in unconstrained space; it is trained from two starts."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    guide = nf.AutoFlow(model)
    guide()
    joint = LogJoint(BoundModel(model), guide.latents)
    joint.prepare()
    trainer, layer = Trainer(joint, progress_bar=False), guide.plain_layer()
    loc = layer.end.loc.detach().clone()
    own = Gaussian(loc, guide.init_scale * torch.eye(len(loc)))
    found = []
    for start in (own, best_start(joint, own)):
        start.place(layer)
        end = Chain(layer.end)
        for rate in (2e-2, 5e-3):
            trainer.run(end, nf.ELBO(), Gradient.PATH, Round(4000, 64, rate), "")
        found.append(float(trainer.sampler.sample(end, 40_000).log_weight.mean()))
    trainer.close()
    return max(value for value in found if math.isfinite(value))


def elbo(model: Callable[[], None], guide: Any, num_samples: int = 4000) -> float:
    """A trained guide's ELBO, by Pyro's own traces in one batch."""
    loss = Trace_ELBO(num_samples, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad(), pyro.validation_enabled(False):
        return -float(loss.loss(model, guide))


def cell(
    guide_name: str,
    model_name: str,
    rate: float,
    optimiser: str,
    loss_name: str,
    num_steps: int,
    seed: int,
    begin: str = "",
) -> Reached:
    """Train; the ELBO reached, or the step at which training broke."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = MODELS[model_name]
    guide = GUIDES[guide_name](model)
    if begin == "quick":
        nf.VI(guide, effort="quick", progress_bar=False).run()
    svi = SVI(model, guide, OPTIMISERS[optimiser](guide, rate, num_steps), LOSSES[loss_name]())
    for step in range(num_steps):
        try:
            svi.step()
        except (ValueError, RuntimeError):
            return float("nan"), step
        if step % 50 == 49 and not all(p.isfinite().all() for p in guide.parameters()):
            return float("nan"), step
    return elbo(model, guide), None


def tasks(options: argparse.Namespace) -> list[Task]:
    """The cells of the table; each has its optimiser and loss, in turn, whatever other cells are asked for."""
    found = []
    for guide, model, rate in itertools.product(options.guides, options.models, options.rates):
        i, j, k = list(GUIDES).index(guide), list(MODELS).index(model), round(-3 * math.log10(rate))
        names = PYROS if guide.startswith("Pyro") else list(LOSSES)
        chosen = [name for name in names if name in options.losses]
        if options.losses in (["all"], ["turns"]):
            chosen = names if options.losses == ["all"] else [names[(i + j + k) % len(names)]]
        optimiser = options.optimiser or list(OPTIMISERS)[(i + j // 2 + k) % 2]
        found += [(guide, model, rate, optimiser, *rest) for rest in _rest(chosen, options)]
    return found


def _rest(losses: Sequence[str], options: argparse.Namespace) -> list[tuple[Any, ...]]:
    begin = ("quick",) if options.quick else ()
    return [(loss, options.steps, seed, *begin) for loss, seed in itertools.product(losses, range(options.seeds))]


def _written(best: dict[str, float], cells: Sequence[tuple[Task, Reached]]) -> str:
    """The worst of a table cell's runs."""
    if not cells:
        return ""
    broken = [step for _, (_, step) in cells if step is not None]
    if broken:
        return f"NaN@{min(broken)}"
    return f"{min(value - best[task[1]] for task, (value, _) in cells):+.2f}"


def by_loss(best: dict[str, float], cells: Sequence[tuple[Task, Reached]]) -> str:
    """By the loss, how many cells of our guides come near the best Gaussian or pass it."""
    lines = [f"{'loss':20}{'cells':>7}{'broken':>8}{'>= -0.05':>10}{'>= -1':>7}{'worst':>12}"]
    for loss in LOSSES:
        found = [(task, reached) for task, reached in cells if task[4] == loss and not task[0].startswith("Pyro")]
        above = [value - best[task[1]] for task, (value, broken) in found if broken is None]
        near = [sum(value >= -least for value in above) for least in (0.05, 1.0)]
        worst = f"{min(above):12.4g}" if above else ""
        lines.append(f"{loss:20}{len(found):7}{len(found) - len(above):8}{near[0]:10}{near[1]:7}{worst}")
    return "\n".join(lines)


def read_cells(path: Path | None) -> dict[Task, Reached]:
    """The cells that an earlier run wrote."""
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {tuple(line["task"]): (line["elbo"], line["broken"]) for line in lines}


def write_cell(path: Path | None, task: Task, reached: Reached) -> None:
    """Add one cell to the file."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps({"task": task, "elbo": reached[0], "broken": reached[1]}) + "\n")


def _best(name: str, path: Path | None, done: dict[Task, Reached]) -> float:
    """The best Gaussian's ELBO, by the file or by training."""
    task = ("best Gaussian", name, 0.0, "", "", 0, 0)
    if task not in done:
        done[task] = best_gaussian(MODELS[name]), None
        write_cell(path, task, done[task])
    return done[task][0]


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guides", type=_words, default=list(GUIDES))
    parser.add_argument("--models", type=_words, default=list(MODELS))
    parser.add_argument("--rates", type=_numbers, default=[0.05, 0.01, 0.001])
    parser.add_argument(
        "--losses", type=_words, default=["turns"], help="names, 'all', or 'turns': one a cell, in turn"
    )
    parser.add_argument("--optimiser", choices=list(OPTIMISERS), help="of all cells; without it, Pyro's two in turn")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="begin at a quick fit of VI; for guides of this package")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cells", type=Path, help="a file of one line of JSON for each cell")
    parser.add_argument("--print-only", action="store_true", help="run nothing: print the cells of the file")
    options = parser.parse_args(arguments)
    if options.optimiser == "guide.optimizer" and any(guide.startswith("Pyro") for guide in options.guides):
        parser.error("--optimiser guide.optimizer is for guides of this package; name them with --guides")
    if options.quick and any(guide.startswith("Pyro") for guide in options.guides):
        parser.error("--quick is for guides of this package; name them with --guides")
    done = read_cells(options.cells)
    best = {name: _best(name, options.cells, done) for name in options.models}
    print("Best Gaussian's ELBO: " + ", ".join(f"{name} {value:.2f}" for name, value in best.items()), flush=True)
    todo = tasks(options)
    print(f"{'guide':28}{'rate':>7}  " + "".join(f"{name[:11]:>12}" for name in options.models))
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for guide, group in itertools.groupby(todo, key=lambda task: task[0]):
            rows = list(group)
            missing = {pool.submit(cell, *t): t for t in rows if t not in done and not options.print_only}
            for future in as_completed(missing):
                done[missing[future]] = future.result()
                write_cell(options.cells, missing[future], future.result())
            for rate in options.rates:
                found = [[t for t in rows if t in done and t[1:3] == (name, rate)] for name in options.models]
                values = [_written(best, [(task, done[task]) for task in cells]) for cells in found]
                print(f"{guide:28}{rate:>7}  " + "".join(f"{value:>12}" for value in values), flush=True)
    print("\n" + by_loss(best, [(task, done[task]) for task in todo if task in done]))


if __name__ == "__main__":
    main()
