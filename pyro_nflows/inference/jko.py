r"""``fit_jko``: a density of data by moving them, block by block, to a standard normal."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_positive, check_sizes
from ..engine import Engine
from ..engine.progress import Progress
from ..flows.jko import Blocks, jko
from ..flows.whitened import Whitened
from ..layers import TriangularAffine
from ..model.arrays import converted, is_frame
from ..modes.gaussians import Gaussian
from ..numerics import standard_normal_log_prob
from ..system.exclusive import seeded
from .mass import Mass
from .transport import Movement, Mover, Steps

#: Rows that decide whether a block is taken: at most so many, and at most a fifth of all.
MOST_HELD_OUT = 5000


@dataclass(frozen=True)
class JKOFit:
    """What :func:`~pyro_nflows.fit_jko` returns.

    :param layer: the flow, base to data: ``FlowDistribution(fit.layer)`` is the density.
    :param path: some of the data at the start and after each block, ``(N, D)`` each, in the coordinates in which they
        are moved; :func:`~pyro_nflows.plots.paths.plot_path` draws it.
    :param log_probs: mean log density of held-out rows: of the best Gaussian, and after each block.
    :param distances: how far each block moved the mass, the root of the mean squared distance.
    :param step_sizes: :math:`h` of each block.
    :param arrived: whether a further block would have moved nothing.
    """

    layer: Whitened
    path: list[tuple[Tensor, ...]]
    log_probs: list[float]
    distances: list[float]
    step_sizes: list[float]
    arrived: bool

    def __repr__(self) -> str:
        num = len(self.distances)
        gain = f"{self.log_probs[0]:.3f} to {self.log_probs[-1]:.3f}" if self.log_probs else "not known"
        ended = "a further one would have moved nothing" if self.arrived else "further ones might move more"
        return f"JKOFit({num} block{'s' * (num != 1)}; mean log density {gain}; {ended})"


def fit_jko(
    data: Any,
    flow: Blocks | None = None,
    *,
    num_steps: int = 1000,
    batch_size: int = 512,
    lr: float = 1e-2,
    seed: int | None = None,
    engine: Engine | str | None = None,
    progress_bar: bool = True,
) -> JKOFit:
    r"""Estimate a density by moving the data to a standard normal along a Wasserstein gradient flow [1].

    The data's mean and covariance come first. Then each block :math:`T` is trained by itself on the points :math:`x` as
    the blocks before have left them,

    .. math:: \max_T\; \mathrm E_x \Bigl[ \log N(T(x); 0, I) + \log \lvert \det T'(x) \rvert
        - \tfrac{1}{2h} \lVert T(x) - x \rVert^2 \Bigr],

    until one raises the log density of held-out rows, a fifth of the data and 5,000 at most, by less than 0.001 nats or
    by no more than two standard errors. So that log density is higher after each block. ``Ctrl-C`` ends training, and
    leaves the blocks that are done.

    :param data: ``(N, D)``, of which rows are independent.
    :param flow: of ``flows.jko(D, inverted=True)``, whose options say what the blocks are; its blocks are trained in
        place. By default that flow.
    :param num_steps: of Adam, for each block.
    :param batch_size: rows a step.
    :param lr: the first step size of Adam; it falls to zero along a cosine.
    :param seed: makes the result reproducible.
    :param engine: ``"eager"``, ``"traced"`` or ``"compiled"``; by default the fastest.
    :param progress_bar: whether to show how it goes on, as ``VI`` does.
    :return: the flow, and how the mass moved.
    :raises ValueError: if the data are not a matrix of finite numbers with more than twice as many rows as columns, a
        column depends linearly on the others, or ``flow`` is of another dimension, not inverted, or trained already.
    :raises TypeError: if ``flow`` is not of ``flows.jko``.

    Example::

        >>> from pyro_nflows import FlowDistribution, flows
        >>> x = torch.randn(500, 1).exp()
        >>> flow = flows.jko(1, 1, (4,), inverted=True)
        >>> fit = fit_jko(x, flow, num_steps=50, seed=0, engine="traced", progress_bar=False)
        >>> fit.log_probs[-1] > fit.log_probs[0]
        True
        >>> FlowDistribution(fit.layer).log_prob(x).shape
        torch.Size([500])

    **References**

    [1] C. Xu, X. Cheng, Y. Xie (2023). Normalizing Flow Neural Networks by JKO Scheme.
    """
    check_sizes("fit_jko", num_steps=num_steps, batch_size=batch_size)
    if engine is not None and engine not in [each.value for each in Engine]:
        raise ValueError(f"fit_jko: engine must be one of {[each.value for each in Engine]}, got {engine!r}")
    check_positive("fit_jko", lr=lr)
    x = _rows(data)
    with seeded(int(torch.randint(2**31, ())) if seed is None else seed):
        flow = jko(x.shape[1], inverted=True).to(x) if flow is None else _checked(flow, x)
        layer = Whitened(flow, TriangularAffine(x.shape[1]).to(x))
        with torch.no_grad():
            if flow.whitened:
                _gaussian(x).place(layer)
            start, log_weight = layer.end.inverse(x[torch.randperm(len(x))])
        num_held_out = min(MOST_HELD_OUT, len(x) // 5)
        held_out, mass = (
            Mass(part, part.new_zeros(len(part))) for part in (start[:num_held_out], start[num_held_out:])
        )
        steps = Steps(num_steps, batch_size, lr, None if engine is None else Engine(engine))
        with Progress(progress_bar) as progress, contextlib.suppress(KeyboardInterrupt):
            mover = Mover(standard_normal_log_prob, steps, progress=progress, measure="log density")
            mover.move(flow.in_order(), mass, held_out, flow.step_size)
    return _result(layer, mover.movement, float(log_weight[0]))


def _result(layer: Whitened, moved: Movement, log_weight: float) -> JKOFit:
    bounds = [bound - log_weight for bound in moved.bounds]
    path = [(cloud,) for cloud in moved.clouds]
    return JKOFit(layer, list(path), bounds, moved.distances, moved.step_sizes, moved.arrived)


def _rows(data: Any) -> Tensor:
    """The data as a matrix of floating-point numbers."""
    data = data.to_numpy() if is_frame(data) else data
    try:
        x = torch.as_tensor(converted("fit_jko", "'data'", data, None)).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(data).__name__
        raise TypeError(f"fit_jko: expected data of shape (N, D), an array of numbers, got {kind}") from error
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    if x.dim() != 2 or not 2 * x.shape[-1] < len(x):
        raise ValueError(
            f"fit_jko: expected data of shape (N, D) with more than 2 D rows, got {tuple(x.shape)}; a column alone is "
            "data[:, None]"
        )
    if not x.isfinite().all():
        raise ValueError(f"fit_jko: {int((~x.isfinite()).any(-1).sum())} rows of the data have no finite values")
    return x


def _checked(flow: Any, x: Tensor) -> Blocks:
    if not isinstance(flow, Blocks):
        raise TypeError(f"fit_jko: expected flows.jko({x.shape[1]}, inverted=True), got {type(flow).__name__}")
    if flow.input_dim != x.shape[1]:
        raise ValueError(f"fit_jko: the data have {x.shape[1]} columns, but the flow {flow.input_dim} dimensions")
    if not flow.inverted:
        raise ValueError("fit_jko: the flow goes from the base to the data; use flows.jko(..., inverted=True)")
    if not flow.is_fresh():
        raise ValueError("fit_jko: the flow is trained already; blocks are trained from the identity")
    return flow.to(x)


def _gaussian(x: Tensor) -> Gaussian:
    """The Gaussian of the data."""
    scale, failed = torch.linalg.cholesky_ex(torch.cov(x.T).reshape(x.shape[1], x.shape[1]))
    if failed.any() or bool((scale.diagonal() <= 1e-6 * x.std(0)).any()):
        raise ValueError(
            "fit_jko: a column of the data is constant or depends linearly on the others, so there is no density; "
            "leave it out"
        )
    return Gaussian(x.mean(0), scale)
