import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..checks import Size, check_positive, check_sizes, image_shape
from ..nets.index_law import IndexLaw
from ..nets.mlp import MLP, SKIP_RANK, ConvNet, network
from ..numerics import soft_bound, soft_unbound
from ..system.gradients import pullback
from ..transformers import Transformer
from .base import Exactness, Layer, Scored
from .shapes import need_layers, need_transformer

#: The share of each coordinate's variance that the index carries where a flow starts from data.
_SHARE = 0.2


class Passage(NamedTuple):
    """The index, :math:`x'`, :math:`e^{s(u)}`, the noise with which ``inverse`` draws that index, and the rest."""

    u: Tensor
    x_prime: Tensor
    stretch: Tensor
    back: Tensor
    rest: Tensor


class Indexed(Layer):
    r"""A continuously indexed flow (CIF): a bijection for every value of a latent index [1, 2].

    .. math:: u \sim q(u | x), \qquad x' = e^{s(u)} (x + t(u)), \qquad y = f(x')

    with :math:`q(u | x) = N(\mu(x), \mathrm{diag}\,\sigma(x)^2)`, any inner layer :math:`f`, and a reverse model
    :math:`r(u | x')`, also a diagonal Gaussian. The log-weight is

    .. math:: \log w = \log|\det \partial f| + \sum s(u) + \log r(u | x') - \log q(u | x).

    A single bijection cannot make two pieces of one; a continuum of them can, because ``x`` no longer determines
    ``y``. It starts at the inner layer, with :math:`\log r = \log q`. With a ``transformer`` :math:`\tau`, ``q`` and
    ``r`` are no longer Gaussian: :math:`u = \mu(x) + \sigma(x)\, \tau(\epsilon; \theta(x))`. A spline can give them
    several modes, so that the index chooses among pieces, and the bound is tighter.

    :param inner: :math:`f`; its own auxiliary variables, if any, are kept.
    :param index_dim: dimension of ``u``.
    :param hidden_dims: widths of the three tanh networks.
    :param bound: soft bound of :math:`|s|`.
    :param context_dim: size of a context that the three networks read too; then use ``layer.at(context)``.
    :param transformer: :math:`\tau`, an element-wise monotone map such as
        :class:`~pyro_nflows.transformers.RationalQuadratic`; None is the identity.
    :param skip: whether the three networks have a linear part, from which :meth:`initialize` starts the index on data.
    :param shape: the ``(C, H, W)`` of the image that ``x`` is. The index is then an image too, of ``index_dim``
        channels and the same height and width, and the three networks are convolutional: the number of their
        parameters does not depend on that of pixels.
    :raises ValueError: if ``index_dim < 1`` or ``bound <= 0``, or ``shape`` is not that of the inner layer's input.

    Example::

        >>> from pyro_nflows.layers import Coupling
        >>> layer = Indexed(Coupling(3))
        >>> y, log_weight = layer(torch.randn(10, 3), torch.randn(10, layer.noise_dim))

    **References**

    [1] R. Cornish, A. Caterini, G. Deligiannidis, A. Doucet (2020). Relaxing Bijectivity Constraints with
    Continuously Indexed Normalising Flows.

    [2] A. Caterini, R. Cornish, D. Sejdinovic, A. Doucet (2021). Variational Inference with Continuously-Indexed
    Normalizing Flows.
    """

    def __init__(
        self,
        inner: Layer,
        index_dim: int = 1,
        *,
        hidden_dims: Sequence[int] = (10, 10),
        bound: float = 2.0,
        context_dim: int = 0,
        transformer: Transformer | None = None,
        skip: bool = False,
        shape: tuple[int, int, int] | None = None,
    ):
        need_layers("Indexed", inner)
        super().__init__(inner.input_dim, inner.output_dim)
        check_sizes("Indexed", index_dim=index_dim)
        check_positive("Indexed", bound=bound)
        if transformer is not None:
            need_transformer("Indexed", transformer)
        own, of_index = _sizes(inner, index_dim, shape)
        self.inner, self.bound = inner, bound
        self.index_dim = index_dim if isinstance(of_index, int) else math.prod(of_index)
        #: Of the point and of the index: coordinates, or an image's channels.
        self.num_channels = (own if isinstance(own, int) else own[0], index_dim)
        self.exactness = min(Exactness.PROPER, inner.exactness)
        self.noise_dim = self.index_dim + inner.noise_dim
        self.inverse_noise_dim = self.index_dim + inner.inverse_noise_dim
        self.shift_scale = network(of_index, 2 * self.num_channels[0], hidden_dims, skip, context_dim)
        self.index = IndexLaw(own, index_dim, hidden_dims, transformer, context_dim, skip)
        self.reverse = IndexLaw(own, index_dim, hidden_dims, transformer, context_dim, skip)

    @property
    def has_inverse(self) -> bool:
        return self.inner.has_inverse

    def _shares(self, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """The index's share of the noise, and the inner layer's."""
        noise = cast(Tensor, noise)
        return noise[..., : self.index_dim], noise[..., self.index_dim :]

    def _affine(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """:math:`t(u)` and :math:`s(u)`."""
        shift, log_scale = self.shift_scale(u).chunk(2, -1)
        return shift, soft_bound(log_scale, self.bound)

    def _advance(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(u, x')`` and the part of the log-weight that comes before ``r`` and ``f``."""
        u, log_q = self.index.draw(x, eps)
        shift, stretch = self._affine(u)
        return u, stretch.exp() * (x + shift), stretch.sum(-1) - log_q

    def _retreat(self, x_prime: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and the same part of the log-weight, from ``(x', u)``."""
        shift, stretch = self._affine(u)
        x = (-stretch).exp() * x_prime - shift
        return x, stretch.sum(-1) - self.index.log_prob(x, u)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        eps, rest = self._shares(noise)
        u, x_prime, log_weight = self._advance(x, eps)
        log_r = self.reverse.log_prob(x_prime, u)
        y, inner = self.inner(x_prime, rest)
        return y, inner + log_weight + log_r

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        eps, rest = self._shares(noise)
        x_prime, inner = self.inner.inverse(y, rest)
        u, log_r = self.reverse.draw(x_prime, eps)
        x, log_weight = self._retreat(x_prime, u)
        return x, inner + log_weight + log_r

    def passage(self, x: Tensor, noise: Tensor) -> Passage:
        """What ``forward(x, noise)`` does up to the inner layer, and what it takes to come back by the same index."""
        eps, rest = self._shares(noise)
        u, x_prime, _ = self._advance(x, eps)
        return Passage(u, x_prime, self._affine(u)[1].exp(), self.reverse.noise(x_prime, u)[0], rest)

    def initialize(self, y: Tensor) -> Tensor:
        r"""Start from data: the inner layer's own start, and, with ``skip``, an index that matters.

        From networks of zero, neither does the index tell the flow anything nor the flow the index, and no gradient
        says which way to go: trained on data, such an index can stay idle for good. So, coordinate by coordinate
        (for as many as there are indices),

        .. math:: x' = \sqrt{1 - \lambda}\, x + \sqrt{\lambda}\, u, \qquad
            r(u | x') = N(\sqrt{\lambda}\, x', 1 - \lambda),

        with :math:`\lambda = 1/5`, or less where ``bound`` asks for it: where ``x`` is standard normal so is
        :math:`x'`, and :math:`r` is exact. Without ``skip``, a warning.
        """
        head = self.shift_scale.head
        if self.shift_scale.skip is not None:
            self._share_out()
        elif head is not None and not head.any():
            warnings.warn(
                "Indexed: without skip=True its index starts idle on data and may stay idle; make it with skip=True "
                "(flows.cif(..., skip=True))",
                stacklevel=2,
            )
        self.inner.initialize(y)
        return super().initialize(y)

    @torch.no_grad()
    def _share_out(self) -> None:
        """By the networks' linear parts alone: coordinate, or channel, ``i`` shares its variance with index ``i``."""
        num_channels, num_indices = self.num_channels
        num, log_scale = min(num_channels, num_indices), max(0.5 * math.log1p(-_SHARE), -0.9 * self.bound)
        forward, reverse = self.shift_scale, self.reverse.net
        if any(isinstance(net, MLP) and net.narrow is not None for net in (forward, reverse)):
            num = min(num, SKIP_RANK)
        share = -math.expm1(2 * log_scale)
        _first_skips(forward, num).copy_((share / (1 - share)) ** 0.5 * torch.eye(num))
        cast(Tensor, forward.bias)[num_channels:][:num] = soft_unbound(log_scale, self.bound)
        _first_skips(reverse, num).copy_(share**0.5 * torch.eye(num))
        cast(Tensor, reverse.bias)[num_indices:][:num] = soft_unbound(log_scale, IndexLaw.bound)

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        """The pass in the extended space: ``(x, eps)`` to ``(y, u)`` is a bijection."""
        eps, rest = self._shares(noise)
        u, x_prime, log_weight = self._advance(x, eps)
        log_r = self.reverse.log_prob(x_prime, u)
        score, index_score = self._transport_extended(x_prime, u, score, -1.0)
        index_reverse: Tensor | float = 0.0
        if reverse.numel():
            reverse, along = self._transport_extended(x_prime, u, reverse, 0.0)
            here = self._reverse_gradient(x_prime, u)
            reverse, index_reverse = reverse + here[0], ((along + here[1]) * u).sum(-1)
        step = self.inner.scored(x_prime, rest, score, reverse)
        return Scored(
            step.y,
            step.log_weight + log_weight + log_r,
            step.score,
            step.reverse,
            step.index_score + (index_score * u).sum(-1),
            step.index_reverse + index_reverse,
            step.log_r + log_r,
        )

    def _transport_extended(self, x_prime: Tensor, u: Tensor, score: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Gradients in ``x'`` and in ``u`` of a function of ``x`` whose gradient is ``score``."""
        with torch.no_grad():
            (_, log_weight), pull = pullback(self._retreat, x_prime.detach(), u.detach())
            along, index = pull((score, torch.full_like(log_weight, weight)))
        return along.detach(), index.detach()

    def _reverse_gradient(self, x_prime: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of ``log r(u | x')`` in ``x'`` and in ``u``."""
        with torch.no_grad():
            value, pull = pullback(self.reverse.log_prob, x_prime.detach(), u.detach())
            along, index = pull(torch.ones_like(value))
        return along.detach(), index.detach()


def _sizes(inner: Layer, index_dim: int, shape: tuple[int, int, int] | None) -> tuple[Size, Size]:
    """Of the point, and of the index."""
    if shape is None:
        return inner.input_dim, index_dim
    num_channels, height, width = image_shape("Indexed", shape)
    if num_channels * height * width != inner.input_dim:
        raise ValueError(
            f"Indexed: expected the shape (C, H, W) of an image of {inner.input_dim} coordinates, as the inner layer "
            f"takes, got {tuple(shape)}"
        )
    return (num_channels, height, width), (index_dim, height, width)


def _first_skips(net: MLP | ConvNet, num: int) -> Tensor:
    """The weights of the linear part from the first inputs to the first outputs."""
    narrow = net.narrow if isinstance(net, MLP) else None
    if narrow is not None:  # its first features become the first inputs
        narrow[:num] = torch.eye(num, narrow.shape[1])
    return cast(Tensor, net.skip)[:num, :num]
