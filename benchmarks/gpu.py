r"""On a GPU: microseconds a training step by particles and dimension, and seconds to an answer, beside the processor's.

    python -m benchmarks.gpu [--device cuda] [--parts steps,fits] [--particles 256,4096,65536] [--dims 10,100,1000]
                             [--fits regression:100000,...] [--no-numpyro] [--no-cpu] [--seconds 0.3] [--json FILE]

- ``steps``: a step on a banded Gaussian, of ``AutoFlow`` with the schedule's path gradient, and of ``AutoIAF`` with
  three layers and the total gradient: as one CUDA graph a step ("graph"), which is what ``VI`` runs there; by replaying
  the recording ("traced"); and as compiled C on all processors of the same machine ("cpu"). NumPyro's
  ``AutoIAFNormal``, of the same size as ``AutoIAF``, is on the same GPU, in the loop that ``svi.run`` compiles.
  Networks are as wide as the latents, and at least 32. Numbers are medians of five repeats in turn, in single
  precision.
- ``fits``: seconds of the clock of ``VI(AutoFlow(model)).run(*data)``, cold, with data on the GPU and on the processor,
  and its verdict.
"""

import argparse
import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from benchmarks import scale_models
from benchmarks.speed import Block, medians, our_block, program_of
from pyro_nflows import VI, AutoFlow, AutoIAF
from pyro_nflows.engine import Engine
from pyro_nflows.objectives.base import Gradient

#: Steps in a block; fewer of what is slower.
STEPS = 50
FITS = ("banded:100", "regression:10000", "regression:100000", "regression:1000000", "walk:500")


def on(device: str, name: str, size: int) -> tuple[Tensor, ...]:
    """A model's data, on a device."""
    return tuple(torch.tensor(part, device=device) for part in scale_models.data(name, size))


def blocks_of(flow: str, dim: int, num_particles: int, options: argparse.Namespace) -> dict[str, Block]:
    """Whatever is to be measured at one size, by name."""
    model, width = scale_models.models("pyro")["banded"], max(32, dim)
    make: Callable[..., AutoFlow] = AutoFlow
    if flow == "AutoIAF":
        make = partial(AutoIAF, num_layers=3, hidden_dims=(width, width))
    gradient = Gradient.PATH if flow == "AutoFlow" else Gradient.TOTAL
    found: dict[str, Block] = {}
    for name, device, engine in (
        ("graph", options.device, Engine.COMPILED),
        ("traced", options.device, Engine.TRACED),
        ("cpu", "cpu", Engine.COMPILED),
    ):
        if name != "cpu" or options.cpu:
            with _failure_told(name):
                program = program_of(make, model, on(device, "banded", dim), num_particles, gradient)
                num = STEPS if name == "graph" else max(2, STEPS * 256 // num_particles) if device == "cpu" else 5
                found[name] = our_block(program, engine, num)
    if flow == "AutoIAF" and options.numpyro:
        with _failure_told("numpyro"):
            found["numpyro"] = their_block(dim, num_particles, width), STEPS
    return found


@contextlib.contextmanager
def _failure_told(name: str) -> Iterator[None]:
    """What cannot be measured is said, and left out."""
    try:
        yield
    except Exception as error:
        print(f"  {name}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)


def their_block(dim: int, num_particles: int, width: int) -> Callable[[], None]:
    """Steps of NumPyro's equal flow, on the device that JAX has."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax.numpy as jnp
    import numpyro
    from jax.example_libraries import stax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoIAFNormal

    from .numpyro_speed import loop

    args, model = tuple(map(jnp.array, scale_models.data("banded", dim))), scale_models.models("numpyro")["banded"]
    guide = AutoIAFNormal(model, num_flows=3, hidden_dims=[width, width], nonlinearity=stax.Tanh)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO(num_particles=num_particles))
    return loop(svi, args, STEPS)


def steps(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The table of steps."""
    names = ["graph", "traced", "cpu", "numpyro"]
    print(f"\nmicroseconds a step\n{'flow':<10}{'D':>6}{'particles':>11}" + "".join(f"{name:>11}" for name in names))
    for flow in ("AutoFlow", "AutoIAF"):
        for dim in options.dims:
            for num in options.particles:
                row = medians(blocks_of(flow, dim, num, options), 5, options.seconds)
                rows.append({"part": "steps", "flow": flow, "dim": dim, "particles": num, **row})
                cells = "".join(f"{row[name]:>11,.0f}" if name in row else f"{'':>11}" for name in names)
                print(f"{flow:<10}{dim:>6}{num:>11,}{cells}", flush=True)


def fits(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The table of fits."""
    print(f"\nseconds to an answer\n{'model':<22}{'device':>8}{'seconds':>9}{'engine':>10}{'ESS':>7}  verdict")
    for what in options.fits:
        name, size = what.split(":")
        for device in (options.device, "cpu") if options.cpu and options.device != "cpu" else (options.device,):
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            began = time.perf_counter()
            model, data = scale_models.models("pyro")[name], on(device, name, int(size))
            vi = VI(AutoFlow(model), progress_bar=False, seed=1).run(*data)
            row = {"part": "fits", "model": what, "device": device, "seconds": time.perf_counter() - began}
            row |= {"ess": vi.diagnostics()["ess"], "engine": ", ".join(e.value for e in vi.history.engines)}
            row["verdict"] = vi.verdict().outcome.name
            rows.append(row)
            print(
                f"{what:<22}{device:>8}{row['seconds']:>9.1f}{row['engine']:>10}{row['ess']:>7.3f}  {row['verdict']}",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default="steps,fits", type=lambda text: text.split(","))
    parser.add_argument("--particles", default=[256, 4096, 65_536], type=numbers)
    parser.add_argument("--dims", default=[10, 100, 1000], type=numbers)
    parser.add_argument("--fits", default=FITS, type=lambda text: text.split(","))
    parser.add_argument("--no-numpyro", dest="numpyro", action="store_false")
    parser.add_argument("--no-cpu", dest="cpu", action="store_false")
    parser.add_argument("--seconds", default=0.3, type=float, help="of each repeat")
    parser.add_argument("--json", help="file for the numbers")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    card = torch.cuda.get_device_name() if options.device.startswith("cuda") else "processor only"
    print(f"{card}; {os.cpu_count()} processors; torch {torch.__version__}")
    rows: list[dict[str, Any]] = []
    for part in options.parts:
        {"steps": steps, "fits": fits}[part](options, rows)
        if options.json:
            with open(options.json, "w") as file:
                json.dump({"card": card, "torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
