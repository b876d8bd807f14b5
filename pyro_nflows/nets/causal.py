"""What the networks of autoregressive flows over positions have in common: what they read, and their heads."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from ..checks import check_sizes
from ..system.shapes import broadcast_shapes
from .recurrence import Recurrence, run

#: How many of the last positions a network also reads linearly, so that linear dependence on them is exact.
NUM_LAGS = 2


class PositionNet(Protocol):
    """What a layer over positions asks of its network: parameters for all positions at once, and one by one."""

    @property
    def reach(self) -> int | None:
        """The farthest position before its own that a block reads; None for all."""

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x (..., T, D)`` and ``context (..., T, C)`` to ``(..., T, D, num_params)``."""

    def solve(
        self,
        y: Tensor,
        invert: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Position by position, the ``x`` with ``x_t = invert(y_t, block t of self(x))``."""


class CausalNet(nn.Module):
    r"""A network over positions: block :math:`t` reads positions before :math:`t`, and a context up to :math:`t`.

    .. math:: \theta_t = W\, a(h_t) + b + V (x_{t-1}, x_{t-2}) + U x_t, \qquad
        h = \mathrm{body}(R\,(x_{t-1}, c_t) + r)

    :math:`U` is strictly triangular: coordinate :math:`d` of a position also reads the coordinates before it. All
    of :math:`W, b, V, U` are zero at the start. Subclasses write the body, for all positions at once (:meth:`body`) and
    one after the other with what they keep of the past (:meth:`begin`, :meth:`advance`).

    :param size: positions :math:`T` and coordinates of each, ``(T, D)``.
    :param num_params: numbers for each coordinate.
    :param width: of :math:`h`.
    :param per_position: whether :math:`b` and :math:`r` are different at each position. Without, no parameter depends
        on the number of positions.
    :param context_dim: numbers in the context of a position.
    :raises ValueError: if a size is not a positive integer, or there are less than two positions.
    """

    #: The farthest position before its own that a block reads; None for all.
    reach: int | None = None
    #: Whether what is kept has the same shapes at all positions; then draws are compiled.
    is_steady = True
    mask_within: Tensor

    def __init__(
        self, size: tuple[int, int], num_params: int, width: int, per_position: bool = False, context_dim: int = 0
    ):
        super().__init__()
        name = type(self).__name__
        num_positions, dim = size
        check_sizes(name, num_positions=num_positions, coordinates=dim, num_params=num_params, width=width)
        if num_positions < 2:
            raise ValueError(f"{name}: expected at least two positions, got size {size}; for one, use Autoregressive")
        self.size, self.num_params, self.width = (num_positions, dim), num_params, width
        self.read = nn.Linear(dim + context_dim, width)
        self.table = nn.Parameter(0.5 * torch.randn(num_positions, width)) if per_position else None
        self.head = nn.Parameter(torch.zeros(dim * num_params, width))
        self.bias = nn.Parameter(torch.zeros(num_positions if per_position else 1, dim * num_params))
        self.skip = nn.Parameter(torch.zeros(dim * num_params, NUM_LAGS * dim))
        self.within = nn.Parameter(torch.zeros(dim * num_params, dim)) if dim > 1 else None
        earlier = torch.arange(dim).repeat_interleave(num_params)[:, None] > torch.arange(dim)
        self.register_buffer("mask_within", earlier.to(torch.get_default_dtype()), persistent=False)

    def fan_in(self, name: str) -> int:
        """How many numbers a parameter's units add up (:mod:`~pyro_nflows.nets.steps`)."""
        return 1 if name in ("table", "bias") else self.get_parameter(name).shape[1]

    def body(self, h: Tensor) -> Tensor:
        """``(..., T, width)`` to the same, row :math:`t` from rows up to :math:`t`."""
        raise NotImplementedError(f"{type(self).__name__} does not define body(h)")

    def begin(self, rows: Tensor) -> list[Tensor]:
        """What is kept of the past before the first position, for rows ``(..., D)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define begin(rows)")

    def advance(self, h: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The next row of :meth:`body`, ``(..., width)``, and what is kept after it."""
        raise NotImplementedError(f"{type(self).__name__} does not define advance(h, past)")

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x (..., T, D)`` and ``context (..., T, C)`` to ``(..., T, D, num_params)``."""
        lags = [shifted(x, lag) for lag in range(1, NUM_LAGS + 1)]
        h = self.body(linear(lags[0], self._weight) + self._told(context))
        flat = linear(silu(h), self.head) + self.bias + linear(torch.cat(lags, -1), self.skip)
        if self.within is not None:
            flat = flat + linear(x, self.within * self.mask_within)
        return flat.unflatten(-1, (self.size[1], self.num_params))

    @property
    def _weight(self) -> Tensor:
        """The weights of what is read of ``x``."""
        return self.read.weight[:, : self.size[1]]

    def _told(self, context: Tensor | None) -> Tensor:
        """What the first layer is told beside ``x``: ``(..., T, width)``, or ``(1, width)`` for all positions."""
        told = self.read.bias[None]
        if context is not None:
            told = told + linear(context, self.read.weight[:, self.size[1] :])
        return told if self.table is None else told + self.table

    def solve(
        self,
        y: Tensor,
        invert: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Position by position, the ``x`` with ``x_t = invert(y_t, block t of self(x))``.

        What the body has made of earlier positions is kept, so that a position costs one step of it.

        :param y: ``(..., T, D)``.
        :param invert: ``(..., 1)`` and ``(..., 1, num_params)`` to two of ``(..., 1)``, of which the first is a
            coordinate of ``x``.
        :return: both, ``(..., T, D)``.
        """
        given, streams_told, streams_bias = [y], context is not None or self.table is not None, len(self.bias) > 1
        if streams_told:
            given.append(self._told(context))
            given[0] = y.expand(*broadcast_shapes(y.shape[:-2], given[-1].shape[:-2]), *y.shape[-2:])
        if streams_bias:
            given.append(self.bias)

        def prepare() -> list[Tensor]:
            within = [] if self.within is None else [(self.within * self.mask_within).unflatten(0, (self.size[1], -1))]
            return [self._weight, self.read.bias, torch.cat([self.head, self.skip], -1), self.bias[0], *within]

        def start(rows: Tensor) -> list[Tensor]:
            return [torch.zeros_like(rows)] * NUM_LAGS + self.begin(rows)

        def step(prepared: list[Tensor], state: list[Tensor], given: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            weight, told, out, bias, *within = prepared
            lags, past = state[:NUM_LAGS], state[NUM_LAGS:]
            told, bias = given[1] if streams_told else told, given[-1] if streams_bias else bias
            h, past = self.advance(_affine(lags[0], weight, told), past)
            flat = _affine(torch.cat([silu(h), *lags], -1), out, bias)
            results = _solve_within(given[0], flat.unflatten(-1, (self.size[1], -1)), next(iter(within), None), invert)
            return [results[0], *lags[:-1], *past], [*results]

        key = (invert, streams_told, streams_bias)
        x, others = run(Recurrence(self, key, prepare, start, step, self.is_steady), given)
        return x, others


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``weight x + bias``, where each row may have a bias of its own."""
    return linear(x, weight, bias) if bias.dim() == 1 else linear(x, weight) + bias


def _solve_within(
    y: Tensor, params: Tensor, within: Tensor | None, invert: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The coordinates of one position, each of which reads those before it."""
    if within is None:
        return invert(y, params)
    results: list[tuple[Tensor, Tensor]] = []
    for d, weight in enumerate(within):
        own = params[..., d, :]
        if d:
            own = own + linear(torch.cat([x for x, _ in results], -1), weight[:, :d])
        results.append(invert(y[..., d : d + 1], own[..., None, :]))
    x, others = (torch.cat(parts, -1) for parts in zip(*results))
    return x, others


def shifted(x: Tensor, by: int) -> Tensor:
    """``x (..., T, D)`` moved to later positions, with zeros where nothing comes from.

    Example::

        >>> shifted(torch.tensor([[1.0], [2.0], [3.0]]), 2)[:, 0]
        tensor([0., 0., 1.])
    """
    if by >= x.shape[-2]:
        return torch.zeros_like(x)
    return torch.cat([torch.zeros_like(x[..., :by, :]), x[..., : x.shape[-2] - by, :]], -2)


def layers_of(modules: nn.ModuleList) -> list[nn.Linear]:
    """The linear layers in a list of them."""
    return [cast(nn.Linear, module) for module in modules]
