r"""Can the verdict be fooled? Fits that are bad on purpose, and what the verdict says of them.

    python -m benchmarks.verdicts [--posteriordb PATH] [--kinds PART] [--moved] [--json FILE]

Every bad fit is compared with the truth: ``error`` is the worst error of a mean, in standard deviations, of the draws
that ``get_samples()`` gives. A verdict that trusts draws whose error exceeds 0.2 is a false "trust"; one that does not
trust a fit of error below 0.05 is a false alarm. Fits of a given number of steps are left as they are; with
``--moved``, chains may move their draws, as those of a fit without. Kinds of bad fit:

``few steps``     5 to 200 steps
``wrong family``  planar, radial, volume-preserving or diagonal Gaussian guides, of full length or so
``missed modes``  two modes of different distance, mass and dimension, and lattices, where the fit keeps to one
``wrong tails``   trained guides made narrower or wider, shifted, or turned
``not finite``    models that return NaN in a part of their space, or now and then
"""

import argparse
import collections
import functools
import itertools
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks import targets
from benchmarks.models import POSTERIORS, add_posteriordb_argument, errors, reference
from pyro_nflows import VI, AutoFlow, AutoNICE, AutoPlanar, AutoRadial
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.inference.as_it_is import judged_as_it_is
from pyro_nflows.inference.posterior import Posterior
from pyro_nflows.layers import LocScale

#: What counts as "trust" where means are concerned.
TRUSTING = tuple(outcome for outcome in Outcome if outcome.is_trusted)
TOO_FAR, CLOSE = 0.2, 0.05
Row = dict[str, Any]
Make = Callable[[Callable[..., Any]], AutoFlow]
#: A model with its arguments, and the worst error of a mean of its draws.
Case = tuple[str, Callable[..., Any], tuple[Any, ...], Callable[[dict[str, Tensor]], float]]


def known(name: str, target: targets.Target) -> Case:
    """A target whose means are known."""

    def error(samples: dict[str, Tensor]) -> float:
        return max(float(((samples[s].mean(0) - target.mean[s]).abs() / target.sd[s]).max()) for s in target.sd)

    return name, target.model, target.args, error


def posterior(part: str, path: str | None) -> Case:
    """A posterior with reference draws."""
    name = next(name for name in POSTERIORS if part in name)
    entry, truth = POSTERIORS[name], reference(name, path)

    def error(samples: dict[str, Tensor]) -> float:
        return errors(entry.to_reference(samples), truth)[0]

    return part, entry.model, entry.args(path), error


def _two_modes(dim: int, apart: float, share: float) -> None:
    locs = torch.stack([torch.zeros(dim), torch.full((dim,), apart / math.sqrt(dim))])
    logits = torch.tensor([1 - share, share]).log()
    pyro.sample("z", dist.MixtureOfDiagNormals(locs, torch.ones(2, dim), logits))


def two_modes(dim: int, apart: float, share: float) -> Case:
    """A second mode some standard deviations away."""
    loc = torch.full((dim,), apart / math.sqrt(dim))
    sd = (1 + share * (1 - share) * loc.square()).sqrt()
    target = targets.Target(_two_modes, (dim, apart, share), 0.0, {"z": share * loc}, {"z": sd})
    return known(f"{dim}-D, {apart:g} sd, {share:.0%}", target)


def _undefined(beyond: float, every: int, count: list[int]) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    count[0] += 1
    bad = (z[..., 0] > beyond) | (every > 0 and count[0] % max(every, 1) == 0)
    pyro.factor("part", torch.where(bad, torch.nan, -0.5 * (z - 1).square().sum(-1)))


def undefined(beyond: float, every: int) -> Case:
    """Not a number beyond a point, or every so often."""
    target = targets.Target(
        _undefined, (beyond, every, [0]), None, {"z": torch.full((3,), 0.5)}, {"z": torch.full((3,), math.sqrt(0.5))}
    )
    return known(f"beyond {beyond:g}, every {every}", target)


class _Diagonal(AutoFlow):
    _full_rank = False


def mean_field(model: Callable[..., Any]) -> AutoFlow:
    """A Gaussian of independent coordinates."""
    return _Diagonal(model, LocScale)


def tampered(vi: VI, shift: float, stretch: float) -> None:
    """Move and scale a trained guide's end."""
    layer: Any = vi.guide.layer.layer  # its end keeps its own units
    with torch.no_grad():
        layer[1].loc += shift * layer[1].log_scale.exp()
        layer[1].log_scale += math.log(stretch)


