r"""Models of hundreds of latents and more: guides that follow plates, joint ones, and Pyro's ``AutoNormal``.

    python -m benchmarks.structure [--models groups_400,radon_85] [--guides auto,joint,normal] [--seeds 3]

Effective sample size, k-hat, steps, seconds of processor time and the verdict, in single precision with default
settings. Where the rows of a plate integrate out in closed form, also the errors of what is outside of it against
quadrature: of mu and log tau, means in exact posterior standard deviations, and standard deviations as ratios.
``minibatch_N`` has N groups of ten observations and takes 500 of them a step. ``AutoNormal`` is trained by
``SVI`` with ``Adam`` for 4,000 steps of step sizes that fall from 0.02; it has no verdict.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_nflows import VI, AutoFlow


class Case(NamedTuple):
    """A model with its data; where the rows integrate out, the variance of a group's mean given its latent, and it."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    means: Tensor | None = None
    variance: float = 1.0


def hierarchy(y: Tensor) -> None:
    """Groups of one observation each."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", len(y)):
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def minibatch(y: Tensor) -> None:
    """Groups of ten observations, 500 of them at a time."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", y.shape[1], subsample_size=500, dim=-1) as i:
        z = pyro.sample("z", dist.Normal(mu, tau))
        with pyro.plate("observations", len(y), dim=-2):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[:, i])


def radon(county: Tensor, x: Tensor, y: Tensor, num_counties: int) -> None:
    """An intercept and a slope for each county, centered."""
    mu_a, mu_b = (pyro.sample(name, dist.Normal(0.0, 5.0)) for name in ("mu_a", "mu_b"))
    s_a, s_b, s = (pyro.sample(name, dist.HalfNormal(1.0)) for name in ("s_a", "s_b", "s"))
    with pyro.plate("counties", num_counties):
        a, b = pyro.sample("a", dist.Normal(mu_a, s_a)), pyro.sample("b", dist.Normal(mu_b, s_b))
    with pyro.plate("houses", len(y)):
        pyro.sample("y", dist.Normal(a[county] + b[county] * x, s), obs=y)


def items(y: Tensor) -> None:
    """Students and items: the two-parameter logistic model of item response."""
    mu, s = pyro.sample("mu", dist.Normal(0.0, 2.0)), pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("items", y.shape[1], dim=-1):
        slope, difficulty = (
            pyro.sample("slope", dist.LogNormal(0.0, 0.5)),
            pyro.sample("difficulty", dist.Normal(mu, s)),
        )
    with pyro.plate("students", y.shape[0], dim=-2):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with pyro.plate("answers", y.shape[1], dim=-1):
            pyro.sample("y", dist.Bernoulli(logits=slope * (ability - difficulty)), obs=y)


def case(name: str) -> Case:
    """A model by its name: ``groups_400``, ``funnel_100``, ``radon_85``, ``items_200``, ``minibatch_100000``."""
    kind, number = name.rsplit("_", 1)
    num, generator = int(number), torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if kind in ("groups", "funnel"):
        y = 2 + (0.1 if kind == "funnel" else 1.0) * normal(num) + normal(num)
        return Case(hierarchy, (y,), y)
    if kind == "minibatch":
        y = 1 + 0.7 * normal(num) + normal(10, num)
        return Case(minibatch, (y,), y.mean(0), 0.1)
    if kind == "items":
        ability, slope, difficulty = normal(num), (0.3 * normal(40)).exp(), normal(40)
        chances = torch.sigmoid(slope * (ability[:, None] - difficulty))
        return Case(items, (torch.bernoulli(chances, generator=generator),))
    if kind != "radon":
        raise ValueError(f"benchmarks.structure: no model '{name}'")
    county = torch.randint(num, (10 * num + 50,), generator=generator)
    county[:num] = torch.arange(num)
    x = torch.randint(2, county.shape, generator=generator).float()
    a, b = 1.3 + 0.35 * normal(num), -0.65 + 0.3 * normal(num)
    return Case(radon, (county, x, a[county] + b[county] * x + 0.75 * normal(len(county)), num))


