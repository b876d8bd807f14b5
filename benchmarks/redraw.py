r"""Draw the pictures of the benchmarks again from the tables of the documentation, so that the two say the same.

    python -m benchmarks.redraw [--out docs] [--only posteriors,costs,speed]

``posteriors.png`` and ``costs.png`` are drawn from ``docs/benchmarks.md``, ``speed.png`` from
``docs/how_it_is_fast.md``. The benchmarks themselves draw what they have measured, by ``--plot``.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks import costs, error_plot, speed_plot

DOCS = Path(__file__).parents[1] / "docs"
Row = dict[str, Any]


def table(markdown: str, head: str) -> list[dict[str, str]]:
    """The cells of the first table whose head begins so, row by row, by the names of their columns."""
    first, _, *lines = markdown[markdown.index(f"| {head} |") :].splitlines()
    names = _cells(first)
    return [dict(zip(names, _cells(line), strict=True)) for line in takewhile(lambda line: line.startswith("|"), lines)]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _number(cell: str) -> float:
    return float(cell.replace(",", "").removeprefix("> "))


def posteriors(markdown: str) -> list[Row]:
    """As ``benchmarks.posteriors`` has them."""
    rows: list[Row] = []
    for row in table(markdown, "posterior"):
        limit = int(_number(row["Pyro NUTS s"]))
        error = row["mean error, median (worst)"].split()[0]
        methods: tuple[Row, ...] = (
            {"method": "flow", "cold": _number(row["cold s"]), "mean_error": float(error)},
            {
                "method": "np-nuts",
                "cold": _number(row["NumPyro NUTS s"]),
                "mean_error": float(row["NUTS's mean error"]),
            },
            {"method": "nuts", "error": f"not done after {limit} s", "limit": limit},
        )
        rows += [{"posterior": row["posterior"], **method} for method in methods]
    return rows


def passes(markdown: str) -> list[Row]:
    """As ``benchmarks.costs`` has them; the table has Jacobians of two dimensions only."""
    rows = []
    for row in table(markdown, "layer | $D = 2$"):
        for name, cell in row.items():
            if (found := re.fullmatch(r"\$D = (\d+)\$", name)) and cell:
                dim = int(found[1])
                jacobian = {32: row["Jacobian, 32"], 512: row["512"]}.get(dim)
                rows.append({"layer": row["layer"], "dim": dim, "pass": _number(cell)})
                if jacobian:
                    rows[-1]["jacobian"] = _number(jacobian)
    return rows


def steps(markdown: str) -> list[Row]:
    """As ``benchmarks.speed`` has them."""
    rows: list[Row] = []
    for key, head in (("dim", "latent dimension"), ("particles", "particles | traced")):
        for row in table(markdown, head):
            size, *times = row.items()
            rows.append({key: int(_number(size[1])), **{name.lower(): _number(cell) for name, cell in times if cell}})
    return rows


PICTURES: dict[str, tuple[str, Callable[[str], list[Row]], Callable[[Sequence[Row], str], None]]] = {
    "posteriors": ("benchmarks.md", posteriors, error_plot.plot),
    "costs": ("benchmarks.md", passes, costs.plot),
    "speed": ("how_it_is_fast.md", steps, speed_plot.plot),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS, help="the folder")
    parser.add_argument("--only", default=",".join(PICTURES), help="some of them, with commas between")
    options = parser.parse_args(argv)
    for name in options.only.split(","):
        page, rows_of, plot = PICTURES[name]
        plot(rows_of((DOCS / page).read_text(encoding="utf-8")), str(options.out / f"{name}.png"))


if __name__ == "__main__":
    main()
