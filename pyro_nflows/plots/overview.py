"""The figure of a fit to look at first."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..checks import check_mapping, numbers_in
from ..diagnostics.table import scalar_names
from .fits import BLUE, INK, ORANGE, _pyplot, plot_elbo, plot_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Marginals that are drawn at most, and how many stand side by side.
MOST, WIDTH = 8, 4


def plot_overview(elbos: Tensor, rounds: Sequence[int], log_weight: Tensor, samples: Mapping[str, Tensor]) -> "Figure":
    """The bound at each step, with the ends of the rounds; the weights with k-hat; and marginals of the draws.

    :param elbos: the ELBO of each step; empty where there was no training.
    :param rounds: steps after each round.
    :param log_weight: log-weights, ``(num_samples,)``.
    :param samples: site to ``(num_samples, ...)``.
    :return: a figure.

    Example::

        >>> figure = plot_overview(torch.randn(100), [50, 100], torch.randn(1000) / 9, {"z": torch.randn(1000, 2)})
        >>> [ax.get_title() for ax in figure.axes[2:]]
        ['z[0]', 'z[1]']
    """
    elbos, log_weight = (
        numbers_in("plot_overview", name, value) for name, value in (("elbos", elbos), ("log_weight", log_weight))
    )
    check_mapping("plot_overview", samples=samples)
    scalars = _first({name: numbers_in("plot_overview", f"samples of {name!r}", x) for name, x in samples.items()})
    width = min(WIDTH, max(len(scalars), 1))
    num_rows = math.ceil(len(scalars) / width)
    figure = _pyplot().figure(figsize=(11, 3.4 + 1.9 * num_rows), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3.4, max(1.9 * num_rows, 0.1)])
    course, weights = above.subplots(1, 2)
    if elbos.numel() and not elbos.isfinite().any():
        _words(course, "the bound was not finite at any step")
    else:
        plot_elbo(elbos, ax=course)
    if elbos.isfinite().any():
        for number, end in enumerate(rounds):
            course.axvline(end, color=INK, lw=0.8, ls=":", label=None if number else "end of a round")
        course.legend(loc="lower right", edgecolor="none", framealpha=1.0)
    if bool((log_weight > -math.inf).any()):
        plot_weights(log_weight[log_weight > -math.inf], ax=weights)
    else:
        _words(weights, "no draw has any weight")
    for place, (name, values) in enumerate(scalars):
        ax = below.add_subplot(num_rows, width, place + 1)
        ax.hist(values.double().cpu().numpy(), bins=60, density=True, color=BLUE, histtype="stepfilled")
        ax.axvline(float(values.double().mean()), color=ORANGE, lw=1.2, label="mean")
        ax.set_title(name, fontsize="medium")
        ax.set_yticks([])
        if not place:
            ax.legend(edgecolor="none", fontsize="small")
        ax.spines[["left", "top", "right"]].set_visible(False)
    return figure


def _words(ax: "Axes", words: str) -> None:
    """In the place of a picture."""
    ax.text(0.5, 0.5, words, ha="center", transform=ax.transAxes)
    ax.set_axis_off()


def _first(samples: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The first scalars, each site in turn, so that a long one does not take all places; of as many as can be drawn."""
    columns = {name: value.reshape(len(value), -1) for name, value in samples.items()}
    names = {name: scalar_names(name, value.shape[1:]) for name, value in samples.items()}
    longest = max((value.shape[1] for value in columns.values()), default=0)
    turns = [(i, name) for i in range(min(longest, MOST)) for name in columns if i < columns[name].shape[1]]
    order = list(columns)
    chosen = sorted(turns[:MOST], key=lambda turn: (order.index(turn[1]), turn[0]))
    return [(names[name][i], columns[name][:, i]) for i, name in chosen]