def grid(means: Tensor, variance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points of mu and log tau, and the weight that the posterior has at each, the rows integrated out.

    The points of log tau reach six down and two up from where the data have it, or from the smallest tau that so many
    groups can tell from none.
    """
    y, num = means.double(), len(means)
    center, width = float(y.mean()), float(y.std()) / num**0.5
    scale = max(variance * (2 / num) ** 0.5, float(y.var() - variance)) ** 0.5
    t = torch.log(torch.tensor(scale)) + torch.linspace(-6, 2, 1601, dtype=torch.float64)
    if num > 1000:
        t = torch.log(torch.tensor(scale)) + 10 * num**-0.5 * torch.linspace(-1, 1, 1601, dtype=torch.float64)
    mu, t = torch.meshgrid(center + width * torch.linspace(-8, 8, 801, dtype=torch.float64), t, indexing="ij")
    total = (2 * t).exp() + variance
    log_p = -0.5 * (num * total.log() + (y.square().sum() - 2 * mu * y.sum() + num * mu**2) / total)
    weight = (log_p - 0.5 * (mu / 5) ** 2 - 0.5 * t**2).reshape(-1).softmax(0)
    edges = weight.reshape(801, 1601).sum(0)[[0, -1]]
    if bool(edges.max() > 1e-6):
        raise ValueError(f"benchmarks.structure: log tau has mass beyond the grid, {edges.tolist()} at its ends")
    return mu.reshape(-1), t.reshape(-1), weight


def exact(means: Tensor, variance: float) -> dict[str, tuple[float, float]]:
    """Posterior mean and standard deviation of mu and log tau, the rows integrated out, by quadrature."""
    mu, t, weight = grid(means, variance)
    found = {}
    for name, value in (("mu", mu), ("tau", t)):
        mean = float(weight @ value)
        found[name] = mean, float(weight @ (value - mean) ** 2) ** 0.5
    return found


def errors(draws: dict[str, Tensor], known: Case) -> str:
    """Of mu and log tau: errors of the mean in standard deviations, and ratios of standard deviations."""
    if known.means is None:
        return f"{'':>26}"
    parts = []
    for name, (mean, sd) in exact(known.means, known.variance).items():
        value = draws[name].reshape(-1).double()
        value = value.log() if name == "tau" else value
        parts.append(f"{(float(value.mean()) - mean) / sd:+6.2f} {float(value.std()) / sd:5.2f}")
    return "  ".join(parts).rjust(26)


def ours(chosen: Case, structure: str, seed: int) -> str:
    """A row of a guide of ours."""
    began = time.process_time()
    vi = VI(AutoFlow(chosen.model, structure=structure), seed=seed, progress_bar=False).run(*chosen.args)
    d, seconds = vi.diagnostics(), time.process_time() - began
    draws = vi.get_samples(min(4000, len(vi.posterior.draws.z)))
    found = f"{d['ess']:7.3f}{d['pareto_k']:7.2f}{d['num_steps']:8,}{seconds:8.0f}"
    return f"{found}{errors(draws, chosen)}  {d['outcome'].name}"


def normal_guide(chosen: Case, seed: int, num_steps: int = 4000) -> str:
    """A row of Pyro's diagonal normal guide."""
    pyro.set_rng_seed(seed)
    began, guide = time.process_time(), AutoNormal(chosen.model)
    optim = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02}, "gamma": 0.01 ** (1 / num_steps)}
    )
    svi = SVI(chosen.model, guide, optim, Trace_ELBO())
    for _ in range(num_steps):
        svi.step(*chosen.args)
        optim.step()
    seconds = time.process_time() - began
    hidden = pyro.poutine.block(chosen.model, expose=["mu", "tau"])
    draws = Predictive(hidden, guide=guide, num_samples=2000, return_sites=["mu", "tau"])(*chosen.args)
    return f"{'':7}{'':7}{num_steps:8,}{seconds:8.0f}{errors(draws, chosen)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = "radon_85,radon_400,groups_400,groups_2000,funnel_100,items_200,minibatch_100000"
    parser.add_argument("--models", default=names)
    parser.add_argument("--guides", default="auto,normal")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    columns = f"{'ESS':>7}{'k-hat':>7}{'steps':>8}{'CPU s':>8}{'mu: error, sd; log tau':>26}  verdict"
    print(f"{'model':18}{'guide':>8}{'seed':>5}{columns}")
    for name in options.models.split(","):
        chosen = case(name)
        for guide in options.guides.split(","):
            if guide == "normal" and chosen.means is None:
                continue
            for seed in range(options.seeds):
                pyro.clear_param_store()
                row = normal_guide(chosen, seed) if guide == "normal" else ours(chosen, guide, seed)
                print(f"{name:18}{guide:>8}{seed:>5}{row}", flush=True)


if __name__ == "__main__":
    main()
