r"""What prior-informed coordinates do to hierarchies: each model as it is written, non-centered, and as measured.

    python -m benchmarks.centering [--models schools_centered,groups] [--centerings none,0,auto] [--seeds 2]

Evidence (the importance estimate of log p(x)), effective sample size, k-hat, training steps, seconds of processor time,
and the verdict, for :class:`~pyro_nflows.AutoFlow` with default settings in single precision.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.svi_models import MODELS
from pyro_nflows import VI, AutoFlow


def groups(y: Tensor) -> None:
    """A hundred groups of one observation, between-group standard deviation 0.1: a funnel."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("group", len(y)):
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def sparse(x: Tensor, y: Tensor) -> None:
    """Logistic regression on 24 features with a horseshoe prior."""
    tau = pyro.sample("tau", dist.HalfCauchy(0.5))
    with pyro.plate("feature", x.shape[1]):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        weight = pyro.sample("weight", dist.Normal(0.0, tau * scale))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def data() -> dict[str, tuple[Callable[..., None], tuple[Tensor, ...]]]:
    """The models with their data, which are the same at each call."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    y, x = normal(100) + 0.1 * normal(100), normal(100, 24)
    weight = torch.zeros(24)
    weight[:3] = torch.tensor([2.0, -2.0, 1.5])
    labels = torch.bernoulli(torch.sigmoid(x @ weight), generator=generator)
    return {
        "schools_centered": (MODELS["schools_centered"], ()),
        "schools_noncentered": (MODELS["schools_noncentered"], ()),
        "groups": (groups, (y,)),
        "sparse": (sparse, (x, labels)),
    }


def cell(model: Callable[..., None], args: Sequence[Any], centering: Any, seed: int) -> str:
    """A row of the table."""
    began = time.process_time()
    pyro.clear_param_store()
    vi = VI(AutoFlow(model, centering=centering), seed=seed, progress_bar=False).run(*args)
    d, seconds = vi.diagnostics(), time.process_time() - began
    return f"{d['iwae']:10.3f}{d['ess']:8.3f}{d['pareto_k']:8.2f}{d['num_steps']:8,}{seconds:8.0f}  {d['outcome'].name}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    models = data()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(models))
    parser.add_argument("--centerings", default="none,0,auto")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    columns = f"{'evidence':>10}{'ESS':>8}{'k-hat':>8}{'steps':>8}{'CPU s':>8}  verdict"
    print(f"{'model':20}{'centering':>10}{'seed':>5}{columns}")
    for name in options.models.split(","):
        for centering in options.centerings.split(","):
            for seed in range(options.seeds):
                chosen = {"none": None, "auto": "auto"}.get(centering, centering)
                value = chosen if chosen in (None, "auto") else float(centering)
                print(f"{name:20}{centering:>10}{seed:>5}{cell(*models[name], value, seed)}", flush=True)


if __name__ == "__main__":
    main()
