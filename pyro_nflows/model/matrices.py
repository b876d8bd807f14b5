r"""Bijections from vectors to triangular and to positive definite matrices, for which torch and Pyro have none.

Theirs start from all :math:`D^2` entries of a matrix, of which those above the diagonal say nothing, and have no
log-determinant.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform


class CholeskyFactor(Transform):
    r"""A lower triangular matrix with a positive diagonal, from its entries row by row.

    .. math:: L_{ij} = x_{ij} \ (i > j), \quad L_{ii} = e^{x_{ii}}, \qquad \log|\det| = \sum_{i=1}^D x_{ii}

    From vectors ``(..., D (D + 1) / 2)`` to matrices ``(..., D, D)``.

    Example::

        >>> to_factor = CholeskyFactor()
        >>> x = torch.tensor([0.0, 3.0, math.log(2.0)])
        >>> L = to_factor(x)
        >>> L.tolist() == [[1.0, 0.0], [3.0, 2.0]]
        True
        >>> to_factor.log_abs_det_jacobian(x, L)
        tensor(0.6931)
    """

    bijective = True
    domain = constraints.independent(constraints.real, 1)
    codomain: Any = constraints.lower_cholesky

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def _call(self, x: Tensor) -> Tensor:
        size = _size(x.shape[-1])
        row, column = torch.arange(size).unsqueeze(-1), torch.arange(size)
        where = row * (row + 1) // 2 + column.minimum(row)
        entries = x[..., where.to(x.device)]
        return entries.tril(-1) + _diagonal(x, size).exp().diag_embed()

    def _inverse(self, y: Tensor) -> Tensor:
        logs = y.tril(-1) + y.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        return logs[..., row, column]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the logarithms of the factor's diagonal."""
        return _diagonal(x, y.shape[-1]).sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        """The shape of matrices from that of vectors."""
        size = _size(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """The shape of vectors from that of matrices."""
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError(f"{type(self).__name__}: expected square matrices (..., D, D), got shape {tuple(shape)}")
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


class PositiveDefinite(CholeskyFactor):
    r"""A positive definite matrix, from the entries of its Cholesky factor :math:`L` as in :class:`CholeskyFactor`.

    .. math:: \Sigma = L L^\top, \qquad \log|\det| = D \log 2 + \sum_{i=1}^D (D - i + 2) \log L_{ii}

    The determinant is that of the :math:`D (D + 1) / 2` entries on and below the diagonal, for which torch's
    ``Wishart`` has its density [1].

    Example::

        >>> PositiveDefinite()(torch.tensor([0.0, 3.0, math.log(2.0)]))
        tensor([[ 1.,  3.],
                [ 3., 13.]])

    **References**

    [1] R. Muirhead (1982). Aspects of Multivariate Statistical Theory, theorem 2.1.9.
    """

    codomain = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        L = super()._call(x)
        return L @ L.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """From the logarithms of the factor's diagonal, which ``x`` has."""
        size = y.shape[-1]
        times = torch.arange(size + 1, 1, -1, device=x.device)
        return size * math.log(2.0) + (_diagonal(x, size) * times).sum(-1)


def _size(num: int) -> int:
    """How many rows a triangle of ``num`` entries has."""
    size = (math.isqrt(8 * num + 1) - 1) // 2
    if size * (size + 1) // 2 != num:
        raise ValueError(f"no triangular matrix has {num} entries; expected D (D + 1) / 2 of them: 1, 3, 6, 10, ...")
    return size


def _diagonal(x: Tensor, size: int) -> Tensor:
    """The entries of the diagonal, in a vector of a triangle row by row."""
    row = torch.arange(size, device=x.device)
    return x[..., row * (row + 3) // 2]
