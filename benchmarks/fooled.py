r"""Can the verdict be fooled at size? Fits of many rows that are bad on purpose, and good ones.

    python -m benchmarks.fooled [--kinds PART] [--cases PART] [--json FILE]

A trained guide is spoiled and judged as a fit that ended there would be, or is bad by how it was trained. A fit is
*wrong* by the draws that ``get_samples()`` gives: where a mean of what is outside of plates is off by more than 0.25
posterior standard deviations, or its standard deviation by more than 20%; where a twentieth of the rows are; or where
one row's mean is off by more than half a standard deviation, or its standard deviation by more than 40%. The truth is
:func:`benchmarks.known_rows.exact`, weighted draws of the Laplace approximation for the regression, and weighted draws
of a long good fit for the intercepts and slopes. A false trust is a wrong fit that is trusted.

``too few steps``      2 to 100 steps
``global's scale``     one latent outside of plates has half or twice its width
``rows' scale``        the rows of a site have half or twice their width
``one row``            one row is moved by 3 sd, or has half or twice its width
``rows cut loose``     rows that do not follow what is outside of their plate
``idle encoder``       rows by an encoder that does not see their data, or sees those of other rows
``subsample scale``    fitted with minibatches' likelihood as it is, or scaled twice
``last minibatches``   moved by a part of a sd or more
``missed mode``        a row with two modes, of which the guide has one
"""

import argparse
import collections
import copy
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import known_rows, minibatches, structure
from benchmarks.known_rows import Rows, Truth
from benchmarks.spoiled import Blind, Spoil, confused, cut, idle, moved, one_row, rows_scaled, scaled, with_data_scaled
from benchmarks.verdicts import TRUSTING
from pyro_nflows import VI, AutoFlow
from pyro_nflows.inference.as_it_is import judged_as_it_is
from pyro_nflows.inference.posterior import Posterior

#: Errors of a mean, in standard deviations, and of a standard deviation, as a share: outside of plates, and of a row.
OFF, ROW_OFF = (0.25, 0.2), (0.5, 0.4)
#: A share of rows that are off by as much as what is outside may not be.
MANY = 0.05
#: The kind of fits that are as they should be.
GOOD = "good"
Row = dict[str, Any]


class Case(NamedTuple):
    """A model with its arguments, its guide, its truth, and the names of what is outside of plates and of rows."""

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    truth: Callable[[], Truth]
    outside: tuple[str, ...] = ("mu", "tau")
    rows: tuple[str, ...] = ("z",)

    def fit(self, seed: int = 0, num_steps: int | None = None) -> VI:
        """A fit by ``VI``, with default settings but for the number of steps."""
        return VI(AutoFlow(self.model), seed=seed, num_steps=num_steps, progress_bar=False).run(*self.args)


def groups(name: str, rows: Rows, size: int | None = None) -> Case:
    """Rows of a hierarchy whose posterior is known."""
    return Case(name, known_rows.model, (rows, size), cache(partial(known_rows.exact, rows)))


def counties(num: int) -> Case:
    """Intercepts and slopes; no truth but that of a long fit."""
    chosen = structure.case(f"radon_{num}")

    def truth() -> Truth:
        vi = VI(AutoFlow(chosen.model), seed=100, num_steps=4000, progress_bar=False).run(*chosen.args)
        return moments(vi.posterior.get_samples(len(vi.log_weight), resample=True))

    outside = ("mu_a", "mu_b", "s_a", "s_b", "s")
    return Case(f"counties {num}", chosen.model, chosen.args, cache(truth), outside, ("a", "b"))


def regression(num_rows: int, dim: int, size: int) -> Case:
    """A likelihood that is subsampled."""
    x, y = minibatches.regression(num_rows, dim)
    truth = cache(lambda: {"w": minibatches.reference(x, y)})
    return Case(f"regression {num_rows}", minibatches.subsampled(size), (x, y), truth, ("w",), ())


CASES = {
    case.name: case
    for case in (
        groups("joint 40", Rows.simulated(40, 1.0)),
        groups("plates 100", Rows.simulated(100, 1.0)),
        groups("plates 400", Rows.simulated(400, 0.5)),
        counties(60),
        groups("minibatch 500", Rows.simulated(500, 0.3, 0.7), 100),
        regression(4000, 5, 200),
    )
}
TWO_MODES = {
    case.name: case
    for case in (
        groups("joint 40, a sign", Rows.simulated(40, 0.5, 2.0, (7,))),
        groups("plates 100, a sign", Rows.simulated(100, 0.5, 2.0, (7,))),
        groups("plates 300, 3 signs", Rows.simulated(300, 0.5, 2.0, (7, 50, 200))),
        groups("minibatch 300, a sign", Rows.simulated(300, 0.5, 2.0, (7,)), 100),
        groups("minibatch 300, 9 signs", Rows.simulated(300, 0.5, 2.0, tuple(range(9))), 100),
    )
}


