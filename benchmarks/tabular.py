r"""Continuously indexed flows against the same flows without an index, fitted to small tables.

    python -m benchmarks.tabular [--tables wine,...] [--flows maf,residual] [--folds 5] [--steps N] [--json FILE]

The tables are those of :mod:`benchmarks.tables`. Each pair has equally many parameters, within 2%: the baseline of a
MAF has twice the layers, that of a residual flow is wider. Both see the same minibatches and step sizes, and keep the
parameters at which the rows to choose by had the highest log density (of an indexed flow, the bound). "Bound" is the
mean log density of test rows that training maximises; for an indexed flow "IWAE" is the bound of 100 draws of its
indices, which is nearly the log density itself. Gaussian is one of full covariance, shrunk as Ledoit and Wolf (2004)
say. Differences are of IWAE, paired by row; their standard error is that of the folds' means, so it counts seeds and
rows. Nats, more is better; seconds are of the processor.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.densities import names_of
from benchmarks.likelihood import maximise
from benchmarks.tables import NUM_FOLDS, TABLES, Split, split
from pyro_nflows import flows
from pyro_nflows.engine.runners import Runner
from pyro_nflows.flows import num_params
from pyro_nflows.layers import ActNorm
from pyro_nflows.layers.base import Chain, Layer
from pyro_nflows.numerics import standard_normal_log_prob
from pyro_nflows.transformers import RationalQuadratic

INDEX_DIM, NUM_BINS, BATCH, NUM_DRAWS = 2, 8, 100, 100
#: Steps after which the rows to choose by are looked at, and draws of the indices then.
BLOCK, NUM_VALID_DRAWS = 25, 5


class Family(NamedTuple):
    """A flow, the layers of the baseline and of the indexed one, the latter's width, and how both are trained."""

    build: Callable[..., Layer]
    baseline_layers: int
    indexed_layers: int
    width: int
    steps: int
    rate: float


FAMILIES = {
    "maf": Family(flows.maf, 10, 5, 32, 1500, 1e-3),
    "residual": Family(partial(flows.residual, inverted=True), 3, 3, 32, 900, 2e-3),
}


def indexed(family: Family, dim: int) -> Chain:
    """The continuously indexed flow."""
    inner = partial(family.build, num_layers=family.indexed_layers, hidden_dims=(family.width,) * 2)
    spline = RationalQuadratic(NUM_BINS, 4.0)
    return ended(flows.cif(dim, inner, INDEX_DIM, (family.width,) * 2, spline, skip=True), dim)


def baseline(family: Family, dim: int) -> Chain:
    """The flow without an index whose number of parameters is nearest: its two hidden layers may differ in width."""
    size = num_params(indexed(family, dim))

    def build(first: int, second: int) -> Chain:
        return ended(family.build(dim, num_layers=family.baseline_layers, hidden_dims=(first, second)), dim)

    width = 1
    while num_params(build(width + 1, width + 1)) <= size:
        width += 1
    return min((build(width, width + more) for more in range(8)), key=lambda flow: abs(num_params(flow) - size))


def ended(flow: Layer, dim: int) -> Chain:
    """With an end that data normalise."""
    return Chain(*flow, ActNorm(dim))  # type: ignore[misc]


@torch.no_grad()
def log_probs(flow: Layer, x: Tensor, num_draws: int) -> Tensor:
    """Of rows, one for each draw of the indices, ``(num_draws, N)``; all are equal where there are no indices."""
    found = []
    for rows in x.split(100):
        if not flow.inverse_noise_dim:
            z, log_weight = flow.inverse(rows)
            found.append((standard_normal_log_prob(z) - log_weight).expand(num_draws, -1))
            continue
        noise = torch.randn(num_draws, len(rows), flow.inverse_noise_dim)
        z, log_weight = flow.inverse(rows.expand(num_draws, *rows.shape), noise)
        found.append(standard_normal_log_prob(z) - log_weight)
    return torch.cat(found, 1).double()


class Best:
    """The parameters at which the rows to choose by had the highest log density."""

    def __init__(self, flow: Layer, valid: Tensor):
        self.flow, self.valid, self.value = flow, valid, -math.inf
        self.state: dict[str, Tensor] = {}

    def look(self) -> None:
        """After some steps."""
        value = float(log_probs(self.flow, self.valid, NUM_VALID_DRAWS).mean())
        if value > self.value:
            self.value, self.state = value, {k: v.clone() for k, v in self.flow.state_dict().items()}

    def restore(self) -> None:
        """Go back to them."""
        self.flow.load_state_dict(self.state)


