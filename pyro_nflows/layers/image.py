import torch
from torch import Tensor

from ..checks import image_shape
from .base import Layer, Scored
from .shapes import need_layers


class Squeeze(Layer):
    r"""Trade an image's size for channels: each 2 by 2 block of pixels becomes four channels of one [1].

    ``(C, H, W)`` becomes ``(4 C, H / 2, W / 2)``, kept in ``output_shape``: a permutation of the coordinates, of
    log-weight 0.

    :param shape: an image's ``(C, H, W)``; ``x`` and ``y`` have shape ``(..., C H W)``.
    :raises ValueError: if ``shape`` is not three positive integers, or ``H`` or ``W`` is odd.

    Example::

        >>> layer = Squeeze((1, 4, 4))
        >>> layer.output_shape
        (4, 2, 2)
        >>> layer(torch.arange(16.0))[0].reshape(4, 2, 2)[0]
        tensor([[ 0.,  2.],
                [ 8., 10.]])

    **References**

    [1] L. Dinh, J. Sohl-Dickstein, S. Bengio (2016). Density Estimation using Real NVP.
    """

    def __init__(self, shape: tuple[int, int, int]):
        num_channels, height, width = image_shape("Squeeze", shape)
        super().__init__(num_channels * height * width)
        if height % 2 or width % 2:
            raise ValueError(f"Squeeze: expected an image of even height and width, got {shape}")
        self.shape = (num_channels, height, width)
        self.output_shape = (4 * num_channels, height // 2, width // 2)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        c, h, w = self.shape
        blocks = x.unflatten(-1, (c, h // 2, 2, w // 2, 2))
        return blocks.movedim(-3, -4).movedim(-1, -3).flatten(-5), x.new_zeros(x.shape[:-1])

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        c, h, w = self.shape
        blocks = y.unflatten(-1, (c, 2, 2, h // 2, w // 2))
        return blocks.movedim(-3, -1).movedim(-4, -3).flatten(-5), y.new_zeros(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return self.forward(score)[0]

    def extra_repr(self) -> str:
        return f"{self.shape}"


class Split(Layer):
    r"""A layer for the first coordinates; the others pass [1].

    .. math:: y_a = f(x_a), \qquad y_b = x_b

    With it a flow has several scales: some coordinates of the base enter late, and pass through few layers.

    :param layer: :math:`f`, of at most :math:`D` dimensions, as many after as before; an image's first channels are the
        first coordinates.
    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :raises ValueError: if the layer is of more dimensions, or of other dimensions after than before.

    Example::

        >>> from pyro_nflows.layers import Coupling
        >>> y, log_weight = Split(Coupling(2), 5)(torch.randn(10, 5))

    **References**

    [1] L. Dinh, J. Sohl-Dickstein, S. Bengio (2016). Density Estimation using Real NVP.
    """

    def __init__(self, layer: Layer, input_dim: int):
        super().__init__(input_dim)
        need_layers("Split", layer)
        if layer.input_dim > input_dim or layer.output_dim != layer.input_dim:
            raise ValueError(
                f"Split: expected a layer of at most {input_dim} dimensions, as many after as before, got "
                f"{type(layer).__name__} of {layer.input_dim} -> {layer.output_dim}"
            )
        self.layer, self.first = layer, layer.input_dim
        self.exactness = layer.exactness
        self.noise_dim, self.inverse_noise_dim = layer.noise_dim, layer.inverse_noise_dim

    @property
    def has_inverse(self) -> bool:
        return self.layer.has_inverse

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., : self.first], x[..., self.first :]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, rest = self._parts(x)
        first, log_weight = self.layer(first, noise)
        return torch.cat([first, rest], -1), log_weight

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, rest = self._parts(y)
        first, log_weight = self.layer.inverse(first, noise)
        return torch.cat([first, rest], -1), log_weight

    def initialize(self, y: Tensor) -> Tensor:
        first, rest = self._parts(y)
        return torch.cat([self.layer.initialize(first), rest], -1)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        (x, _), (y, _), (score, rest) = (self._parts(t) for t in (x, y, score))
        return torch.cat([self.layer.transport(x, y, score, weight), rest], -1)

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        firsts, rests = zip(*(self._parts(t) for t in (x, score.detach(), reverse.detach())))
        step = self.layer.scored(firsts[0], noise, *firsts[1:])
        y, score, reverse = (torch.cat(p, -1) for p in zip((step.y, step.score, step.reverse), rests))
        return Scored(y, step.log_weight, score, reverse, *step[4:])
