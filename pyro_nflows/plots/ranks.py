"""Pictures of ranks: is the truth anywhere among draws with the same probability?

Matplotlib is imported when the first picture is drawn: ``pip install pyro_nflows[plots]``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checks import check_mapping, check_sizes
from ..diagnostics.ranks import check_ranks, count_band, ecdf_band
from .fits import BLUE, GREY, INK, _pyplot, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_calibration", "plot_ecdf", "plot_ranks"]


def plot_ranks(
    ranks: Tensor, num_samples: int, *, num_bins: int | None = None, prob: float = 0.95, ax: "Axes | None" = None
) -> "Axes":
    r"""A histogram of ranks, and the band in which a bar of uniform ranks lies.

    :param ranks: integers from 0 to ``num_samples``, shape ``(num_simulations,)``.
    :param num_samples: among how many draws.
    :param num_bins: bars; as even as possible. By default at most 20, with at least 10 ranks expected in each.
    :param prob: the probability that one bar is within the band; one in twenty is not.
    :param ax: where to draw, by default a new figure.
    :return: the axes.
    :raises ValueError: if a rank is not among those.

    Example::

        >>> ax = plot_ranks(torch.arange(200) % 100, 99)
        >>> ax.get_xlabel()
        'rank among 99 draws'
    """
    ranks = check_ranks(ranks, num_samples)
    check_sizes("plot_ranks", **({} if num_bins is None else {"num_bins": num_bins}))
    num_bins = num_bins or max(2, min(20, len(ranks) // 10, num_samples + 1))
    edges = torch.arange(num_bins + 1, device="cpu") * (num_samples + 1) // num_bins
    counts = ranks.cpu().bincount(minlength=num_samples + 1).cumsum(0)
    heights = torch.cat([counts.new_zeros(1), counts])[edges].diff()
    shares = (edges.diff() / (num_samples + 1)).tolist()
    ax = axes() if ax is None else ax
    bars = (part.tolist() for part in (edges[:-1], heights, edges.diff()))
    ax.bar(*bars, align="edge", color=BLUE, edgecolor="white", lw=0.6, label="ranks")
    bands = torch.tensor([count_band(len(ranks), share, prob) for share in shares], device="cpu")
    low, high = (torch.cat([side, side[-1:]]) for side in bands.T)
    label = f"{prob:.0%} of bars if uniform"
    ax.fill_between(edges, low, high, step="post", color=GREY, alpha=0.5, lw=0, zorder=2, label=label)
    ax.set(xlabel=f"rank among {num_samples} draws", ylabel="simulations", xlim=(0, num_samples + 1))
    ax.set_ylim(0, 1.25 * float(max(heights.max(), high.max())))  # room for the legend
    ax.legend(loc="upper right", ncols=2, frameon=False, fontsize="small")
    return ax


def plot_ecdf(ranks: Tensor, num_samples: int, *, prob: float = 0.95, ax: "Axes | None" = None) -> "Axes":
    r"""How far the ECDF of ranks is from uniform, and the band in which all of it lies if they are.

    A curve above the band on the left and below it on the right is of draws that are too narrow; the other way round,
    of draws too wide; above throughout, too high; below, too low.

    :param ranks: integers from 0 to ``num_samples``, shape ``(num_simulations,)``.
    :param num_samples: among how many draws.
    :param prob: the probability that all of the curve is within the band.
    :param ax: where to draw, by default a new figure.
    :return: the axes.
    :raises ValueError: if a rank is not among those.

    Example::

        >>> ax = plot_ecdf(torch.arange(200) % 100, 99)
        >>> ax.get_ylabel()
        'ECDF - uniform'
    """
    ranks = check_ranks(ranks, num_samples)
    ends = torch.zeros(1, dtype=torch.float64, device="cpu")
    middle = torch.arange(1, num_samples + 1, device="cpu").double() / (num_samples + 1)
    below = ranks.cpu().bincount(minlength=num_samples + 1).cumsum(0)[:-1] / len(ranks) - middle
    at = torch.cat([ends, middle, ends + 1])
    low, high = (torch.cat([ends, side - middle, ends]) for side in ecdf_band(len(ranks), num_samples, prob))
    ax = axes() if ax is None else ax
    ax.fill_between(at, low, high, color=GREY, alpha=0.6, label=f"{prob:.0%} if uniform")
    ax.axhline(0, color=INK, lw=0.6)
    ax.plot(at, torch.cat([ends, below, ends]), color=BLUE, lw=1.8, label="ranks")
    ax.set(xlabel="rank / number of draws", ylabel="ECDF - uniform", xlim=(0, 1))
    ax.legend(loc="lower left", edgecolor="none", framealpha=0.8, fontsize="small")
    return ax


def plot_calibration(ranks: Mapping[str, Tensor], num_samples: int, *, prob: float = 0.95) -> "Figure":
    """Ranks of several parameters, a row each: :func:`plot_ranks` and :func:`plot_ecdf`.

    :param ranks: by parameter, each of shape ``(num_simulations,)``.
    :param num_samples: among how many draws.
    :param prob: of the bands.
    :return: the figure.
    :raises ValueError: if there are none.

    Example::

        >>> figure = plot_calibration({"mu": torch.arange(200) % 100}, 99)
        >>> [ax.get_title() for ax in figure.axes]
        ['mu', 'mu']
    """
    check_mapping("plot_calibration", ranks=ranks)
    if not ranks:
        raise ValueError("plot_calibration: ranks has no parameter, expected sbc.ranks after a run")
    size = (9.0, 2.6 * len(ranks))
    figure, axes = _pyplot().subplots(len(ranks), 2, squeeze=False, figsize=size, layout="constrained")
    for (name, values), (left, right) in zip(ranks.items(), axes):
        plot_ranks(values, num_samples, prob=prob, ax=left).set_title(name)
        plot_ecdf(values, num_samples, prob=prob, ax=right).set_title(name)
    for ax in axes[1:].flat:
        ax.get_legend().remove()
    return figure
