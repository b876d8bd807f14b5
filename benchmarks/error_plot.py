"""Error against seconds: the picture of the benchmarks and of the front page.

``benchmarks.posteriors --plot`` draws the rows that it has measured, ``benchmarks.redraw`` those of the documentation.
"""

from collections.abc import Sequence
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
    seconds = [2, 5, 10, 20, 50, 100, 200, 500]
    ax.set(xlabel="seconds in a fresh process, compiling included", ylabel="worst error of a mean, reference sd")
    ax.set_xlim(2, 500)
    ax.set_xticks(seconds, map(str, seconds))
    ax.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2], ["0.01", "0.02", "0.05", "0.1", "0.2"])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside upper center", ncols=3, frameon=False)
    fig.savefig(file, dpi=150)
