r"""Linear algebra of a batch of draws: what one draw cannot have, others have; and what all share is done once.

A kernel matrix is positive definite on paper. In single precision it is not quite so for some length scales, and torch
then raises an error for the whole batch of draws, of which one may be to blame: the density of that one is unknown, and
no other's. And torch copies a triangle that all draws have in common, such as the factor of a covariance matrix that
does not depend on them, for each of them before it solves.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..triangles import SharedSolve


class FailingAlone(TorchFunctionMode):
    """Within it, a matrix that cannot be factored, inverted or solved with gives NaN in place of an error for all.

    A triangle that all have in common is solved with for all at once (:class:`~pyro_nflows.triangles.SharedSolve`).

    Example::

        >>> matrices = torch.stack([torch.eye(2), -torch.eye(2)])
        >>> with FailingAlone():
        ...     torch.linalg.cholesky(matrices)
        tensor([[[1., 0.],
                 [0., 1.]],
        <BLANKLINE>
                [[nan, nan],
                 [nan, nan]]])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _ALONE.get(func, func)(*args, **(kwargs or {}))


def _unless(failed: Tensor, result: Tensor, num_dims: int) -> Tensor:
    """NaN where a matrix has failed; ``num_dims`` of the result are that matrix's."""
    good = (failed == 0).reshape(*failed.shape, *(1,) * num_dims)
    return torch.where(good, result, torch.nan)


def _cholesky(input: Tensor, upper: bool = False, **options: Any) -> Tensor:
    if options:  # an `out`
        return torch.linalg.cholesky(input, upper=upper, **options)
    factor, failed = torch.linalg.cholesky_ex(input, upper=upper)
    return _unless(failed, factor, 2)


def _inverse(A: Tensor, **options: Any) -> Tensor:
    if options:
        return torch.linalg.inv(A, **options)
    inverse, failed = torch.linalg.inv_ex(A)
    return _unless(failed, inverse, 2)


def _solution(A: Tensor, B: Tensor, *, left: bool = True, **options: Any) -> Tensor:
    if options:
        return torch.linalg.solve(A, B, left=left, **options)
    x, failed = torch.linalg.solve_ex(A, B, left=left)
    return _unless(failed, x, x.dim() - failed.dim())


def _solve_triangular(A: Tensor, B: Tensor, *, upper: bool, unitriangular: bool = False, **options: Any) -> Tensor:
    if options:  # from the right, or an `out`
        return torch.linalg.solve_triangular(A, B, upper=upper, unitriangular=unitriangular, **options)
    return SharedSolve.apply(A, B, upper, unitriangular)


_ALONE: dict[Any, Callable[..., Any]] = {
    torch.linalg.cholesky: _cholesky,
    torch.cholesky: _cholesky,
    Tensor.cholesky: _cholesky,
    torch.linalg.inv: _inverse,
    torch.inverse: lambda input, **options: _inverse(input, **options),
    Tensor.inverse: _inverse,
    torch.linalg.solve: _solution,
    torch.linalg.solve_triangular: _solve_triangular,
}
