import torch
from torch import Tensor, nn

from ..checks import check_sizes
from ..numerics import reflect
from .base import Layer


class Householder(Layer):
    r"""Rotate by a product of reflections [1].

    .. math:: y = H_1 \cdots H_K x, \qquad H_k = I - 2 v_k v_k^\top / |v_k|^2, \qquad \log w = 0

    Both directions cost :math:`O(K D)`. :math:`K \geq D` reflections reach every rotation. They start as equal pairs,
    which undo each other: the identity.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param num_reflections: :math:`K`, an even number.
    :raises ValueError: if ``input_dim < 1``, or ``num_reflections`` is not a positive even number.

    Example::

        >>> y, log_weight = Householder(3, num_reflections=4)(torch.randn(10, 3))

    **References**

    [1] J. Tomczak, M. Welling (2016). Improving Variational Auto-Encoders using Householder Flow.
    """

    vectors: Tensor

    def __init__(self, input_dim: int, num_reflections: int = 2):
        super().__init__(input_dim)
        check_sizes("Householder", num_reflections=num_reflections)
        if num_reflections % 2:
            raise ValueError(f"Householder: num_reflections must be even, got {num_reflections}")
        vectors = torch.randn(num_reflections // 2, input_dim).repeat_interleave(2, 0)
        if input_dim > 1:
            self.vectors = nn.Parameter(vectors)
        else:  # there is one rotation of a line, and Pyro warns of parameters that do not train
            self.register_buffer("vectors", vectors)

    def fan_in(self, name: str) -> int:
        """Numbers of a parameter that are added up: none, since a vector's length means nothing."""
        return 1

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return reflect(x, self.vectors), x.new_zeros(x.shape[:-1])

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return reflect(y, self.vectors.flip(0)), y.new_zeros(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return reflect(score, self.vectors)
