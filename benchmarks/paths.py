r"""A latent path with Poisson observations: guides of 200 latents against each other, and against NUTS.

    python -m benchmarks.paths [--guides wavenet,default] [--seeds 2] [--positions 200] [--draws 5000]

.. math:: x_t = 0.95\, x_{t-1} + 0.3\, \epsilon_t, \qquad y_t \sim \mathrm{Poisson}(e^{x_t})

from the stationary distribution. Each guide is fitted by ``VI`` with its default settings, in single precision.
"behind" is the best ELBO of all guides less this one's. Means and standard deviations of the path's 200 marginals are
compared with those of NumPyro's NUTS (four chains, ``--draws`` each after 1,000 steps of adaptation, double precision):
the largest difference of a mean, in NUTS's standard deviations, and the ratio of standard deviations that is furthest
from one. Of NUTS, one half of its chains is compared with the other half, which has more noise than that.
Draws of guides are weighted, as ``get_samples`` gives them, and then as they come from the guide ("raw"). Seconds are
of the processor.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as dist
import torch
from numpyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_nflows import VI, AutoFlow, AutoIAF, AutoRealNVP, flows
from pyro_nflows.layers.base import Layer

Effort = Literal["quick", "default", "thorough"]
DECAY, SCALE = 0.95, 0.3
NUM_DRAWS = 20_000


def simulated(length: int) -> Tensor:
    """Counts."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((), generator=generator) * SCALE / math.sqrt(1 - DECAY**2)
    path = []
    for _ in range(length):
        path.append(x)
        x = DECAY * x + SCALE * torch.randn((), generator=generator)
    return torch.poisson(torch.stack(path).exp(), generator)


def precision(length: int) -> Tensor:
    """Of a stationary path: tridiagonal."""
    diagonal = torch.full((length,), 1 + DECAY**2)
    diagonal[[0, -1]] = 1.0
    beside = torch.full((length - 1,), -DECAY)
    return (diagonal.diag() + beside.diag(1) + beside.diag(-1)) / SCALE**2


def model(y: Tensor) -> None:
    """The path is one site."""
    path = pyro.sample("path", dist.MultivariateNormal(torch.zeros(len(y)), precision_matrix=precision(len(y))))
    pyro.sample("y", dist.Poisson(path.exp()).to_event(1), obs=y)


def numpyro_model(y: Any) -> None:
    """The same, by its steps."""
    noise = numpyro.sample("noise", numpyro_dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))

    def step(last: Any, each: Any) -> Any:
        now = DECAY * last + SCALE * each
        return now, now

    first = noise[0] * SCALE / math.sqrt(1 - DECAY**2)
    _, rest = jax.lax.scan(step, first, noise[1:])
    path = numpyro.deterministic("path", jnp.concatenate([first[None], rest]))
    numpyro.sample("y", numpyro_dist.Poisson(jnp.exp(path)).to_event(1), obs=y)


def narrow(dim: int) -> Layer:
    """A WaveNet of half as many channels, which reads four positions before each."""
    return flows.wavenet(dim, width=8, dilations=(1, 2))


#: How each guide is made, and with which effort it is fitted.
GUIDES: dict[str, tuple[Callable[[Callable[..., None]], AutoFlow], Effort]] = {
    "a Gaussian": (AutoFlow, "quick"),
    "default": (AutoFlow, "default"),
    "wavenet": (functools.partial(AutoFlow, build=flows.wavenet), "default"),
    "narrow wavenet": (functools.partial(AutoFlow, build=narrow), "default"),
    "RealNVP": (AutoRealNVP, "default"),
    "IAF": (AutoIAF, "default"),
}


class Moments(NamedTuple):
    """Of each position of a path."""

    mean: Tensor
    sd: Tensor


