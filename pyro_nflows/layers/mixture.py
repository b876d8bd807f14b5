import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from ..checks import check_sizes
from ..numerics import standard_normal_log_prob
from ..system.gradients import pullback
from ..triangles import scale_tril
from .base import Exactness, Layer, Scored


class Mixture(Layer):
    r"""A discretely indexed affine layer: a component is picked, then its affine map is taken.

    .. math:: k \sim \pi, \qquad y = \mu_k + L_k x, \qquad
        \log w = \log|L_k| + \log r(k | y) - \log \pi_k, \qquad
        r(k | y) \propto \pi_k\, N(y; \mu_k, L_k L_k^\top) .

    On a standard normal base, :math:`r` is the component's exact posterior, :math:`\log \hat q` is the density of the
    mixture whichever component was picked, and the layer is a Gaussian mixture at the base of a flow: for posteriors
    whose modes are known beforehand, or found. On any other base it is a bound, as for
    :class:`~pyro_nflows.layers.Indexed`, whose discrete cousin [1] it is. All components start as the identity.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param num_components: :math:`K`, at least 2.
    :param block_dim: if given, coordinates are taken in blocks of this size, each with a mixture of its own: a
        product of mixtures, of :math:`K^{D / B}` modes.
    :raises ValueError: if ``input_dim < 1`` or ``num_components < 2``, or ``block_dim`` does not divide ``input_dim``.

    Example::

        >>> layer = Mixture(4, 2)
        >>> y, log_weight = layer(torch.randn(10, 4), torch.randn(10, layer.noise_dim))
        >>> Mixture(4, 2, block_dim=1).noise_dim
        4

    **References**

    [1] L. Dinh, J. Sohl-Dickstein, H. Larochelle, R. Pascanu (2019). A RAD Approach to Deep Mixture Models.
    """

    exactness = Exactness.PROPER

    def __init__(self, input_dim: int, num_components: int, block_dim: int | None = None):
        super().__init__(input_dim)
        dim = input_dim if block_dim is None else block_dim
        check_sizes("Mixture", num_components=num_components, block_dim=dim)
        if num_components == 1:
            raise ValueError("Mixture: expected at least 2 components, got 1; use TriangularAffine")
        if input_dim % dim:
            raise ValueError(f"Mixture: expected a block_dim that divides input_dim = {input_dim}, got {dim}")
        self.num_components, self.block_dim = num_components, dim
        self.noise_dim = self.inverse_noise_dim = num_blocks = input_dim // dim
        shape = (num_blocks, num_components)
        self.logits = nn.Parameter(torch.zeros(shape))
        self.loc = nn.Parameter(torch.zeros(*shape, dim))
        self.log_scale = nn.Parameter(torch.zeros(*shape, dim))
        self.lower: Tensor
        if dim > 1:
            self.lower = nn.Parameter(torch.zeros(*shape, dim, dim))
        else:  # one coordinate has nothing below it
            self.register_buffer("lower", torch.zeros(*shape, dim, dim))

    def fan_in(self, name: str) -> int:
        """Numbers of a parameter that are added up: those of a row of a matrix."""
        return self.block_dim if name == "lower" else 1

    def scale_tril(self) -> Tensor:
        """:math:`L_k` of every block, of shape ``(D / B, K, B, B)``."""
        return scale_tril(self.log_scale, self.lower)

    def _pick(self, probs: Tensor, noise: Tensor) -> Tensor:
        """Which component, as ones and zeros: the inverse of the distribution function at the noise."""
        below = 0.5 * torch.erfc(-noise / math.sqrt(2))
        index = (below[..., None] > probs.cumsum(-1)[..., :-1]).sum(-1, keepdim=True)
        return (torch.arange(self.num_components, device=noise.device) == index).to(probs)

    def _densities(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities, weights included, and the base points, in every component."""
        eye = torch.eye(self.block_dim, dtype=y.dtype, device=y.device)
        inverse = solve_triangular(self.scale_tril(), eye, upper=False)
        x = (inverse @ (y[..., None, :] - self.loc)[..., None])[..., 0]
        return self.logits.log_softmax(-1) + standard_normal_log_prob(x) - self.log_scale.sum(-1), x

    def _log_r(self, y: Tensor, picked: Tensor) -> Tensor:
        return (picked * self._densities(y)[0].log_softmax(-1)).sum((-2, -1))

    def _blocks(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.block_dim))

    def _advance(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``y``, the part of the log-weight before ``r``, what was picked, and its matrices."""
        picked = self._pick(self.logits.softmax(-1), noise)
        scale = (picked[..., None, None] * self.scale_tril()).sum(-3)
        y = (picked[..., None] * self.loc).sum(-2) + (scale @ self._blocks(x)[..., None])[..., 0]
        stretch = self.log_scale.sum(-1) - self.logits.log_softmax(-1)
        return y, (picked * stretch).sum((-2, -1)), picked, scale

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_weight, picked, _ = self._advance(x, cast(Tensor, noise))
        return y.flatten(-2), log_weight + self._log_r(y, picked)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_density, x = self._densities(self._blocks(y))
        log_r = log_density.log_softmax(-1)
        picked = self._pick(log_r.exp(), cast(Tensor, noise))
        log_weight = log_r + self.log_scale.sum(-1) - self.logits.log_softmax(-1)
        return (picked[..., None] * x).sum(-2).flatten(-2), (picked * log_weight).sum((-2, -1))

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        """With the components held fixed, the map is affine."""
        y, log_weight, picked, scale = self._advance(x, cast(Tensor, noise))
        log_r = self._log_r(y, picked)
        with torch.no_grad():
            score = self._transported(scale, score)
            if reverse.numel():
                value, pull = pullback(lambda y: self._log_r(y, picked), y.detach())
                reverse = self._transported(scale, reverse) + pull(torch.ones_like(value))[0].flatten(-2)
        return Scored(y.flatten(-2), log_weight + log_r, score.detach(), reverse.detach(), log_r=log_r)

    def _transported(self, scale: Tensor, score: Tensor) -> Tensor:
        return solve_triangular(scale.mT, self._blocks(score)[..., None], upper=True)[..., 0].flatten(-2)

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.num_components}, block_dim={self.block_dim}"
