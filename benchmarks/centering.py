r"""Hierarchies written centered and non-centered: by default, both ways should come out alike.

    python -m benchmarks.centering [--models schools,groups,radon,sparse] [--centerings none,auto] [--seeds 2]

ELBO, evidence (the importance estimate of log p(x)), effective sample size, k-hat, training steps, seconds of processor
time, and the verdict, for :class:`~pyro_nflows.AutoFlow` with default settings in single precision. ``--centerings``
takes ``none`` (latents as they are), ``auto`` (the default), and numbers.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.structure import case, radon
from benchmarks.svi_models import MODELS
from pyro_nflows import VI, AutoFlow


def groups(y: Tensor) -> None:
    """A hundred groups of one observation, between-group standard deviation 0.1: a funnel."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("group", len(y)):
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def standard_groups(y: Tensor) -> None:
    """The same, non-centered."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("group", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, 1.0), obs=y)


def sparse(x: Tensor, y: Tensor) -> None:
    """Logistic regression on 24 features with a horseshoe prior."""
    tau = pyro.sample("tau", dist.HalfCauchy(0.5))
    with pyro.plate("feature", x.shape[1]):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        weight = pyro.sample("weight", dist.Normal(0.0, tau * scale))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def standard_sparse(x: Tensor, y: Tensor) -> None:
    """The same, non-centered."""
    tau = pyro.sample("tau", dist.HalfCauchy(0.5))
    with pyro.plate("feature", x.shape[1]):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ (tau * scale * eta)), obs=y)


def standard_radon(county: Tensor, x: Tensor, y: Tensor, num_counties: int) -> None:
    """An intercept and a slope for each county, non-centered; the centered one is in ``benchmarks.structure``."""
    mu_a, mu_b = (pyro.sample(name, dist.Normal(0.0, 5.0)) for name in ("mu_a", "mu_b"))
    s_a, s_b, s = (pyro.sample(name, dist.HalfNormal(1.0)) for name in ("s_a", "s_b", "s"))
    with pyro.plate("counties", num_counties):
        eta_a, eta_b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("eta_a", "eta_b"))
    a, b = mu_a + s_a * eta_a, mu_b + s_b * eta_b
    with pyro.plate("houses", len(y)):
        pyro.sample("y", dist.Normal(a[county] + b[county] * x, s), obs=y)


def data() -> dict[str, tuple[Callable[..., None], Callable[..., None], tuple[Tensor, ...]]]:
    """The models, centered and non-centered, with their data, which are the same at each call."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    y, x = normal(100) + 0.1 * normal(100), normal(100, 24)
    weight = torch.zeros(24)
    weight[:3] = torch.tensor([2.0, -2.0, 1.5])
    labels = torch.bernoulli(torch.sigmoid(x @ weight), generator=generator)
    return {
        "schools": (MODELS["schools_centered"], MODELS["schools_noncentered"], ()),
        "groups": (groups, standard_groups, (y,)),
        "radon": (radon, standard_radon, case("radon_85").args),
        "sparse": (sparse, standard_sparse, (x, labels)),
    }


def cell(model: Callable[..., None], args: Sequence[Any], centering: Any, seed: int) -> str:
    """A row of the table."""
    began = time.process_time()
    pyro.clear_param_store()
    vi = VI(AutoFlow(model, centering=centering), seed=seed, progress_bar=False).run(*args)
    d, seconds = vi.diagnostics(), time.process_time() - began
    numbers = f"{d['elbo']:10.3f}{d['iwae']:10.3f}{d['ess']:8.3f}{d['pareto_k']:8.2f}"
    return f"{numbers}{d['num_steps']:8,}{seconds:8.1f}  {d['outcome'].name}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    models = data()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(models))
    parser.add_argument("--centerings", default="none,auto")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    columns = f"{'ELBO':>10}{'evidence':>10}{'ESS':>8}{'k-hat':>8}{'steps':>8}{'CPU s':>8}  verdict"
    print(f"{'model':10}{'written':14}{'centering':>10}{'seed':>5}{columns}")
    for name in options.models.split(","):
        *versions, args = models[name]
        for written, model in zip(("centered", "non-centered"), versions):
            for centering in options.centerings.split(","):
                value = {"none": None, "auto": "auto"}.get(centering, centering)
                value = value if value in (None, "auto") else float(centering)
                for seed in range(options.seeds):
                    print(f"{name:10}{written:14}{centering:>10}{seed:>5}{cell(model, args, value, seed)}", flush=True)


if __name__ == "__main__":
    main()
