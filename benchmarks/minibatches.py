r"""Logistic regressions whose data are subsampled: are draws right, and does the verdict say so?

    python -m benchmarks.minibatches [--models 20000x5,10000x20] [--seeds 0,1,2] [--full]

Outcome, effective sample size, k-hat, the largest error of a mean in posterior standard deviations, the smallest and
the largest ratio of standard deviations, and seconds of processor time. The reference is importance sampling from the
Laplace approximation, at whose draws the log density is over all rows. ``--full`` fits the same model without
subsampling too.
"""

import argparse
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow

#: Rows, features and rows of a minibatch.
MODELS = {"20000x5": (20_000, 5, 200), "10000x20": (10_000, 20, 256)}
#: Draws of the reference, and how many of them go together.
NUM_DRAWS, CHUNK = 20_000, 1000


def regression(num_rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Features and labels, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(num_rows, dim, generator=generator), torch.randn(dim, generator=generator)
    return x, torch.bernoulli(torch.sigmoid(x @ w), generator=generator)


def subsampled(size: int | None) -> Callable[[Tensor, Tensor], None]:
    """A model that takes so many rows at a time; all of them for None."""

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        with pyro.plate("data", len(y), subsample_size=size) as i:
            pyro.sample("y", dist.Bernoulli(logits=x[i] @ w), obs=y[i])

    return model


def reference(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior, by weighted draws of its Laplace approximation."""
    x, y = x.double(), y.double()
    w, eye = torch.zeros(x.shape[1]).double(), torch.eye(x.shape[1]).double()
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        precision = (x.T * (p * (1 - p))) @ x + eye
        w = w + torch.linalg.solve(precision, x.T @ (y - p) - w)
    laplace = torch.distributions.MultivariateNormal(w, precision_matrix=precision)
    torch.manual_seed(0)
    draws, parts = laplace.sample(torch.Size([NUM_DRAWS])), []
    for part in draws.split(CHUNK):
        logits = part @ x.T
        likelihood = logits @ y - torch.nn.functional.softplus(logits).sum(1)
        parts.append(likelihood - 0.5 * part.square().sum(1) - laplace.log_prob(part))
    weight = torch.cat(parts).softmax(0)
    mean = weight @ draws
    return mean, (weight @ (draws - mean).square()).sqrt()


def row(name: str, size: int | None, seed: int) -> str:
    """One fit as a row of the table."""
    num_rows, dim, _ = MODELS[name]
    x, y = regression(num_rows, dim)
    began = time.process_time()
    vi = VI(AutoFlow(subsampled(size)), seed=seed, progress_bar=False).run(x, y)
    seconds, found = time.process_time() - began, vi.diagnostics()
    draws, (mean, sd) = vi.get_samples(len(vi.log_weight))["w"].double(), reference(x, y)
    error, ratio = ((draws.mean(0) - mean).abs() / sd).max(), draws.std(0) / sd
    cells = [name, size or "all", seed, f"`{found['outcome'].name}`", f"{found['ess']:.3f}", f"{found['pareto_k']:.2f}"]
    cells += [f"{error:.3f}", f"{ratio.min():.3f} to {ratio.max():.3f}", f"{found['num_steps']:,}", f"{seconds:.0f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    print("| model | rows a step | seed | outcome | ESS | k-hat | mean error | sd ratio | steps | processor s |")
    print("|---" * 10 + "|")
    for name in args.models.split(","):
        for size in [MODELS[name][2], None] if args.full else [MODELS[name][2]]:
            for seed in map(int, args.seeds.split(",")):
                print(row(name, size, seed), flush=True)


if __name__ == "__main__":
    main()