@dataclass
class Row:
    """One fit."""

    table: str
    flow: str
    fold: int
    params: int
    bound: float
    iwae: float
    seconds: float

    def __str__(self) -> str:
        numbers = f"{self.params:>9,}{self.bound:>10.3f}{self.iwae:>10.3f}{self.seconds:>9.1f}"
        return f"{self.table:<10}{self.flow:<14}{self.fold:>5}{numbers}"


HEAD = f"{'table':<10}{'flow':<14}{'fold':>5}{'params':>9}{'bound':>10}{'IWAE':>10}{'seconds':>9}"


@dataclass
class Difference:
    """The indexed flow minus the baseline."""

    table: str
    flow: str
    mean: float
    se: float
    se_of_rows: float

    def __str__(self) -> str:
        better = "CIF" if self.mean > 2 * self.se else self.flow if self.mean < -2 * self.se else "neither"
        name, found = f"CIF - {self.flow}", f"{self.mean:>+24.3f} ± {self.se:.3f} (rows alone {self.se_of_rows:.3f})"
        return f"{self.table:<10}{name:<14}{found}: {better}"


def fit(flow: Layer, data: Split, family: Family, steps: int, seed: int, runner: Runner | None) -> Runner:
    """Train a flow, and leave it where it was best."""
    best = Best(flow, data.valid)
    runner = maximise(
        flow,
        data.train,
        steps,
        batch_size=BATCH,
        rate=family.rate,
        seed=seed,
        runner=runner,
        after_block=best.look,
        block=BLOCK,
    )
    best.restore()
    return runner


def gaussian(data: Split) -> Tensor:
    """Log densities of test rows under a Gaussian of full covariance."""
    from sklearn.covariance import LedoitWolf

    found = LedoitWolf().fit(data.train.double().numpy())
    mean, covariance = torch.as_tensor(found.location_), torch.as_tensor(found.covariance_)
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(data.test.double())


def contest(name: str, flows_of: Sequence[str], folds: int, steps: int | None) -> tuple[list[Row], list[Difference]]:
    """All rows of a table, with the paired differences."""
    table, rows, differences = TABLES[name](), list[Row](), list[Difference]()
    splits = [split(table, fold) for fold in range(folds)]
    for fold, data in enumerate(splits):
        value = float(gaussian(data).mean())
        dim = data.test.shape[1]
        rows.append(Row(name, "Gaussian", fold, dim * (dim + 3) // 2, value, value, 0.0))
        print(rows[-1], flush=True)
    for flow_name in flows_of:
        values: dict[str, list[Tensor]] = {}
        for kind, make in ((flow_name, baseline), (f"CIF-{flow_name}", indexed)):
            runner = None
            for fold, data in enumerate(splits):
                family, began = FAMILIES[flow_name], time.process_time()
                torch.manual_seed(fold)
                flow = make(family, data.test.shape[1])
                runner = fit(flow, data, family, steps or family.steps, fold, runner)
                seconds = time.process_time() - began
                torch.manual_seed(1000 + fold)
                found = log_probs(flow, data.test, NUM_DRAWS)
                iwae = found.logsumexp(0) - math.log(NUM_DRAWS)
                values.setdefault(kind, []).append(iwae)
                bound = float(found.mean())
                rows.append(Row(name, kind, fold, num_params(flow), bound, float(iwae.mean()), seconds))
                print(rows[-1], flush=True)
        differences.append(difference(name, flow_name, *values.values()))
        print(differences[-1], flush=True)
    return rows, differences


def difference(table: str, flow: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Difference:
    """The mean over folds of ``theirs - ours``, its standard error by the folds' means, and that of rows alone."""
    each = [b - a for a, b in zip(ours, theirs)]
    means, rows = torch.stack([part.mean() for part in each]), torch.cat(each)
    se_of_rows = float(rows.std()) / len(rows) ** 0.5
    se = float(means.std()) / len(means) ** 0.5 if len(means) > 1 else se_of_rows
    return Difference(table, flow, float(means.mean()), se, se_of_rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=names_of(TABLES), default=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--flows", type=names_of(FAMILIES), default=list(FAMILIES), help=", ".join(FAMILIES))
    parser.add_argument("--folds", type=int, choices=range(1, NUM_FOLDS + 1), default=NUM_FOLDS)
    parser.add_argument("--steps", type=int, help="of every flow; each family has its own otherwise")
    parser.add_argument("--json", type=Path, help="write the rows here, after each table")
    options = parser.parse_args(argv)
    print(HEAD, flush=True)
    rows, differences = list[Row](), list[Difference]()
    for name in options.tables:
        more = contest(name, options.flows, options.folds, options.steps)
        rows, differences = rows + more[0], differences + more[1]
        if options.json:
            found = {"rows": rows, "differences": differences}
            options.json.write_text(json.dumps({k: [asdict(row) for row in v] for k, v in found.items()}, indent=1))


if __name__ == "__main__":
    main()
