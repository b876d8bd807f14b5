"""The distribution of a latent index given a point: what a continuously indexed flow draws from, in both directions."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..checks import Size, channels
from ..numerics import soft_bound, standard_normal_log_prob
from ..transformers import Transformer
from .mlp import network


class IndexLaw(nn.Module):
    r"""A network whose outputs are the parameters of a distribution of ``u`` given ``x``.

    .. math:: u = \mu(x) + \sigma(x)\, \tau(\epsilon; \theta(x)), \qquad \epsilon \sim N(0, 1)

    Without :math:`\tau` that is a diagonal Gaussian. It starts as a standard normal, whatever ``x``.

    :param size: size of the last dimension of ``x``; or an image's ``(C, H, W)``, of which ``x`` is the flat vector.
        The network is then convolutional.
    :param index_dim: size of the last dimension of ``u``; of an image, how many channels ``u`` has, an image of the
        same height and width.
    :param hidden_dims: widths of the hidden layers.
    :param transformer: :math:`\tau`, an element-wise monotone map, or None.
    :param context_dim: size of a context that is read beside ``x``.
    :param skip: whether a linear function of ``x`` is added.

    Example::

        >>> import torch
        >>> law = IndexLaw(3, 2, (10,))
        >>> u, log_prob = law.draw(torch.randn(10, 3), torch.randn(10, 2))
    """

    #: Soft bound of the log standard deviation.
    bound = 4.0

    def __init__(
        self,
        size: Size,
        index_dim: int,
        hidden_dims: Sequence[int],
        transformer: Transformer | None = None,
        context_dim: int = 0,
        skip: bool = False,
    ):
        shape_params = transformer.num_params if transformer else 0
        super().__init__()
        self.net = network(size, (2 + shape_params) * index_dim, hidden_dims, skip, context_dim)
        _, num_pixels = channels("IndexLaw", size)
        self.index_dim, self.transformer = (index_dim if isinstance(size, int) else index_dim * num_pixels), transformer

    def forward(self, x: Tensor) -> Tensor:
        """``mu``, the log standard deviation before its bound, and the parameters of the transformer, in one."""
        return self.net(x)

    def draw(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """``u`` made of standard normal ``eps (..., index_dim)``, and its log density ``(...)``."""
        loc, log_scale, shape = self._params(x)
        value, log_slope = self.transformer.forward(eps, shape) if self.transformer else (eps, 0.0)
        return loc + log_scale.exp() * value, standard_normal_log_prob(eps) - (log_scale + log_slope).sum(-1)

    def noise(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The ``eps`` of which ``u`` is made, and the log density of ``u``."""
        loc, log_scale, shape = self._params(x)
        value = (u - loc) * (-log_scale).exp()
        eps, log_slope = self.transformer.inverse(value, shape) if self.transformer else (value, 0.0)
        return eps, standard_normal_log_prob(eps) - (log_scale + log_slope).sum(-1)

    def log_prob(self, x: Tensor, u: Tensor) -> Tensor:
        """The log density of ``u`` given ``x``."""
        return self.noise(x, u)[1]

    def _params(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log standard deviation, and the transformer's parameters ``(..., index_dim, num_params)``."""
        loc, log_scale, shape = self(x).tensor_split((self.index_dim, 2 * self.index_dim), -1)
        if self.transformer:
            shape = shape.unflatten(-1, (-1, self.index_dim)).mT
        return loc, soft_bound(log_scale, self.bound), shape
