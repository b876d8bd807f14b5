"""Where mass has been on its way to a posterior: a Gaussian, a mixture of Gaussians, or points."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..numerics import LogDensity
from .fits import BLUE, INK, axes, contours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: States that are drawn, the first and the last among them.
NUM_DRAWN = 8
#: Points whose ways are drawn.
NUM_WAYS = 100


def plot_path(
    path: Sequence[tuple[Tensor, ...]],
    pair: tuple[int, int] = (0, 1),
    *,
    target: LogDensity | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """A Wasserstein gradient flow in the plane of two coordinates: ellipses of some steps, and the ways of the means.

    Each ellipse holds half of a component's mass, the first ones pale and the last one dark; its line is the thicker
    the larger the component's weight is. Of points, the first place is pale and the last one dark, with the ways of
    some.

    :param path: ``vi.history.path`` of a fitted :class:`~pyro_nflows.AutoWasserstein`: weights ``(K,)``, means
        ``(K, D)`` and lower Cholesky factors ``(K, D, D)``. Or that of an :class:`~pyro_nflows.AutoJKO`, or the
        ``path`` of :func:`~pyro_nflows.fit_jko`: points ``(N, D)`` alone.
    :param pair: the coordinates, of the guide's unconstrained space.
    :param target: log density in their plane, ``(num_points, 2) -> (num_points,)``, up to a constant; its contours are
        drawn too.
    :param ax: where to draw, by default a new figure.
    :return: the axes.
    :raises ValueError: if the path is empty, or has no such coordinates.

    Example::

        >>> start = torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]
        >>> end = torch.ones(1), torch.ones(1, 2), 0.1 * torch.eye(2)[None]
        >>> len(plot_path([start, end]).lines)
        3
    """
    if not isinstance(path, Sequence):
        raise TypeError(f"path: got {path!r}, expected vi.history.path, or the path of fit_jko: a list of tuples")
    if not len(path):
        raise ValueError(
            "path: got none, expected vi.history.path of a fitted AutoWasserstein or AutoJKO, or the path of fit_jko. "
            "Other guides have no such way."
        )
    if not all(isinstance(step, tuple | list) and all(isinstance(part, Tensor) for part in step) for step in path):
        raise TypeError("path: expected a list of tuples of tensors, as vi.history.path or the path of fit_jko is")
    dim = path[0][-1].shape[-1]
    if not isinstance(pair, Sequence) or isinstance(pair, str):
        raise TypeError(f"pair: got {pair!r}, expected two coordinates, such as (0, 1)")
    if len(set(pair)) != 2 or not all(0 <= i < dim for i in pair):
        raise ValueError(f"pair: got {tuple(pair)}, expected two different coordinates from 0 to {dim - 1}.")
    ax, pick = axes(square=True) if ax is None else ax, torch.tensor(pair)
    (_points if len(path[0]) == 1 else _mixtures)(path, pick, ax)
    if target is not None:
        ax.margins(0.3)  # contours are of the mass within the axes
        contours(target, ax)
    ax.set(xlabel=f"$z_{{{pair[0] + 1}}}$", ylabel=f"$z_{{{pair[1] + 1}}}$", aspect="equal")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, fontsize="small")
    return ax


def _points(path: Sequence[tuple[Tensor, ...]], pick: Tensor, ax: "Axes") -> None:
    """Points where they began and where they are, and the ways of some of them."""
    places = torch.stack([state[0].detach().double().cpu()[:, pick] for state in path])
    for number in range(min(NUM_WAYS, places.shape[1])):
        label = "ways" if number == 0 else None
        ax.plot(*places[:, number].T.numpy(), "-", color=INK, lw=0.6, alpha=0.5, label=label)
    ax.plot(*places[0].T.numpy(), ".", color=BLUE, ms=3, alpha=0.3, label="at first")
    if len(places) > 1:
        ax.plot(*places[-1].T.numpy(), ".", color=BLUE, ms=4, label="at last")


def _mixtures(path: Sequence[tuple[Tensor, ...]], pick: Tensor, ax: "Axes") -> None:
    """Ellipses of some states, and the ways of the means."""
    at = torch.linspace(0, len(path) - 1, min(NUM_DRAWN, len(path))).round().long().tolist()
    for place, index in enumerate(at):
        weights, locs, scales = (part.detach().double().cpu() for part in path[index])
        covariance = (scales @ scales.mT)[:, pick][:, :, pick]
        last = index == len(path) - 1
        for weight, loc, ellipse in zip(weights, locs[:, pick], _ellipses(covariance)):
            shade = 0.15 + 0.85 * place / max(1, len(at) - 1)
            label = "half of the mass" if last and not loc.sub(locs[0, pick]).any() else None
            x, y = (loc + ellipse).T.numpy()
            width = 0.8 + 1.6 * float(weight) * len(weights) / (1 + len(weights))
            ax.plot(x, y, lw=width, color=BLUE, alpha=shade, label=label)
    means = torch.stack([state[1].detach().double().cpu()[:, pick] for state in path])
    for number in range(means.shape[1]):
        label = "means" if number == 0 else None
        ax.plot(*means[:, number].T.numpy(), ".-", color=INK, ms=3, lw=0.8, label=label)


def _ellipses(covariance: Tensor) -> Tensor:
    """Half of the mass of each, around zero, ``(K, num, 2)``: a radius of sqrt(2 log 2)."""
    turn = torch.linspace(0, 2 * math.pi, 100, dtype=covariance.dtype, device=covariance.device)
    circle = math.sqrt(2 * math.log(2)) * torch.stack([turn.cos(), turn.sin()])
    return (torch.linalg.cholesky(covariance) @ circle).mT
