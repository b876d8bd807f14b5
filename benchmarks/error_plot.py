r"""Error against seconds: the picture of the benchmarks and of the front page.

    python -m benchmarks.error_plot [--out docs/posteriors.png]

draws it from the first table of ``docs/benchmarks.md``, so that the two say the same; ``benchmarks.posteriors --plot``
draws the rows that it has measured.
"""

import argparse
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

Row = dict[str, Any]
#: How a picture names a method.
LABELS = {
    "flow": "VI(AutoFlow(model))",
    "np-nuts": "NumPyro's NUTS",
    "nuts": "Pyro's NUTS",
    "normal": "Pyro's AutoMultivariateNormal",
    "iaf": "Pyro's AutoIAFNormal",
    "np-bnaf": "NumPyro's AutoBNAFNormal",
}


def plot(rows: Sequence[Row], file: str) -> None:
    """Error against seconds, a point a fit, beside the noise of the reference; fits that were given up on the right."""
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.9), layout="constrained")
    ax.axhspan(0.02, 0.03, color="#888888", alpha=0.2, lw=0)
    ax.text(490, 0.0245, "noise of the reference", ha="right", va="center", size=9)
    for i, method in enumerate(LABELS):
        found = [row for row in rows if row["method"] == method]
        done = [row for row in found if "error" not in row]
        if done:
            error = [row.get("mean_error_psis", row["mean_error"]) for row in done]
            ax.loglog([row["cold"] for row in done], error, "o", color=f"C{i}", label=LABELS[method], alpha=0.8)
        limits = [row["limit"] for row in found if "limit" in row]
        if limits:
            ax.axvline(min(limits), color=f"C{i}", lw=1, ls="--")
            text = f"{LABELS[method]}: {len(limits)} of {len(found)}\nnot done after {min(limits)} s"
            ax.text(1.05 * min(limits), 0.2, text, va="top", size=9)
    seconds = [5, 10, 20, 50, 100, 200, 500]
    ax.set(xlabel="seconds in a fresh process, compiling included", ylabel="worst error of a mean, reference sd")
    ax.set_xlim(5, 500)
    ax.set_xticks(seconds, map(str, seconds))
    ax.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2], ["0.01", "0.02", "0.05", "0.1", "0.2"])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside upper center", ncols=3, frameon=False)
    fig.savefig(file, dpi=150)


def table(markdown: str) -> list[Row]:
    """The rows of the first table of ``docs/benchmarks.md``, as ``benchmarks.posteriors`` has them."""
    head, _, *lines = markdown[markdown.index("| posterior |") :].splitlines()
    rows: list[Row] = []
    for line in takewhile(lambda line: line.startswith("|"), lines):
        row = dict(zip(_cells(head), _cells(line), strict=True))
        ours, theirs = row["mean error, median (worst)"].split()[0], row["NUTS's mean error"]
        seconds, limit = float(row["cold s"]), int(row["Pyro NUTS s"].removeprefix("> "))
        methods: tuple[Row, ...] = (
            {"method": "flow", "cold": seconds, "mean_error": float(ours)},
            {"method": "np-nuts", "cold": float(row["NumPyro NUTS s"]), "mean_error": float(theirs)},
            {"method": "nuts", "error": f"not done after {limit} s", "limit": limit},
        )
        rows += [{"posterior": row["posterior"], **method} for method in methods]
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    docs = Path(__file__).parents[1] / "docs"
    parser.add_argument("--out", default=str(docs / "posteriors.png"))
    plot(table((docs / "benchmarks.md").read_text(encoding="utf-8")), parser.parse_args(argv).out)


if __name__ == "__main__":
    main()
