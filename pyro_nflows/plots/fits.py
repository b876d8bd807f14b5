"""Pictures of a fit: how it converged, how far to trust its weights, and a density in the plane.

Each function draws on one Matplotlib ``Axes`` and returns it, so pictures can be arranged and restyled. Matplotlib is
imported when the first picture is drawn: ``pip install pyro_nflows[plots]``.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import check_functions, check_sizes, is_number, numbers_in
from ..diagnostics.weights import Tail, ess, fit_tail, k_threshold
from ..numerics import LogDensity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_density", "plot_elbo", "plot_weights"]

BLUE, ORANGE, GREY, INK = "#2a6fbb", "#d9631e", "#b8c4d0", "#30363d"  # told apart by the colour-blind, and in print
MASSES = (0.5, 0.8, 0.95)
#: An axis of weights begins no lower than this times the weight that one draw in a thousand is below.
SPREAD = 0.01


def plot_elbo(
    elbos: Sequence[float] | Tensor,
    *,
    steps: Sequence[int] | Tensor | None = None,
    stop: int | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""The ELBO at each step of a run, its running median, and where the run stopped.

    The axis shows where the run ends up, not how far below it began.

    :param elbos: the ELBO of each step; of losses, as from ``SVI.step``, the negatives. Non-finite steps leave gaps.
    :param steps: the number of each step, by default counted from 0.
    :param stop: the step whose state was kept.
    :param ax: where to draw, by default a new figure.
    :return: the axes; they say so where there are no steps.
    :raises ValueError: if there are values, and none is finite.

    Example::

        >>> ax = plot_elbo([-9.0, -5.0, -3.0, -2.9, -3.1], stop=3)
        >>> ax.get_ylabel()
        'ELBO (nats)'
    """
    values = numbers_in("plot_elbo", "elbos", elbos).detach().to("cpu", torch.float64)
    if values.shape == (0,):  # a fit whose start was right has no steps
        return _without_steps(axes() if ax is None else ax)
    if values.dim() != 1 or not values.isfinite().any():
        raise ValueError(
            f"elbos: got shape {tuple(values.shape)}, {int(values.isfinite().sum())} finite; expected one number a "
            "step, some of them finite. Look for the first step that failed."
        )
    ax = axes() if ax is None else ax
    at = torch.arange(len(values), device="cpu") if steps is None else numbers_in("plot_elbo", "steps", steps).cpu()
    if at.shape != values.shape:
        raise ValueError(f"steps: got shape {tuple(at.shape)}, expected one number for each of {len(values)} values.")
    centers, medians = _running_median(at.double(), values)
    ax.plot(at, values.where(values.isfinite(), math.nan), color=GREY, lw=0.8, label="each step")
    ax.plot(centers, medians, color=BLUE, lw=1.8, label="running median")
    if stop is not None:
        ax.axvline(stop, color=ORANGE, lw=1.2, ls="--", label=f"stop, step {stop:,}")
    ax.set(xlabel="step", ylabel="ELBO (nats)", ylim=_settled(values))
    ax.margins(x=0.02)
    ax.legend(loc="lower right", edgecolor="none", framealpha=1.0)
    return ax


def _without_steps(ax: "Axes") -> "Axes":
    ax.set(xlabel="step", ylabel="ELBO (nats)", xticks=[], yticks=[])
    ax.text(0.5, 0.5, "no steps of training", ha="center", va="center", color=INK, transform=ax.transAxes)
    return ax