def look(
    kind: str,
    case: Case,
    make: Make,
    steps: int,
    seed: int,
    tamper: tuple[float, float] | None = None,
    *,
    moved: bool = False,
) -> Row:
    """One bad fit."""
    name, model, args, error = case
    pyro.set_rng_seed(seed)
    detail = {"kind": kind, "case": name, "steps": steps, "seed": seed, "tamper": tamper}
    try:
        vi = VI(make(model), num_steps=steps, seed=seed, progress_bar=False).run(*args)
    except ValueError:  # the model itself refuses: an error that names the site
        return detail | {"error": math.nan, "ess": 0.0, "pareto_k": math.inf, "outcome": Outcome.NOT_FINITE}
    if tamper is not None:
        tampered(vi, *tamper)
        vi = VI(vi.guide, num_steps=1, seed=seed, progress_bar=False).run(*args)
    fit: VI | Posterior = vi
    if moved and not vi.verdict().outcome.is_trusted:
        plan = VI(vi.guide, seed=seed, progress_bar=False).plan
        fit = judged_as_it_is(vi.guide, plan, (args, {}), settles=True)
    found = fit.diagnostics()
    try:
        distance = error(fit.get_samples(len(fit.log_weight)))
    except (RuntimeError, ValueError):  # no draw has any weight
        distance = math.nan
    keys = "ess", "pareto_k", "outcome"
    return detail | {"error": distance, **{k: found[k] for k in keys}}


def bad_fits(path: str | None) -> Iterator[functools.partial[Row]]:
    """All of them, yet to be run."""
    unimodal = [
        posterior(part, path) for part in ("schools_centered", "schools_noncentered", "kidscore", "arK", "sblrc")
    ]
    unimodal += [known("funnel", targets.funnel()), known("banana", targets.banana())]
    for case, steps, seed in itertools.product(unimodal, (5, 20, 60, 200), range(2)):
        yield functools.partial(look, "few steps", case, AutoFlow, steps, seed)
    families: list[Make] = [AutoPlanar, functools.partial(AutoRadial, num_layers=4), AutoNICE, mean_field]
    for case, make, seed in itertools.product(unimodal, families, range(2)):
        yield functools.partial(look, "wrong family", case, make, 800, seed)
    for dim, apart, share in itertools.product((1, 2, 5, 20), (6.0, 10.0, 20.0), (0.5, 0.2, 0.8)):
        yield functools.partial(look, "missed modes", two_modes(dim, apart, share), AutoFlow, 400, 0)
    for side, seed in itertools.product((3, 4), range(3)):
        yield functools.partial(
            look, "missed modes", known(f"lattice {side}", targets.lattice(side)), AutoFlow, 400, seed
        )
    for seed in range(4):
        yield functools.partial(look, "missed modes", known("many wells", targets.many_well(4)), AutoFlow, 400, seed)
    changes = [(0.0, 0.5), (0.0, 0.7), (0.0, 1.5), (0.3, 1.0), (1.0, 1.0), (3.0, 1.0), (0.5, 0.7)]
    for case, change in itertools.product(unimodal, changes):
        yield functools.partial(look, "wrong tails", case, AutoFlow, 800, 0, change)
    for beyond, every in itertools.product((-1.0, 0.0, 0.5, 1.0), (0, 2, 3)):
        yield functools.partial(look, "not finite", undefined(beyond, every), AutoFlow, 200, 0)


def table(rows: Sequence[Row]) -> str:
    """Kinds against outcomes, and the errors that were trusted."""
    outcomes = [o for o in Outcome if any(row["outcome"] is o for row in rows)]
    width = max(len(o.name) for o in outcomes) + 2
    lines = [f"{'kind':<14}" + "".join(f"{o.name:>{width}}" for o in outcomes) + f"{'worst trusted':>16}"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        part = [row for row in rows if row["kind"] == kind]
        count = collections.Counter(row["outcome"] for row in part)
        trusted = [row["error"] for row in part if row["outcome"] in TRUSTING]
        cells = "".join(f"{count[o]:>{width}}" for o in outcomes)
        lines.append(f"{kind:<14}{cells}{max(trusted, default=math.nan):>16.3f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print every bad fit, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_posteriordb_argument(parser)
    parser.add_argument("--kinds", default="", help="part of a kind's name; default all")
    parser.add_argument("--moved", action="store_true", help="let chains move draws that are not trusted")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    began, rows = time.perf_counter(), []
    for fit in bad_fits(options.posteriordb):
        if options.kinds not in fit.args[0]:
            continue
        row = fit(moved=options.moved)
        rows.append(row)
        false = row["outcome"] in TRUSTING and not row["error"] <= TOO_FAR
        alarm = row["outcome"] not in TRUSTING and row["error"] < CLOSE
        note = "  FALSE TRUST" if false else "  (close, yet not trusted)" if alarm else ""
        print(
            f"{row['kind']:<14}{row['case']:<22}{row['steps']:>5}{row['tamper'] or ''!s:>14}"
            f"{row['error']:>9.3f}{row['ess']:>8.3f}{row['pareto_k']:>8.2f}  {row['outcome'].name}{note}",
            flush=True,
        )
    print(f"\n{platform.machine()}, torch {torch.__version__}, {time.perf_counter() - began:.0f} s")
    print(f"{len(rows)} bad fits\n\n{table(rows)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump([{**row, "outcome": row["outcome"].name} for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
