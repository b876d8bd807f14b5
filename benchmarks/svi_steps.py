r"""What a step of a plain ``SVI`` loop takes, by guide, loss and optimiser; Pyro's own guides beside ours.

    python -m benchmarks.svi_steps [--models cars,schools_noncentered] [--guides AutoFlow,AutoIAF] [--rounds 7]

Milliseconds of processor time on one thread, the median over rounds of 50 steps in which all loops take turns; what is
recorded and compiled before is not counted.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

import pyro_nflows as nf
from benchmarks.plain_svi import GUIDES
from benchmarks.svi_models import MODELS

LR, WARM, STEPS = 0.01, 30, 50
OURS = ("AutoFlow", "AutoIAF", "AutoSpline", "AutoPlanar", "AutoCIF")
PYROS = tuple(name for name in GUIDES if name.startswith("Pyro"))


def pyros_adam(guide: Any) -> Any:
    """Pyro's optimiser, which has one of torch's for each parameter."""
    return Adam({"lr": LR})


def guides_own(guide: Any) -> Any:
    """The one that the guide gives, which moves all parameters in one call."""
    return guide.optimizer(LR, 100_000)


#: A column's heading, its loss, its optimiser, and whether Pyro's guides have it.
WAYS: tuple[tuple[str, Callable[[], Any], Callable[[Any], Any], bool], ...] = (
    ("Trace_ELBO(), Adam", Trace_ELBO, pyros_adam, True),
    ("Trace_ELBO(16), Adam", lambda: Trace_ELBO(16, vectorize_particles=True, max_plate_nesting=1), pyros_adam, True),
    ("ELBO(16), Adam", lambda: nf.ELBO(16), pyros_adam, False),
    ("ELBO(16, compile=True), Adam", lambda: nf.ELBO(16, compile=True), pyros_adam, False),
    ("ELBO(16, compile=True), guide.optimizer", lambda: nf.ELBO(16, compile=True), guides_own, False),
)


class Loop:
    """A loop of one guide, that has its own param store."""

    def __init__(self, model: Callable[[], None], guide: str, loss: Any, optimiser: Callable[[Any], Any]):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        made = GUIDES[guide](model)
        made()
        self.svi = SVI(model, made, optimiser(made), loss)
        self.times: list[float] = []
        self.store = pyro.get_param_store().get_state()
        self.run(WARM)
        self.times.clear()

    def run(self, num_steps: int = STEPS) -> None:
        """Take steps, and note what each took."""
        pyro.get_param_store().set_state(self.store)
        began = time.process_time()
        for _ in range(num_steps):
            self.svi.step()
        self.times.append(1e3 * (time.process_time() - began) / num_steps)
        self.store = pyro.get_param_store().get_state()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["cars", "schools_noncentered"])
    parser.add_argument("--guides", type=lambda text: text.split(","), default=[*OURS, *PYROS])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in options.models:
        loops = {
            (guide, way): Loop(MODELS[name], guide, loss(), optimiser)
            for guide in options.guides
            for way, loss, optimiser, is_pyros in WAYS
            if is_pyros or guide not in PYROS
        }
        for _ in range(options.rounds):
            for loop in loops.values():
                loop.run()
        print(f"\n| {name}, ms a step | " + " | ".join(way for way, *_ in WAYS) + " |")
        print("|---|" + "---|" * len(WAYS))
        for guide in options.guides:
            found = [loops.get((guide, way)) for way, *_ in WAYS]
            cells = ["" if loop is None else f"{statistics.median(loop.times):.2f}" for loop in found]
            print(f"| {guide} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