def unconstrained(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """With logarithms of scales."""
    scales = ("tau", "s_a", "s_b", "s")
    return {name: (value.log() if name in scales else value).double() for name, value in samples.items()}


def moments(samples: dict[str, Tensor]) -> Truth:
    """Means and standard deviations of draws."""
    return {name: (value.mean(0), value.std(0)) for name, value in unconstrained(samples).items()}


def errors(case: Case, samples: dict[str, Tensor]) -> Row:
    """Of draws: the worst errors outside of plates, and of rows with the share that is off."""
    found, truth = moments(samples), case.truth()
    off = {
        name: (((mean - truth[name][0]) / truth[name][1]).abs(), (sd / truth[name][1] - 1).abs())
        for name, (mean, sd) in found.items()
    }
    outside = [torch.cat([off[name][i].reshape(-1) for name in case.outside]) for i in range(2)]
    rows = [torch.cat([torch.zeros(1).double(), *(off[n][i].reshape(-1) for n in case.rows)]) for i in range(2)]
    share = float(((rows[0] > OFF[0]) | (rows[1] > OFF[1])).double().mean())
    worst = {"mean": float(outside[0].max()), "sd": float(outside[1].max()), "row mean": float(rows[0].max())}
    worst |= {"row sd": float(rows[1].max()), "rows off": share}
    fine = worst["mean"] <= OFF[0] and worst["sd"] <= OFF[1] and share <= MANY
    return worst | {"wrong": not (fine and worst["row mean"] <= ROW_OFF[0] and worst["row sd"] <= ROW_OFF[1])}


def looked(kind: str, case: Case, what: str, vi: VI | Posterior) -> Row:
    """What a verdict says, and what is true."""
    found = vi.diagnostics()
    row = {"kind": kind, "case": case.name, "what": what, "sentence": str(vi.verdict())}
    row |= {key: found[key] for key in ("ess", "pareto_k", "outcome")}
    try:
        return row | errors(case, vi.get_samples(len(vi.log_weight)))
    except (RuntimeError, ValueError):  # no draw has any weight
        return row | dict.fromkeys(("mean", "sd", "row mean", "row sd", "rows off"), float("nan")) | {"wrong": True}


def judged(guide: AutoFlow, case: Case, spoil: Spoil | None = None) -> Posterior:
    """A copy of a trained guide, spoiled and judged as a fit that ended there would be."""
    guide = copy.deepcopy(guide)
    if spoil is not None:
        layer = guide.plain_layer()
        with torch.no_grad():
            spoil(guide, layer)
        guide.adopt(layer)
    return judged_as_it_is(guide, VI(guide, seed=1, progress_bar=False).plan, (case.args, {}), settles=True)


@cache
def good(name: str, seed: int = 0) -> VI:
    """A good fit."""
    return CASES[name].fit(seed)


def spoils(case: Case) -> Iterator[tuple[str, str, Spoil]]:
    """What is done to a case's trained guide."""
    few = case.name in ("joint 40", "plates 400", "regression 4000")
    for factor in (0.5, 2.0):
        for column in (0,) if few else (0, 1):
            yield "global's scale", f"latent {column} x {factor}", scaled(column, factor)
    if case.rows:
        for factor in (0.5, 2.0):
            yield "rows' scale", f"x {factor}", rows_scaled(case.rows[-1:], factor)
        if case.name != "joint 40":
            yield "rows' scale", "x 1.3", rows_scaled(case.rows[-1:], 1.3)
            yield "rows cut loose", "", cut
        yield "one row", "3 sd", one_row(case.rows[-1], 11, 3.0, 1.0)
        for factor in () if few else (0.5, 2.0):
            yield "one row", f"x {factor}", one_row(case.rows[-1], 11, 0.0, factor)
    if case.name in ("minibatch 500", "regression 4000"):
        for shift in (0.5, 1.0, 3.0):
            yield "last minibatches", f"{shift} sd", moved(shift)


def spoiled_fits(chosen: Sequence[Case]) -> Iterator[Row]:
    """Guides that were good."""
    for case in chosen:
        for kind, what, spoil in spoils(case):
            yield looked(kind, case, what, judged(good(case.name).guide, case, spoil))


def short_fits(chosen: Sequence[Case]) -> Iterator[Row]:
    """Fits of too few steps."""
    for case in chosen:
        for num_steps in (2, 10, 100) if case.name in ("plates 100", "minibatch 500") else (4, 30):
            yield looked("too few steps", case, f"{num_steps} steps", case.fit(num_steps=num_steps))


def encoded_fits(chosen: Sequence[Case]) -> Iterator[Row]:
    """Rows by an encoder: one that sees their data, spoiled, and one that does not look."""
    for case in chosen:
        if case.name != "minibatch 500":
            continue
        guide = encoded(case, True)
        yield looked(GOOD, case, "by an encoder", judged(guide, case))
        for what, change in (("weights zero", idle), ("weights halved", confused)):
            yield looked("idle encoder", case, what, judged(change(guide), case))
        yield looked("idle encoder", case, "does not look", judged(encoded(case, Blind()), case))


def encoded(case: Case, encoder: bool | torch.nn.Module) -> AutoFlow:
    """A guide whose rows have an encoder, trained by ``VI``."""
    guide = AutoFlow(case.model, amortize=encoder)
    VI(guide, seed=0, progress_bar=False).run(*case.args)
    return guide


def mistaken_fits(chosen: Sequence[Case]) -> Iterator[Row]:
    """Guides of a model whose likelihood has another scale, judged by the model as it should be."""
    for case in chosen:
        if case.name not in ("minibatch 500", "regression 4000"):
            continue
        factor = 5.0 if case.rows else 20.0
        for what, scale in (("not scaled", 1 / factor), ("scaled twice", factor)):
            guide = AutoFlow(with_data_scaled(case.model, scale))
            vi = VI(guide, seed=0, progress_bar=False).run(*case.args)
            right = AutoFlow(case.model, centering=vi.guide.centering)
            right.set_up(case.args, {})
            right.adopt(vi.guide.plain_layer())
            yield looked("subsample scale", case, what, judged(right, case))


def one_sided_fits() -> Iterator[Row]:
    """Rows with two modes, fitted as others are."""
    for case in TWO_MODES.values():
        yield looked("missed mode", case, "as fitted", case.fit())


def good_fits(chosen: Sequence[Case], seeds: int) -> Iterator[Row]:
    """As the defaults leave them."""
    for case in chosen:
        for seed in range(seeds):
            yield looked(GOOD, case, f"seed {seed}", good(case.name, seed))


def told(row: Row) -> str:
    """A line about a fit."""
    trusted = row["outcome"] in TRUSTING
    note = "  FALSE TRUST" if trusted and row["wrong"] else "" if trusted or row["wrong"] else "  (refused, yet right)"
    numbers = "".join(f"{row[key]:9.2f}" for key in ("mean", "sd", "row mean", "row sd", "rows off"))
    found = f"{row['ess']:8.3f}{row['pareto_k']:7.2f}  {row['outcome'].name}"
    return f"{row['kind']:18}{row['case']:24}{row['what']:18}{numbers}{found}{note}"


def table(rows: Sequence[Row]) -> str:
    """Kinds of fits against what the verdict says, and what is true."""
    heads = "kind", "fits", "wrong", "trusted, right", "refused, wrong", "refused, yet right", "false trust", "outcomes"
    lines = [f"| {' | '.join(heads)} |"]
    lines.append("|---" * 8 + "|")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        part = [row for row in rows if row["kind"] == kind]
        trusted = [row["outcome"] in TRUSTING for row in part]
        counts = collections.Counter((is_trusted, row["wrong"]) for is_trusted, row in zip(trusted, part))
        outcomes = collections.Counter(row["outcome"].name for row in part)
        said = ", ".join(f"{num} `{name}`" for name, num in outcomes.most_common())
        cells = [kind, len(part), sum(row["wrong"] for row in part), counts[True, False], counts[False, True]]
        cells += [counts[False, False], counts[True, True], said]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print every fit, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="", help="parts of kinds' names, by commas; default all")
    parser.add_argument("--cases", default="", help="part of a case's name; default all")
    parser.add_argument("--seeds", type=int, default=5, help="of good fits, a case")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    began, rows, chosen = time.process_time(), list[Row](), [c for n, c in CASES.items() if options.cases in n]
    groups_of_fits = {
        "few steps": short_fits(chosen),
        "spoiled": spoiled_fits(chosen),
        "encoder": encoded_fits(chosen),
        "subsample scale": mistaken_fits(chosen),
        "missed mode": one_sided_fits(),
        "good": good_fits(chosen, options.seeds),
    }
    for name, fits in groups_of_fits.items():
        if any(part in name for part in options.kinds.split(",")):
            for row in fits:
                rows.append(row)
                print(told(row), flush=True)
    print(f"\n{platform.machine()}, torch {torch.__version__}, {time.process_time() - began:.0f} s of processor time")
    print(f"{sum(row['kind'] != GOOD for row in rows)} bad fits\n\n{table(rows)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump([{**row, "outcome": row["outcome"].name} for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
