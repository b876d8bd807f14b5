"""Microseconds a step against the latent dimension and the particles: the picture of the page on speed.

``benchmarks.speed --plot`` draws the rows that it has measured, ``benchmarks.redraw`` those of the documentation.
"""

from collections.abc import Sequence
from typing import Any


def plot(rows: Sequence[dict[str, Any]], file: str) -> None:
    """Cost against dimension and particles."""
    import matplotlib.pyplot as plt

    looks = {"traced": ("#9dc0e6", "traced"), "compiled": ("C0", "compiled"), "numpyro": ("C1", "NumPyro")}
    titles = {"dim": "a Gaussian, 16 particles", "particles": "eight schools"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.7), sharey=True, layout="constrained")
    for ax, (key, title), label in zip(axes, titles.items(), ("latent dimension", "particles")):
        some = [row for row in rows if key in row]
        for name, (color, text) in looks.items():
            if points := [(row[key], row[name]) for row in some if name in row]:
                ax.loglog(*zip(*points), marker="o", color=color, label=text)
        ax.set(xlabel=label, title=title)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("microseconds a step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(file, dpi=150)
