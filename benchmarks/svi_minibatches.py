r"""Plain ``SVI`` by minibatches with ``guide.optimizer``, against the exact posterior of a Gaussian hierarchy.

    python -m benchmarks.svi_minibatches [--rows table,encoder] [--particles 1,2,8] [--seeds 0,1] [--steps 3000]

Groups of three observations, in shuffled passes: :math:`\mu \sim N(0, 2)`, :math:`z_i \sim N(\mu, 1)` and
:math:`y_{ij} \sim N(z_i, 1)`. Of :math:`\mu`, the error of its mean in standard deviations, and the ratio of its
standard deviation to the exact one; of the groups, the root mean square of these errors; then milliseconds of
processor time a step. A ratio from 20,000 draws has a standard error of 0.005.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_nflows import AutoFlow

#: Groups, groups in a minibatch, observations of a group, and draws of what was fitted.
NUM, SIZE, EACH, NUM_DRAWS = 200, 20, 3, 20_000
#: The step size at first.
LR = 0.03


class Fit(NamedTuple):
    """Errors beside the exact posterior."""

    mean: float
    sd: float
    row_means: float
    row_sds: float


class Mean(nn.Module):
    """An encoder whose features are all that there is to know of a group."""

    def forward(self, y: Tensor) -> Tensor:
        return torch.cat([y.mean(-1, keepdim=True), y.new_ones(len(y), 1)], -1)


def model(y: Tensor, index: Tensor) -> None:
    """The hierarchy, of which a run takes some groups."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
    with pyro.plate("groups", NUM, subsample=index, dim=-2):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        with pyro.plate("members", EACH, dim=-1):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[index])


def passes(num_steps: int) -> Iterator[Tensor]:
    """The groups of each step."""
    for step in range(num_steps):
        if step % (NUM // SIZE) == 0:
            parts = torch.randperm(NUM).split(SIZE)
        yield parts[step % (NUM // SIZE)]


def fitted(kind: str, seed: int, num_particles: int, num_steps: int) -> tuple[Fit, float]:
    """The errors of one loop, and its seconds of processor time a step."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    y = 1.5 + torch.randn(NUM, 1, dtype=torch.float64) + torch.randn(NUM, EACH, dtype=torch.float64)
    guide = AutoFlow(model, amortize=Mean() if kind == "encoder" else False, structure="plates")
    guide(y, torch.arange(SIZE))
    loss = Trace_ELBO(num_particles, vectorize_particles=num_particles > 1)
    svi = SVI(model, guide, guide.optimizer(LR, num_steps), loss)
    began = time.process_time()
    for index in passes(num_steps):
        svi.step(y, index)
    seconds = (time.process_time() - began) / num_steps
    draws = guide.for_rows(y, torch.arange(NUM), num_samples=NUM_DRAWS)
    return errors(y, draws["mu"].reshape(NUM_DRAWS), draws["z"].reshape(NUM_DRAWS, NUM)), seconds


def errors(y: Tensor, mu: Tensor, z: Tensor) -> Fit:
    """Of draws."""
    shrink, precision = EACH / (EACH + 1), NUM / (1 + 1 / EACH) + 1 / 4
    mean, sd = y.mean(-1).sum() / (1 + 1 / EACH) / precision, precision**-0.5
    means = shrink * y.mean(-1) + (1 - shrink) * mean
    row_sd = (1 / (EACH + 1) + (1 - shrink) ** 2 / precision) ** 0.5
    of_rows = [float(e.square().mean().sqrt()) for e in ((z.mean(0) - means) / row_sd, z.std(0) / row_sd - 1)]
    return Fit(float((mu.mean() - mean) / sd), float(mu.std() / sd), *of_rows)


def _listed(kind: Callable[[str], object]) -> Callable[[str], list[object]]:
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_listed(str), default=["table", "encoder"])
    parser.add_argument("--particles", type=_listed(int), default=[1, 2, 8])
    parser.add_argument("--seeds", type=_listed(int), default=[0, 1])
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    print("| rows by | particles | seed | mean of mu | sd of mu | means of rows | sds of rows | ms a step |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in args.rows:
        for num in args.particles:
            for seed in args.seeds:
                fit, seconds = fitted(kind, seed, num, args.steps)
                print(
                    f"| {kind} | {num} | {seed} | {fit.mean:+.3f} | {fit.sd:.3f} | {fit.row_means:.3f} | "
                    f"{fit.row_sds:.1%} | {1e3 * seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
