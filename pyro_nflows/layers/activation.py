import torch
from torch import Tensor, nn

from ..checks import Size, channels, is_number, numbers_in
from .base import Layer


class FlowifiedActivation(Layer):
    r"""The leaky rectifier as a flow [1]: positive coordinates pass, negative ones are scaled.

    .. math:: y = x\, a^{[x < 0]}, \qquad \log w = \sum_{x_i < 0} \log a_i

    Its slope jumps, and so does the log-weight: gradients miss the jumps, and training can get stuck. A hyperbola with
    the same two slopes, round over a width :math:`c`, does not:

    .. math:: y = p x + q (\sqrt{x^2 + c^2} - c), \qquad p, q = \tfrac12 (1 \pm a), \qquad
        \log w = \sum \log(p + q x / \sqrt{x^2 + c^2})

    At slope 1, both are the identity.

    :param input_dim: dimension :math:`D`, each coordinate a channel; or an image's ``(C, H, W)``.
    :param slope: :math:`a` at the start, a positive number, or one for each channel.
    :param smoothness: :math:`c`; 0 for the rectifier itself.
    :param trained: whether slopes are trained (``nn.PReLU``) or fixed (``nn.LeakyReLU``).
    :raises ValueError: if a slope is not positive, or ``smoothness`` is negative.

    Example::

        >>> FlowifiedActivation(2, slope=0.5, trained=False)(torch.tensor([-1.0, 1.0]))
        (tensor([-0.5000,  1.0000]), tensor(-0.6931))

    **References**

    [1] B. Máté, S. Klein, T. Golling, F. Fleuret (2022). Flowification: Everything is a Normalizing Flow.
    """

    log_slope: Tensor

    def __init__(self, input_dim: Size, slope: Tensor | float = 1.0, *, smoothness: float = 0.0, trained: bool = True):
        num_channels, self.num_pixels = channels("FlowifiedActivation", input_dim)
        super().__init__(num_channels * self.num_pixels)
        slopes = numbers_in("FlowifiedActivation", "slope", slope).detach()
        if slopes.shape not in ((), (1,), (num_channels,)):
            raise ValueError(
                f"FlowifiedActivation: slope must be a number or a tensor of shape ({num_channels},), got shape "
                f"{tuple(slopes.shape)}"
            )
        if not bool((slopes > 0).all()):
            raise ValueError(f"FlowifiedActivation: expected positive slopes, got {slope}; at 0, nothing can be undone")
        if not is_number(smoothness) or not smoothness >= 0:
            raise ValueError(f"FlowifiedActivation: smoothness must be 0 or a positive number, got {smoothness!r}")
        self.smoothness = smoothness
        log_slope = (torch.zeros(num_channels) + slopes).log()
        if trained:
            self.log_slope = nn.Parameter(log_slope)
        else:
            self.register_buffer("log_slope", log_slope)

    def _slopes(self) -> tuple[Tensor, Tensor, Tensor]:
        """:math:`a`, :math:`p` and :math:`q` of each coordinate."""
        slope = self.log_slope.exp()
        slope = slope.repeat_interleave(self.num_pixels) if self.num_pixels > 1 else slope
        return slope, 0.5 * (1 + slope), 0.5 * (1 - slope)

    def _radius(self, x: Tensor) -> Tensor:
        return (x.square() + self.smoothness**2).sqrt() if self.smoothness else x.abs()

    def _gain(self, x: Tensor) -> Tensor:
        """The map's derivative."""
        slope, p, q = self._slopes()
        return p + q * x / self._radius(x) if self.smoothness else torch.where(x < 0, slope, torch.ones_like(x))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        gain = self._gain(x)
        _, p, q = self._slopes()
        y = p * x + q * (self._radius(x) - self.smoothness) if self.smoothness else gain * x
        return y, gain.log().sum(-1)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.smoothness:
            gain = self._gain(y)
            return y / gain, gain.log().sum(-1)
        slope, p, q = self._slopes()
        shifted = y + q * self.smoothness
        x = (p * shifted - q * (shifted.square() + slope * self.smoothness**2).sqrt()) / slope
        return x, self._gain(x).log().sum(-1)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        gain = self._gain(x)
        if self.smoothness:  # the derivative of the log-weight
            score = score - weight * self._slopes()[2] * self.smoothness**2 / (gain * self._radius(x) ** 3)
        return score / gain

    def extra_repr(self) -> str:
        return f"{self.input_dim}, smoothness={self.smoothness}"
