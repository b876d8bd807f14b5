import torch
from torch import Tensor

from .base import Layer


class Permutation(Layer):
    r"""Reorder the coordinates: :math:`y_i = x_{\pi(i)}`, log-weight 0.

    :param permutation: :math:`\pi`, a permutation of ``0, ..., D - 1``.
    :raises ValueError: if it is not a permutation.

    Example::

        >>> Permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))[0]
        tensor([12., 10., 11.])
    """

    permutation: Tensor
    back: Tensor

    def __init__(self, permutation: Tensor | list[int]):
        order = torch.as_tensor(permutation)
        if order.dim() != 1 or order.sort().values.tolist() != list(range(len(order))):
            raise ValueError(f"Permutation: expected a permutation of 0, ..., D - 1, got {permutation}")
        super().__init__(len(order))
        self.register_buffer("permutation", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.index_select(-1, self.permutation), x.new_zeros(x.shape[:-1])

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.index_select(-1, self.back), y.new_zeros(y.shape[:-1])

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        return score.index_select(-1, self.permutation)