def plot_weights(log_weight: Tensor, *, r_eff: float = 1.0, ax: "Axes | None" = None) -> "Axes":
    r"""How heavy the tail of the importance weights is: the share of draws beyond each weight, and the Pareto fit.

    Both axes are logarithmic, so a tail of shape :math:`k` ends in a line of slope :math:`-1/k`: the flatter, the less
    the draws are to be trusted.

    :param log_weight: log-weights, shape ``(num_samples,)``.
    :param r_eff: see :func:`~pyro_nflows.diagnostics.weights.psis`.
    :param ax: where to draw, by default a new figure.
    :return: the axes; its title has :math:`\hat k` and the ESS.

    Example::

        >>> ax = plot_weights(torch.randn(1000) / 2)
        >>> ax.get_xscale(), ax.get_yscale()
        ('log', 'log')
    """
    log_weight = numbers_in("plot_weights", "log_weight", log_weight).detach().double().cpu()
    tail = fit_tail(log_weight, r_eff)
    ax = axes() if ax is None else ax
    # The fit is relative to the largest weight, the picture to the mean.
    largest = (log_weight.max() - log_weight.logsumexp(0)).exp() * len(log_weight)
    weights = (log_weight - log_weight.max()).sort().values.exp() * largest
    beyond = 1 - (torch.arange(len(weights), device="cpu") + 0.5) / len(weights)
    body = len(weights) - len(tail.members)
    ax.loglog(weights[:body], beyond[:body], ".", color=GREY, ms=3, label="draws")
    if tail.k_hat.isfinite():
        x, y = _fitted_tail(tail, len(weights))
        ax.loglog(weights[body:], beyond[body:], ".", color=BLUE, ms=4, label=f"tail of {len(tail.members)}")
        ax.loglog(x * largest, y, color=ORANGE, lw=1.8, label="generalized Pareto fit")
    ax.set(xlabel="importance weight / mean weight", ylabel="share of draws beyond", title=_verdict(log_weight, tail))
    least = float(weights[len(weights) // 1000])
    if weights[0] < SPREAD * least:  # a draw of no weight would take most of the axis
        ax.set_xlim(SPREAD * least, 1.3 * float(weights[-1]))
    _plain_ticks(ax)
    ax.legend(loc="lower left", edgecolor="none", framealpha=1.0)
    return ax


def plot_density(
    log_prob: LogDensity,
    *,
    samples: Tensor | None = None,
    target: LogDensity | None = None,
    limits: tuple[float, float] | tuple[float, float, float, float] = (-4.0, 4.0),
    num_grid: int = 200,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""A density in the plane as shades, a target over it as contours, and draws as dots.

    The contours hold 50%, 80% and 95% of the mass of the target within the limits.

    :param log_prob: log density, ``(num_points, 2) -> (num_points,)``, up to a constant.
    :param samples: draws, shape ``(num_samples, 2)``.
    :param target: log density to compare with, up to a constant.
    :param limits: ``(low, high)`` of both axes, or ``(left, right, bottom, top)``.
    :param num_grid: points along each axis.
    :param ax: where to draw, by default a new figure.
    :return: the axes.
    :raises TypeError: if a density is no function.
    :raises ValueError: if ``samples`` are not in the plane, or a density is not one number a point.

    Example::

        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> ax = plot_density(normal.log_prob, samples=normal.sample((100,)), target=normal.log_prob)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('$z_1$', '$z_2$')
    """
    check_functions("plot_density", log_prob=log_prob, **({} if target is None else {"target": target}))
    check_sizes("plot_density", num_grid=num_grid)
    samples = None if samples is None else numbers_in("plot_density", "samples", samples)
    if samples is not None and (samples.dim() != 2 or samples.shape[1] != 2):
        raise ValueError(
            f"samples: got shape {tuple(samples.shape)}, expected (num_samples, 2). Choose two coordinates first."
        )
    if not isinstance(limits, Sequence) or len(limits) not in (2, 4) or not all(map(is_number, limits)):
        raise ValueError(f"limits: got {limits!r}, expected (low, high) of both axes, or (left, right, bottom, top).")
    ax = axes(square=True) if ax is None else ax
    left, right, bottom, top = limits if len(limits) == 4 else (*limits, *limits)
    x, y = torch.linspace(left, right, num_grid), torch.linspace(bottom, top, num_grid)
    grid = x.cpu().numpy(), y.cpu().numpy()
    ax.pcolormesh(*grid, _on_grid(log_prob, x, y).numpy(), cmap="Blues", shading="gouraud", rasterized=True)
    ax.fill([], [], color=BLUE, label="flow")
    if samples is not None:
        ax.plot(*samples.detach().cpu().T.numpy(), ".", color=INK, ms=2, alpha=0.5, label="draws")
    if target is not None:
        _contours(target, x, y, ax)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
    if samples is not None or target is not None:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, fontsize="small")
    return ax


def contours(target: LogDensity, ax: "Axes", num_grid: int = 200) -> None:
    """Those of a density that hold 50%, 80% and 95% of its mass within the limits that axes have."""
    x, y = (torch.linspace(*limits, num_grid) for limits in (ax.get_xlim(), ax.get_ylim()))
    _contours(target, x, y, ax)


def _contours(target: LogDensity, x: Tensor, y: Tensor, ax: "Axes") -> None:
    above = _mass_above(_on_grid(target, x, y)).numpy()
    ax.contour(x.cpu().numpy(), y.cpu().numpy(), above, levels=MASSES, colors=ORANGE, linewidths=1.2)
    ax.plot([], [], color=ORANGE, lw=1.2, label="target: 50, 80, 95%")


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("Pictures need Matplotlib: pip install pyro_nflows[plots]") from error
    return pyplot


def axes(square: bool = False) -> "Axes":
    """A new figure's."""
    ax = _pyplot().subplots(figsize=(4.2, 4.2) if square else (5.6, 3.6), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(square)
    return ax


def _running_median(at: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Medians of about 500 windows, each a fiftieth of the run, where that is finite."""
    window, stride = max(1, len(values) // 50), max(1, len(values) // 500)
    windows = values.where(values.isfinite(), math.nan).unfold(0, window, stride)
    return at.unfold(0, window, stride).mean(-1), windows.nanmedian(-1).values


def _settled(values: Tensor) -> tuple[float, float]:
    """Limits that show the second half of a run whole, and some of how it got there."""
    finite = values[values.isfinite()]
    later = finite[len(finite) // 2 :]
    low, high = later.quantile(0.005).item(), later.max().item()
    reach = high - low or 1.0
    return max(finite.min().item(), low - 1.5 * reach) - 0.05 * reach, min(
        finite.max().item(), high + reach
    ) + 0.05 * reach


def _fitted_tail(tail: Tail, num_samples: int) -> tuple[Tensor, Tensor]:
    """Weights relative to the largest, and the share of draws that the fitted distribution puts beyond them."""
    x = torch.linspace(0, 1, 200, dtype=torch.float64, device="cpu") ** 2 * tail.exceedances[-1].cpu()
    k, sigma = tail.k_hat.cpu(), tail.sigma.cpu()
    log_beyond = -torch.log1p((k * x / sigma).clamp(min=-1)) / k
    return tail.cutoff.cpu() + x, len(tail.members) / num_samples * log_beyond.exp()


def _verdict(log_weight: Tensor, tail: Tail) -> str:
    threshold = k_threshold(len(log_weight))
    fitted = rf"$\hat k$ = {tail.k_hat:.2f} (trust below {threshold:.2f})"
    return f"{fitted if tail.k_hat.isfinite() else 'no tail to fit'}, ESS = {ess(log_weight):.1%}"


def _plain_ticks(ax: "Axes") -> None:
    """1, 2, 5 along an axis too short for powers of ten alone, and round numbers along one too short for these."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = ax.get_xlim()
    if high < 100 * low:
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if high > 6 * low else MaxNLocator(6))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _on_grid(log_prob: LogDensity, x: Tensor, y: Tensor) -> Tensor:
    points = torch.cartesian_prod(y, x).flip(-1)
    with torch.no_grad():
        values = numbers_in("plot_density", "what a density gives", log_prob(points))
    if values.shape != (len(points),):
        raise ValueError(
            f"plot_density: at points of shape {tuple(points.shape)} a density gave shape {tuple(values.shape)}, "
            f"expected ({len(points)},), one number a point"
        )
    values = values.reshape(len(y), len(x)).cpu()
    return (values - values.max()).exp()


def _mass_above(density: Tensor) -> Tensor:
    """At each point, the share of the mass where the density is higher."""
    values, order = density.flatten().sort(descending=True)
    mass = torch.empty_like(values)
    mass[order] = values.cumsum(0) / values.sum()
    return mass.reshape(density.shape)
