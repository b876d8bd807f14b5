r"""Ratings of items by users, made on the spot: probabilistic matrix factorisation beside Pyro's ``AutoNormal``.

    python -m benchmarks.ratings [--ratings 1000000] [--users 6000] [--items 4000] [--rank 5] [--guides ours,normal]

Users and items have ``rank`` factors each, whose products, with a mean, are the ratings, with noise of standard
deviation 0.5; 10,000 ratings a step. All of it is standard normal a priori but for the items' factors, of standard
deviation 0.5. Factors may be rotated, so what is compared is what is known of ratings that were held out, 5% as many:
the root mean square error of the posterior's mean beside the noise, and the share of them in 90% intervals of the
predictive distribution. Also sigma's mean and standard deviation, seconds of processor time and the largest memory, of
a process of its own each. ``AutoNormal`` is trained by Adam with steps that fall from 0.02, of which each rating is in
40 at least.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_nflows import VI, AutoFlow

#: The noise, ratings of a step, draws that predictions are made from, and visits of a rating by the normal guide.
NOISE, SIZE, NUM_DRAWS, VISITS = 0.5, 10_000, 100, 40


class Sizes(NamedTuple):
    """Of a data set."""

    ratings: int
    users: int
    items: int
    rank: int


class Ratings(NamedTuple):
    """Who rated what, and how."""

    user: Tensor
    item: Tensor
    y: Tensor


def made(sizes: Sizes, seed: int) -> tuple[Ratings, Ratings]:
    """Ratings to fit, and others."""
    torch.manual_seed(seed)
    p, q = torch.randn(sizes.users, sizes.rank), 0.5 * torch.randn(sizes.items, sizes.rank)
    num = sizes.ratings + sizes.ratings // 20
    user, item = torch.randint(sizes.users, (num,)), torch.randint(sizes.items, (num,))
    y = 3.5 + (p[user] * q[item]).sum(-1) + NOISE * torch.randn(num)
    first, other = slice(sizes.ratings), slice(sizes.ratings, None)
    return tuple(Ratings(user[at], item[at], y[at]) for at in (first, other))  # type: ignore[return-value]


def factorisation(sizes: Sizes, user: Tensor, item: Tensor, y: Tensor) -> None:
    """Users' and items' factors; some of the ratings."""
    mu, sigma = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("users", sizes.users):
        p = pyro.sample("p", dist.Normal(torch.zeros(sizes.rank), 1.0).to_event(1))
    with pyro.plate("items", sizes.items):
        q = pyro.sample("q", dist.Normal(torch.zeros(sizes.rank), 0.5).to_event(1))
    with pyro.plate("ratings", len(y), subsample_size=min(SIZE, len(y))) as i:
        mean = mu + (p[user[i]] * q[item[i]]).sum(-1)
        pyro.sample("y", dist.Normal(mean, sigma), obs=y[i])


def ours(sizes: Sizes, data: Ratings, seed: int) -> tuple[dict[str, Tensor], str]:
    """A fit by ``VI``."""
    vi = VI(AutoFlow(factorisation), seed=seed, progress_bar=False).run(sizes, *data)
    print(vi.verdict(), flush=True)
    return vi.get_samples(NUM_DRAWS), f"{vi.verdict().outcome.name}, {vi.history.num_steps} steps"


def normal(sizes: Sizes, data: Ratings, seed: int) -> tuple[dict[str, Tensor], str]:
    """A fit of Pyro's ``AutoNormal``."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    num = max(2000, VISITS * sizes.ratings // SIZE)
    guide = AutoNormal(factorisation, init_loc_fn=pyro.infer.autoguide.init_to_sample)
    optim = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02}, "gamma": 0.01 ** (1 / num)}
    )
    svi = SVI(factorisation, guide, optim, Trace_ELBO())
    for _ in range(num):
        svi.step(sizes, *data)
        optim.step()
    hidden = pyro.poutine.block(factorisation, expose=["mu", "sigma", "p", "q"])
    with torch.no_grad():
        draws = Predictive(hidden, guide=guide, num_samples=NUM_DRAWS, return_sites=["mu", "sigma", "p", "q"])
        return {
            name: value.squeeze(1) if name in ("mu", "sigma") else value for name, value in draws(sizes, *data).items()
        }, f"{num} steps"


def judged(draws: dict[str, Tensor], other: Ratings) -> str:
    """What draws say of other ratings."""
    total, inside = torch.zeros(len(other.y)), torch.zeros(len(other.y))
    for mu, sigma, p, q in zip(draws["mu"], draws["sigma"], draws["p"], draws["q"]):
        mean = mu + (p[other.user] * q[other.item]).sum(-1)
        total += mean / len(draws["mu"])
        inside += dist.Normal(mean, sigma).cdf(other.y) / len(draws["mu"])
    rmse = float((total - other.y).square().mean().sqrt())
    covered = float(((inside > 0.05) & (inside < 0.95)).float().mean())
    sigma = draws["sigma"]
    return f"{rmse:8.4f}{covered:8.1%}   {float(sigma.mean()):.4f} +- {float(sigma.std()):.4f}"


def fit(guide: str, sizes: Sizes, seed: int) -> str:
    """One fit's row of the table."""
    data, other = made(sizes, seed)
    began = time.process_time()
    draws, said = {"ours": ours, "normal": normal}[guide](sizes, data, seed)
    seconds = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{judged(draws, other)}{seconds:8.0f}{memory:6.1f}  {said}"


def _alone(*args: Any) -> str:
    """In a process of its own, whose memory is then its own too."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(fit, *args).result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("ratings", 1_000_000), ("users", 6000), ("items", 4000), ("rank", 5), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--guides", default="ours,normal")
    options = parser.parse_args(arguments)
    sizes = Sizes(options.ratings, options.users, options.items, options.rank)
    print(f"{sizes}, noise {NOISE}")
    print(f"{'guide':>8}{'seed':>5}{'RMSE':>8}{'in 90%':>8}{'sigma':>19}{'CPU s':>8}{'GB':>6}")
    for guide in options.guides.split(","):
        for seed in range(options.seeds):
            print(f"{guide:>8}{seed:>5}{_alone(guide, sizes, seed)}", flush=True)


if __name__ == "__main__":
    main()
