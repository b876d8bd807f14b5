r"""How long does calibration take, and what does sharing a recording save?

    python -m benchmarks.calibration [--simulations 100] [--alone 5] [--json FILE]

Rows, each in seconds: ``SBC``, all simulated data sets side by side on one recording; the same fits one after the
other, each recorded by itself; and ``VI(AutoFlow(model)).run`` on each. The last two are timed on a few data sets and
extrapolated; the first of each is left out, so that compiled code is on disk for all. SBC comes first and pays for the
compiler.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_nflows import ELBO, SBC, VI, AutoFlow
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.replications import Replications
from pyro_nflows.inference.sbc import QUICK

SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])


def eight_schools(sigma: Tensor, y: Tensor) -> None:
    """Noncentered."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta, sigma), obs=y)


def regression(x: Tensor, y: Tensor) -> None:
    """An intercept, three slopes, and the scale of the errors."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("unit", len(y)):
        pyro.sample("y", dist.Normal(a + x @ b, sigma), obs=y)


def each_alone(one: Callable[[int], Any], num: int) -> float:
    """Mean seconds, the first left out."""
    one(0)
    began = time.perf_counter()
    for index in range(1, num + 1):
        one(index)
    return (time.perf_counter() - began) / num


def rows(name: str, model: Callable[..., Any], args: tuple[Tensor, ...], num: int, alone: int) -> list[dict[str, Any]]:
    """Seconds for all data sets, three ways."""
    began = time.perf_counter()
    check = SBC(AutoFlow(model), num_simulations=num, seed=0, progress_bar=False).run(*args)
    found = {"SBC": time.perf_counter() - began}
    simulated = Replications(AutoFlow(model), alone + 1, args, {})

    def apart(index: int) -> None:
        torch.manual_seed(index)
        lone = Replications(AutoFlow(model), 1, args, {})
        next(lone.fits(Plan(ELBO(), QUICK, search=False)))
        lone.close()

    found["one by one"] = num * each_alone(apart, alone)
    found["VI(...).run"] = num * each_alone(
        lambda i: VI(AutoFlow(model), seed=i, progress_bar=False).run(*args[:-1], simulated.data["y"][i]), alone
    )
    quality = {"ess": float(check.ess.median()), "bad": len(check._bad())}
    return [{"model": name, "way": way, "num": num, "seconds": s, **quality} for way, s in found.items()]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--alone", type=int, default=5, help="data sets on which the other ways are timed")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    models = {
        "eight schools": (eight_schools, (SIGMA.double(), torch.zeros(8))),
        "regression": (regression, (torch.randn(50, 3, generator=generator), torch.zeros(50))),
    }
    print(
        f"{platform.machine()}, torch {torch.__version__}\n\n{'model':<16}{'way':<14}{'data sets':>10}{'seconds':>10}"
    )
    found = []
    for name, (model, args) in models.items():
        for row in rows(name, model, args, options.simulations, options.alone):
            found.append(row)
            print(f"{row['model']:<16}{row['way']:<14}{row['num']:>10}{row['seconds']:>10.1f}", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
