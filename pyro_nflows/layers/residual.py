import enum
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import Size, channels, check_sizes, is_number
from ..nets.contraction import Contraction, Linearized
from ..nets.conv_contraction import ConvContraction, LinearizedImage
from ..numerics import largest
from ..system.gradients import pullback
from .base import Exactness, Layer

#: A probability so small that what happens with it is left out: of more terms than are ever computed.
_NEVER = 1e-9
_TOLERANCE = 1e-10


class LogDet(enum.Enum):
    r"""How a residual layer comes by :math:`\log|\det(I + J)|`.

    Example::

        >>> LogDet("exact") is LogDet.EXACT
        True
    """

    #: From the Jacobian, at cost :math:`O(D^3)` a row: right up to hundreds of dimensions, and with no noise.
    EXACT = "exact"
    #: A power series of random length, right on average.
    ROULETTE = "roulette"
    #: A power series of fixed length: off by at most :math:`D L^{n + 1} / ((n + 1) (1 - L))`.
    SERIES = "series"


class Residual(Layer):
    r"""Add a contraction: invertible residual networks [1] and residual flows [2].

    .. math:: y = x + g(x), \qquad \mathrm{Lip}(g) \leq L < 1, \qquad \log w = \log|\det(I + J)|, \quad J = g'(x)

    :math:`g` is a perceptron whose weights are held below their share of :math:`L`. The inverse iterates
    :math:`x \leftarrow y - g(x)` until it moves no more, at most as often as :math:`L` asks for; its derivative is the
    implicit one. It starts at the identity. Where the determinant is too dear, with a random sign vector :math:`v`,

    .. math:: \log\hat w = \sum_{k=1}^{n + N} \frac{(-1)^{k + 1}}{k\, p_k} v^\top J^k v,
        \qquad p_k = P(N \geq k - n), \quad P(N \geq j) = q^{j - 1}

    is right on average, and so is its gradient, which comes from the Neumann series for :math:`(I + J)^{-1}` [2]. Such
    a log-weight is ``UNBIASED``: it serves the ELBO with the total gradient, not importance sampling. Its variance is
    finite where :math:`\|J\|^2 < q`. The random numbers are the layer's noise; rows stop by themselves. Under tracing,
    where numbers cannot be read, all terms that could ever be needed are computed, and most are multiplied by zero.

    For images :math:`g` is convolutional (:class:`~pyro_nflows.nets.ConvContraction`), of 3 by 3, 1 by 1 and 3 by 3
    kernels with two hidden layers.

    :param input_dim: dimension :math:`D`, or an image's ``(C, H, W)``; ``x`` and ``y`` have shape ``(..., D)``,
        ``(..., C H W)`` for images.
    :param hidden_dims: widths of the hidden layers of :math:`g`, or their channels.
    :param lipschitz: :math:`L`.
    :param log_det: a :class:`LogDet` or its value: ``"exact"``, ``"roulette"`` or ``"series"``.
    :param num_terms: :math:`n`, terms that are always taken.
    :param keep: :math:`q`, the probability of one more term.
    :param context_dim: size of a context that :math:`g` reads too; then use ``layer.at(context)``.
    :raises ValueError: if a size is not a positive integer, ``lipschitz`` or ``keep`` is not between 0 and 1, or
        ``log_det`` is none of the three.

    Example::

        >>> y, log_weight = Residual(3)(torch.randn(10, 3))
        >>> layer = Residual(100, log_det="roulette")
        >>> layer.exactness.name, layer.noise_dim
        ('UNBIASED', 101)

    **References**

    [1] J. Behrmann, W. Grathwohl, R. Chen, D. Duvenaud, J. Jacobsen (2019). Invertible Residual Networks.

    [2] R. Chen, J. Behrmann, D. Duvenaud, J. Jacobsen (2019). Residual Flows for Invertible Generative Modeling.
    """

    def __init__(
        self,
        input_dim: Size,
        *,
        hidden_dims: Sequence[int] = (32, 32),
        lipschitz: float = 0.9,
        log_det: LogDet | str = LogDet.EXACT,
        num_terms: int = 4,
        keep: float = 0.5,
        context_dim: int = 0,
    ):
        num_channels, num_pixels = channels("Residual", input_dim)
        super().__init__(num_channels * num_pixels)
        check_sizes("Residual", num_terms=num_terms)
        if not is_number(keep) or not 0 < keep < 1:
            raise ValueError(f"Residual: keep is a probability between 0 and 1, got {keep!r}")
        if log_det not in list(LogDet) and log_det not in [kind.value for kind in LogDet]:
            raise ValueError(f"Residual: log_det must be one of {[kind.value for kind in LogDet]}, got {log_det!r}")
        self.log_det, self.num_terms, self.keep = LogDet(log_det), num_terms, keep
        #: An image's ``(C, H, W)``, or None.
        self.shape = None if isinstance(input_dim, int) else tuple(input_dim)
        self.net: Contraction | ConvContraction
        if isinstance(input_dim, int):
            self.net = Contraction(input_dim, hidden_dims, lipschitz, context_dim)
        else:
            self.net = ConvContraction(input_dim, hidden_dims, lipschitz, context_dim)
        self.num_iterations = math.ceil(math.log(_TOLERANCE) / math.log(lipschitz))
        if self.log_det is not LogDet.EXACT:
            self.exactness = Exactness.UNBIASED
            self.noise_dim = self.inverse_noise_dim = self.input_dim + (self.log_det is LogDet.ROULETTE)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        at = self.net.linearized(x)
        return x + at.value, self._log_weight(at, noise)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weights = self.net.weights()
        with torch.no_grad():
            x, num_steps = self._iterate(y, weights)
        if self.log_det is LogDet.EXACT:
            at = self.net.linearized(x, weights)
            gap = x + at.value - y
            x = x - torch.linalg.solve_ex(self._jacobian(at).detach(), gap[..., None])[0][..., 0]
        else:  # the same steps once more, with their derivatives: a Neumann series
            for _ in range(num_steps):
                x = y - self.net(x, weights)
        return x, self._log_weight(self.net.linearized(x, weights), noise)

    def _iterate(self, y: Tensor, weights: list[Tensor]) -> tuple[Tensor, int]:
        """The fixed point of ``y - g(x)``, and the number of steps that it took."""
        x, tolerance = y, max(_TOLERANCE, 4 * torch.finfo(y.dtype).eps)
        for i in range(self.num_iterations):
            before, x = x, y - self.net(x, weights)
            moves = (x - before).abs() > tolerance * (1 + x.abs())
            if not largest(moves, 1):
                return x, i + 1
        return x, self.num_iterations

    def _jacobian(self, at: Linearized | LinearizedImage) -> Tensor:
        return torch.eye(self.input_dim, dtype=at.value.dtype, device=at.value.device) + at.jacobian()

    def _log_weight(self, at: Linearized | LinearizedImage, noise: Tensor | None) -> Tensor:
        if noise is None:
            return torch.linalg.slogdet(self._jacobian(at))[1]
        probe = torch.where(noise[..., : self.input_dim] < 0, -1.0, 1.0).to(noise)
        with torch.no_grad():
            value, neumann = self._series(at, probe, self._extra_terms(noise))
        slope = (at.pull(neumann) * probe).sum(-1)
        return value + slope - slope.detach()

    def _extra_terms(self, noise: Tensor) -> Tensor:
        """:math:`N`, by the inverse of its distribution function."""
        if self.log_det is LogDet.SERIES:
            return torch.zeros_like(noise[..., 0])
        return 1 + (torch.special.ndtr(noise[..., -1]).log() / math.log(self.keep)).floor()

    def _series(self, at: Linearized | LinearizedImage, probe: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """The log-determinant's series, and the Neumann series times the probe."""
        never = math.ceil(math.log(_NEVER) / math.log(self.keep))
        num_terms = self.num_terms + largest(extra, never if self.log_det is LogDet.ROULETTE else 0)
        power, value, neumann = probe, torch.zeros_like(extra), torch.zeros_like(probe)
        for k in range(1, num_terms + 1):
            late = max(0, k - self.num_terms)
            weight = (extra >= late).to(probe) * ((-1) ** (k + 1) / self.keep ** max(0, late - 1))
            neumann = neumann + weight[..., None] * power
            power = at.pull(power)
            value = value + weight / k * (power * probe).sum(-1)
        return value, neumann

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """By the inverse of the Jacobian, which is the log-determinant's gradient in it too."""
        if self.noise_dim:
            return super().transport(x, y, score, weight)
        weights = [w.detach() for w in self.net.weights()]
        jacobian, pull = pullback(lambda x: self._jacobian(self.net.linearized(x, weights)), x)
        inverse = torch.linalg.inv_ex(jacobian.detach())[0]
        if weight:
            score = score - weight * pull(inverse.mT)[0]
        return (score[..., None, :] @ inverse)[..., 0, :]

    def extra_repr(self) -> str:
        return f"{self.shape or self.input_dim}, log_det={self.log_det.value!r}"
