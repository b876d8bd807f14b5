r"""Do joint fits of hundreds of dimensions hold? Many groups as they are written, and several seeds.

    python -m benchmarks.divergence [--targets slopes-85] [--seeds 10] [--num-steps 1200] [--json FILE]

Data are simulated from the models. ``slopes`` has an intercept and a slope for each county, as in the radon data [1],
and five parameters above them; ``groups`` is one plate, ``y_i ~ N(z_i, 1)``, ``z_i ~ N(mu, tau)``. ``steps`` are those
taken, ``skipped`` those whose values were not finite, ``restarts`` is how often training diverged and went back.
``gaussian`` is the ELBO at the end of the Gaussian's round, by the median of its last 50 steps.

**References**

[1] A. Gelman, J. Hill (2006). Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 12.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow

Row = dict[str, Any]
COLUMNS = {
    "dim": "5d",
    "seconds": "9.0f",
    "steps": "7d",
    "skipped": "9d",
    "restarts": "10d",
    "gaussian": "10.1f",
    "elbo": "10.1f",
    "ess": "7.3f",
    "pareto_k": "10.2f",
}


def slopes(county: Tensor, x: Tensor, y: Tensor, num_counties: int) -> None:
    """Centered intercepts and slopes of counties."""
    means = [pyro.sample(name, dist.Normal(0.0, 5.0)) for name in ("mean_intercept", "mean_slope")]
    sds = [pyro.sample(name, dist.HalfNormal(1.0)) for name in ("sd_intercept", "sd_slope")]
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("counties", num_counties):
        intercept = pyro.sample("intercept", dist.Normal(means[0], sds[0]))
        slope = pyro.sample("slope", dist.Normal(means[1], sds[1]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(intercept[county] + slope[county] * x, sigma), obs=y)


def slopes_data(num_counties: int, num_rows: int) -> tuple[Any, ...]:
    """As many rows as asked for, at least one a county."""
    generator = torch.Generator().manual_seed(0)
    noise = partial(torch.randn, generator=generator)
    county = torch.randint(num_counties, (num_rows,), generator=generator)
    county[:num_counties] = torch.arange(num_counties)
    x = torch.randint(2, (num_rows,), generator=generator).float()
    intercept, slope = 1.3 + 0.35 * noise(num_counties), -0.65 + 0.3 * noise(num_counties)
    return county, x, intercept[county] + slope[county] * x + 0.75 * noise(num_rows), num_counties


def groups(y: Tensor) -> None:
    """One plate of normal means."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfNormal(2.0))
    with pyro.plate("groups", len(y)):
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def groups_data(num_groups: int) -> tuple[Any, ...]:
    """A standard deviation of 1 between the groups."""
    generator = torch.Generator().manual_seed(0)
    return (1.0 + 2**0.5 * torch.randn(num_groups, generator=generator),)


#: A model and its data.
TARGETS: dict[str, tuple[Callable[..., None], Callable[[], tuple[Any, ...]]]] = {
    "slopes-85": (slopes, partial(slopes_data, 85, 900)),
    "groups-400": (groups, partial(groups_data, 400)),
    "slopes-400": (slopes, partial(slopes_data, 400, 4000)),
}


def fit(name: str, seed: int, num_steps: int | None) -> Row:
    """One fit."""
    pyro.clear_param_store()
    model, data = TARGETS[name]
    began = time.process_time()
    guide = AutoFlow(model, structure="joint", centering=None)  # by default it follows plates, which is far easier
    vi = VI(guide, num_steps=num_steps, seed=seed, progress_bar=False).run(*data())
    seconds, found, history = time.process_time() - began, vi.diagnostics(), vi.history
    last = history.trace()[: history.rounds[0]][-50:]
    return {
        "target": name,
        "seed": seed,
        "dim": vi.guide.latent_dim,
        "seconds": seconds,
        "steps": found["num_steps"],
        "skipped": found["num_skipped"],
        "restarts": found["num_restarts"],
        "gaussian": float(last.nanmedian()),
        **{key: found[key] for key in ("elbo", "ess", "pareto_k")},
        "outcome": found["outcome"].name,
    }


def printed(row: Row) -> str:
    """A row of the table."""
    return (
        f"{row['target']:12s}{row['seed']:5d}"
        + "".join(f"{row[c]:{f}}" for c, f in COLUMNS.items())
        + f"  {row['outcome']}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", default="slopes-85", help=f"comma-separated, of {', '.join(TARGETS)}")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--num-steps", type=int, default=None, help="of the flow; by default what the schedule takes")
    parser.add_argument("--json", metavar="FILE", help="also write the rows here")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}")
    print(f"{'target':12s}{'seed':>5s}" + "".join(f"{c:>{f.split('.')[0].rstrip('d')}s}" for c, f in COLUMNS.items()))
    rows = []
    for name in given.targets.split(","):
        for seed in range(1, given.seeds + 1):
            rows.append(fit(name, seed, given.num_steps))
            print(printed(rows[-1]), flush=True)
    if given.json:
        with open(given.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
