r"""Element-wise monotone maps with given parameters: what couplings and autoregressive layers apply.

A transformer is three things: how many parameters an element takes, the map, and its inverse. Parameters of zero
are the identity. Both directions return the element-wise :math:`\log dy/dx` of the *forward* map.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .checks import check_positive, check_sizes, is_number
from .numerics import arsinh, log_cosh, positive, soft_bound


class Transformer(Protocol):
    """What couplings and autoregressive layers ask of a map; write one to make a new family."""

    @property
    def num_params(self) -> int:
        """Parameters an element takes."""

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``x (..., D)`` and ``params (..., D, num_params)`` to ``(y, log dy/dx)``, each ``(..., D)``."""

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``y`` to ``(x, log dy/dx)``."""


@dataclass(frozen=True)
class Shift:
    r""":math:`y = x + t`: additive couplings (NICE).

    Example::

        >>> Shift().forward(torch.ones(2), torch.ones(2, 1))
        (tensor([2.0000, 2.0000]), tensor([0.0000, 0.0000]))
    """

    @property
    def num_params(self) -> int:
        return 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x + params[..., 0], torch.zeros_like(x)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return y - params[..., 0], torch.zeros_like(y)


@dataclass(frozen=True)
class Affine:
    r""":math:`y = e^s (x + t)` with the log-scale bounded softly: :math:`s = b \tanh(s' / b)`.

    The shift is in units of ``x``, so that an error in it shrinks with the scale: the narrow part of a hierarchical
    posterior asks for that.

    :param bound: :math:`b`.
    :raises ValueError: if ``bound <= 0``.

    Example::

        >>> Affine().forward(torch.ones(2), torch.zeros(2, 2))
        (tensor([1.0000, 1.0000]), tensor([0.0000, 0.0000]))
    """

    bound: float = 10.0

    def __post_init__(self) -> None:
        check_positive("Affine", bound=self.bound)

    @property
    def num_params(self) -> int:
        return 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_scale(params)
        return (x + shift) * log_scale.exp(), log_scale

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_scale(params)
        return y * (-log_scale).exp() - shift, log_scale

    def _shift_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = params.unbind(-1)
        return shift, soft_bound(log_scale, self.bound)


@dataclass(frozen=True)
class SinhArcsinh:
    r""":math:`y = \sinh(e^{\delta} \operatorname{arsinh} x + \varepsilon)`: skewness and tails by two numbers [1].

    Of a standard normal :math:`x`, :math:`y` is skewed by :math:`\varepsilon`, and its tails are heavier where
    :math:`\delta > 0`. Both are bounded softly.

    :param bound: of :math:`|\delta|` and :math:`|\varepsilon|`.
    :raises ValueError: if ``bound <= 0``.

    Example::

        >>> y, log_slope = SinhArcsinh().forward(torch.tensor([0.0, 1.0]), torch.zeros(2, 2))
        >>> y.allclose(torch.tensor([0.0, 1.0])), log_slope.abs().max().item() < 1e-6
        (True, True)

    **References**

    [1] M. Jones, A. Pewsey (2009). Sinh-arcsinh Distributions.
    """

    bound: float = 2.0

    def __post_init__(self) -> None:
        check_positive("SinhArcsinh", bound=self.bound)

    @property
    def num_params(self) -> int:
        return 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        skew, tail = soft_bound(params, self.bound).unbind(-1)
        before = arsinh(x)
        after = tail.exp() * before + skew
        return _sinh(after), tail + log_cosh(after) - log_cosh(before)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        skew, tail = soft_bound(params, self.bound).unbind(-1)
        after = arsinh(y)
        before = (-tail).exp() * (after - skew)
        return _sinh(before), tail + log_cosh(after) - log_cosh(before)


def _sinh(x: Tensor) -> Tensor:
    return 0.5 * (x.exp() - (-x).exp())


@dataclass(frozen=True)
class RationalQuadratic:
    r"""A monotone rational-quadratic spline on :math:`[-B, B]`, the identity outside [1].

    In bin :math:`k` with corner :math:`(x_k, y_k)`, width :math:`w`, height :math:`h`, slope :math:`s = h / w`,
    end derivatives :math:`d_0, d_1` and :math:`\theta = (x - x_k) / w`,

    .. math:: y = y_k + h\,\frac{s \theta^2 + d_0 \theta (1 - \theta)}{s + (d_0 + d_1 - 2 s)\,\theta (1 - \theta)}.

    :param num_bins: :math:`K`; an element takes :math:`3 K - 1` parameters.
    :param bound: :math:`B`, in units of the base's standard deviation.
    :param min_size: least width and height of a bin as a share of :math:`2 B`, and least derivative.
    :raises ValueError: if ``num_bins < 1``, ``bound <= 0``, or ``min_size`` is not between 0 and ``1 / num_bins``.

    Example::

        >>> y, log_slope = RationalQuadratic().forward(torch.tensor([0.5]), torch.zeros(1, 23))
        >>> y.allclose(torch.tensor([0.5]), atol=1e-4), log_slope.abs().item() < 1e-4
        (True, True)

    **References**

    [1] C. Durkan, A. Bekasov, I. Murray, G. Papamakarios (2019). Neural Spline Flows.
    """

    num_bins: int = 8
    bound: float = 5.0
    min_size: float = 1e-3

    def __post_init__(self) -> None:
        check_sizes("RationalQuadratic", num_bins=self.num_bins)
        check_positive("RationalQuadratic", bound=self.bound)
        if not is_number(self.min_size) or not 0 < self.min_size < 1 / self.num_bins:
            raise ValueError(
                f"RationalQuadratic: min_size must be between 0 and 1 / num_bins = {1 / self.num_bins:.3g}, "
                f"got {self.min_size!r}"
            )

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins - 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.abs() < self.bound
        x0, width, y0, height, d0, d1 = self._bin(x.clamp(-self.bound, self.bound), params, 0)
        theta = ((x.clamp(-self.bound, self.bound) - x0) / width).clamp(0, 1)
        slope, both = height / width, theta * (1 - theta)
        below = slope + (d0 + d1 - 2 * slope) * both
        y = y0 + height * (slope * theta.square() + d0 * both) / below
        log_slope = self._log_slope(theta, slope, below, d0, d1)
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        inside = y.abs() < self.bound
        clamped = y.clamp(-self.bound, self.bound)
        x0, width, y0, height, d0, d1 = self._bin(clamped, params, 1)
        slope, rise = height / width, clamped - y0
        mix = rise * (d0 + d1 - 2 * slope)
        a, b, c = height * (slope - d0) + mix, height * d0 - mix, -slope * rise
        root = (b.square() - 4 * a * c).clamp(min=torch.finfo(y.dtype).tiny).sqrt()
        theta = (2 * c / (-b - root)).clamp(0, 1)
        below = slope + (d0 + d1 - 2 * slope) * theta * (1 - theta)
        log_slope = self._log_slope(theta, slope, below, d0, d1)
        return torch.where(inside, x0 + theta * width, y), torch.where(inside, log_slope, 0.0)

    def _log_slope(self, theta: Tensor, slope: Tensor, below: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
        above = d1 * theta.square() + 2 * slope * theta * (1 - theta) + d0 * (1 - theta).square()
        return 2 * slope.log() + above.log() - 2 * below.log()

    def _knots(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Bin sizes and left corners of the axis whose softmax scores are ``params (..., K)``."""
        share = self.min_size + (1 - self.min_size * self.num_bins) * params.softmax(-1)
        size = 2 * self.bound * share
        return size, size.cumsum(-1) - size - self.bound

    def _bin(self, value: Tensor, params: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Corner, sizes and end derivatives of the bin that holds ``value`` along ``axis`` (0: x, 1: y)."""
        widths, lefts = self._knots(params[..., : self.num_bins])
        heights, bottoms = self._knots(params[..., self.num_bins : 2 * self.num_bins])
        inner = self.min_size + (1 - self.min_size) * positive(params[..., 2 * self.num_bins :])
        one = torch.ones_like(widths[..., :1])
        edges = (lefts, bottoms)[axis]
        index = (value[..., None] >= edges[..., 1:]).sum(-1, keepdim=True)
        start, end = torch.cat([one, inner], -1), torch.cat([inner, one], -1)
        parts = (lefts, widths, bottoms, heights, start, end)
        return tuple(part.gather(-1, index).squeeze(-1) for part in parts)