class Row(NamedTuple):
    """One fit: its evidence, and errors of its marginals, of weighted draws and of draws as the guide makes them."""

    guide: str
    seed: int
    elbo: float
    elbo_se: float
    iwae: float
    ess: float
    steps: int
    seconds: float
    outcome: str
    weighted: tuple[float, float]
    raw: tuple[float, float]

    def told(self, best: float) -> str:
        """A line of the table."""
        pairs = "".join(f"{shift:>8.3f}{ratio:>7.3f}" for shift, ratio in (self.weighted, self.raw))
        return (
            f"{self.guide:<17}{self.seed:>5}{self.elbo:>10.3f}{self.elbo_se:>7.3f}{best - self.elbo:>8.3f}"
            f"{self.iwae:>10.3f}{self.ess:>6.2f}{pairs}{self.steps:>7}{self.seconds:>6.0f} {self.outcome}"
        )


HEAD = (
    f"{'guide':<17}{'seed':>5}{'ELBO':>10}{'s.e.':>7}{'behind':>8}{'IWAE':>10}{'ESS':>6}{'mean':>8}{'sd':>7}"
    f"{'raw mean':>9}{'sd':>6}{'steps':>7}{'s':>6} verdict"
)


def moments(draws: Tensor) -> Moments:
    """Of draws ``(N, T)``."""
    return Moments(draws.double().mean(0), draws.double().std(0))


def errors(found: Moments, reference: Moments) -> tuple[float, float]:
    """The largest error of a mean, in standard deviations, and the ratio of deviations that is furthest from one."""
    shift = ((found.mean - reference.mean) / reference.sd).abs().max()
    ratio = found.sd / reference.sd
    return float(shift), float(ratio[ratio.log().abs().argmax()])


def nuts(y: Tensor, num_draws: int) -> Tensor:
    """Draws of the path, ``(4, num_draws, T)``."""
    kernel, chains = NUTS(numpyro_model), {"num_chains": 4, "chain_method": "sequential"}
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=num_draws, progress_bar=False, **chains)
    mcmc.run(jax.random.PRNGKey(0), jnp.asarray(y.numpy()))
    return torch.tensor(jax.device_get(mcmc.get_samples(group_by_chain=True)["path"]))


def fitted(name: str, seed: int, y: Tensor, reference: Moments) -> Row:
    """A fit, its evidence, and its marginals' errors."""
    make, effort = GUIDES[name]
    pyro.clear_param_store()
    vi, began = VI(make(model), seed=seed, effort=effort, progress_bar=False), time.process_time()
    vi.run(y)
    seconds, found = time.process_time() - began, vi.diagnostics()
    pairs = [
        errors(moments(vi.get_samples(NUM_DRAWS, resample=resample)["path"]), reference) for resample in (None, False)
    ]
    evidence = (found[key] for key in ("elbo", "elbo_se", "iwae", "ess", "num_steps"))
    return Row(name, seed, *evidence, seconds, found["outcome"].name, *pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guides", default=",".join(GUIDES), help="names with commas between")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--positions", type=int, default=200)
    parser.add_argument("--draws", type=int, default=5000)
    options = parser.parse_args(argv)
    y, began = simulated(options.positions), time.process_time()
    chains = nuts(y, options.draws)
    reference = moments(chains.flatten(0, 1))
    shift, ratio = errors(moments(chains[:2].flatten(0, 1)), moments(chains[2:].flatten(0, 1)))
    seconds = time.process_time() - began
    print(f"NUTS, two chains against two: mean {shift:.3f}, sd {ratio:.3f}; {seconds:.0f} s", flush=True)
    rows = []
    for name in options.guides.split(","):
        for seed in range(options.seeds):
            rows.append(fitted(name, seed, y, reference))
            print(rows[-1].told(rows[-1].elbo), flush=True)
    best = max(row.elbo for row in rows)
    print(HEAD, *(row.told(best) for row in rows), sep="\n", flush=True)


if __name__ == "__main__":
    numpyro.enable_x64()
    main()
