r"""Contractions: networks whose Lipschitz constant is below a given number, whatever their parameters are.

Each weight is divided by a bound of its spectral norm where that is too large. The bound is a function of the weight
alone (no power iteration with a state of its own), so the networks are as pure as all others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..checks import check_share, check_widths
from ..numerics import positive
from .context import context_of, take_context

#: The largest slope of ``t * sigmoid(b * t)``, whatever ``b``, rounded up.
_SWISH_SLOPE = 1.1
#: ``b`` at the start. The slope at zero is 0.45 for any ``b``; a larger one comes near to 1 sooner.
SHARPNESS = 3.0


def spectral_bound(matrix: Tensor, num_iterations: int = 5) -> Tensor:
    r"""An upper bound of the spectral norm, differentiable, from squaring the Gram matrix :math:`K` times [1].

    .. math:: \|W\|_2 \leq \|(W^\top W)^{2^K}\|_F^{2^{-K - 1}} \leq \min(W.shape)^{2^{-K - 2}} \|W\|_2

    :param matrix: :math:`W`, ``(M, N)``, or a batch of them, ``(..., M, N)``.
    :param num_iterations: :math:`K`; with 5, the bound of a 32 by 32 matrix is at most 2.8% too large.

    Example::

        >>> spectral_bound(torch.diag(torch.tensor([3.0, 1.0]))).round(decimals=3)
        tensor(3.0000)

    **References**

    [1] B. Delattre, Q. Barthelemy, A. Araujo, A. Allauzen (2023). Efficient Bound of Lipschitz Constant for
    Convolutional Layers by Gram Iteration.
    """
    gram = matrix.mT @ matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix @ matrix.mT
    log_scale = torch.zeros_like(gram[..., 0, 0])
    for _ in range(num_iterations):
        size = _frobenius(gram)
        log_scale = 2 * (log_scale + size.log())
        gram = gram / size[..., None, None]
        gram = gram @ gram
    return ((_frobenius(gram).log() + log_scale) / 2 ** (num_iterations + 1)).exp()


def _frobenius(matrix: Tensor) -> Tensor:
    """The norm, kept from zero, where it has no slope."""
    return (matrix.square().sum((-2, -1)) + 1e-30).sqrt()


class Linearized(NamedTuple):
    """A contraction at a point: its value there, and what its Jacobian is made of."""

    value: Tensor
    weights: list[Tensor]
    slopes: list[Tensor]

    def pull(self, cotangent: Tensor) -> Tensor:
        r""":math:`J^\top u` for rows :math:`u`, ``(..., D)``."""
        for weight, slope in zip(reversed(self.weights[1:]), reversed(self.slopes)):
            cotangent = (cotangent @ weight) * slope
        return cotangent @ self.weights[0]

    def jacobian(self) -> Tensor:
        r""":math:`J`, ``(..., D, D)``."""
        rows = self.weights[0].expand(*self.value.shape[:-1], *self.weights[0].shape)
        for weight, slope in zip(self.weights[1:], self.slopes):
            rows = weight @ (slope[..., None] * rows)
        return rows


class Contraction(nn.Module):
    r"""A perceptron of :math:`D` to :math:`D` dimensions whose Lipschitz constant is at most :math:`L`; zero at first.

    .. math:: g(x) = W_h\, a_m(\cdots a_1(W_1 x + b_1) \cdots) + b_h, \qquad
        a_k(t) = t\, \mathrm{sigmoid}(\beta_k t) / 1.1

    with a learned :math:`\beta_k > 0` in each hidden layer [1].

    :param dim: :math:`D`.
    :param hidden_dims: widths of the hidden layers.
    :param lipschitz: :math:`L`, shared out evenly among the weights.
    :param context_dim: size of a context (see :mod:`pyro_nflows.nets.context`) that the first layer reads, without a
        bound.
    :raises ValueError: if ``lipschitz`` is not between 0 and 1.

    Example::

        >>> Contraction(3, (16,), 0.9)(torch.randn(10, 3)).shape
        torch.Size([10, 3])

    **References**

    [1] R. Chen, J. Behrmann, D. Duvenaud, J. Jacobsen (2019). Residual Flows for Invertible Generative Modeling.
    """

    def __init__(self, dim: int, hidden_dims: Sequence[int], lipschitz: float, context_dim: int = 0):
        super().__init__()
        check_widths("Contraction", hidden_dims)
        check_lipschitz("Contraction", lipschitz)
        take_context(self, context_dim)
        widths = [dim, *hidden_dims, dim]
        self.share = lipschitz ** (1 / (len(widths) - 1))
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.sharpness = nn.Parameter(torch.zeros(len(hidden_dims))) if hidden_dims else None
        self.told = nn.Parameter(torch.zeros(widths[1], context_dim)) if context_dim else None
        with torch.no_grad():
            for parameter in self.hidden[-1].parameters():
                parameter.zero_()

    def weights(self) -> list[Tensor]:
        """The weights, each of a spectral norm of at most its share of the constant."""
        raw = [layer.weight for layer in self.hidden]
        return [w * (self.share / spectral_bound(w).clamp(min=self.share)) for w in raw]  # type: ignore[arg-type]

    def linearized(self, x: Tensor, weights: list[Tensor] | None = None) -> Linearized:
        """The value at ``x``, ``(..., D)``, with its Jacobian; ``weights()`` may be made once for many calls."""
        weights, slopes, h = self.weights() if weights is None else weights, [], x
        for i, (layer, weight) in enumerate(zip(self.hidden, weights)):
            h = linear(h, weight, layer.bias)  # type: ignore[arg-type]
            if i == 0 and self.told is not None:
                h = h + linear(context_of(self), self.told)
            if self.sharpness is not None and i < len(weights) - 1:
                h, slope = swish(h, SHARPNESS * positive(self.sharpness[i]))
                slopes.append(slope)
        return Linearized(h, weights, slopes)

    def forward(self, x: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        return self.linearized(x, weights).value


def check_lipschitz(name: str, lipschitz: float) -> None:
    """Raise a ValueError unless the constant is between 0 and 1.

    Example::

        >>> check_lipschitz("Contraction", 0.9)
    """
    check_share(name, lipschitz=lipschitz)


def swish(t: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    """The activation and its slope, which is at most 1.

    Example::

        >>> swish(torch.zeros(1), torch.tensor(3.0))[1].round(decimals=2)
        tensor([0.4500])
    """
    gate = torch.sigmoid(sharpness * t)
    return t * gate / _SWISH_SLOPE, gate * (1 + sharpness * t * (1 - gate)) / _SWISH_SLOPE
