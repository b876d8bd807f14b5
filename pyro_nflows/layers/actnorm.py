import torch
from torch import Tensor, nn

from ..checks import Size, channels
from .base import Layer


class ActNorm(Layer):
    r"""Shift and scale each channel, from a start that data give [1].

    .. math:: y = \mu + e^{s} x, \qquad \log w = \sum_i s_i

    It starts at the identity. ``initialize(y)`` sets :math:`\mu` and :math:`e^s` to the mean and standard deviation of
    a batch, so that ``inverse(y)`` has mean 0 and standard deviation 1; on a flow it does so for every such layer, from
    the data's end to the base's. Afterwards both are trained as any parameters are.

    :param input_dim: dimension :math:`D`, each coordinate a channel; or an image's ``(C, H, W)``. ``x`` and ``y`` have
        shape ``(..., D)``, ``(..., C H W)`` for images.
    :raises ValueError: if a size is not a positive integer; from ``initialize``, if the batch has less than two rows.

    Example::

        >>> layer = ActNorm(3)
        >>> x = layer.initialize(5 + 2 * torch.randn(1000, 3))
        >>> x.mean().abs().item() < 1e-3, layer.loc.mean().round().item()
        (True, 5.0)

    **References**

    [1] D. Kingma, P. Dhariwal (2018). Glow: Generative Flow with Invertible 1x1 Convolutions.
    """

    def __init__(self, input_dim: Size):
        num_channels, self.num_pixels = channels("ActNorm", input_dim)
        super().__init__(num_channels * self.num_pixels)
        self.loc = nn.Parameter(torch.zeros(num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))

    def _spread(self, values: Tensor) -> Tensor:
        """A value for each channel as one for each coordinate."""
        return values if self.num_pixels == 1 else values.repeat_interleave(self.num_pixels)

    def _log_weight(self, x: Tensor) -> Tensor:
        total = self.log_scale.sum()
        return (total if self.num_pixels == 1 else self.num_pixels * total).expand(x.shape[:-1])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.addcmul(self._spread(self.loc), self._spread(self.log_scale.exp()), x), self._log_weight(x)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (y - self._spread(self.loc)) * self._spread((-self.log_scale).exp()), self._log_weight(y)

    @torch.no_grad()
    def initialize(self, y: Tensor) -> Tensor:
        """Normalise a batch: see the class. A channel that does not vary in it keeps the scale 1."""
        if y.numel() < 2 * y.shape[-1]:
            raise ValueError(f"ActNorm.initialize: expected a batch of at least two rows, got {tuple(y.shape)}")
        rows = y.reshape(-1, len(self.loc), self.num_pixels)
        deviation, mean = torch.std_mean(rows, (0, 2))
        self.loc.copy_(mean)
        self.log_scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0).log())
        return self.inverse(y)[0]

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return score * self._spread((-self.log_scale).exp())
