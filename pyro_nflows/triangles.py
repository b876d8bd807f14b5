r"""Triangular matrices: in the units of their diagonal, and solving with them."""

from typing import Any

import torch
from torch import Tensor

from .system.shapes import broadcast_shapes


def scale_tril(log_scale: Tensor, lower: Tensor) -> Tensor:
    r"""A lower-triangular matrix :math:`L = \mathrm{diag}(\sigma) (I + A)`: rows in the units of the diagonal.

    :param log_scale: :math:`\log\sigma`, ``(..., D)``.
    :param lower: :math:`A`, ``(..., D, D)``, of which the part below the diagonal counts.

    Example::

        >>> scale_tril(torch.tensor([0.0, 0.0]), torch.tensor([[9.0, 9.0], [3.0, 9.0]]))
        tensor([[1., 0.],
                [3., 1.]])
    """
    scale = log_scale.exp()
    return scale[..., None] * lower.tril(-1) + torch.diag_embed(scale)


def log_scale_and_lower(scale_tril: Tensor) -> tuple[Tensor, Tensor]:
    """The arguments of :func:`scale_tril` that give a matrix ``(..., D, D)`` of positive diagonal.

    Example::

        >>> log_scale_and_lower(torch.tensor([[1.0, 0.0], [3.0, 1.0]]))[1]
        tensor([[0., 0.],
                [3., 0.]])
    """
    scale = scale_tril.diagonal(dim1=-2, dim2=-1)
    return scale.log(), (scale_tril / scale[..., None]).tril(-1)


def solve_triangular(
    triangle: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """As ``torch.linalg.solve_triangular``, and at once where all of a batch have one triangle in common.

    There torch copies the triangle for each of the batch, which takes longer than to solve: 30 times as long for 64
    vectors of 400 entries.

    :param triangle: ``(..., D, D)``.
    :param b: ``(..., D, K)``, or with ``left=False`` ``(..., K, D)``.

    Example::

        >>> triangle = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
        >>> solve_triangular(triangle, torch.tensor([[[2.0], [3.0]], [[4.0], [2.0]]]), upper=False)[..., 0]
        tensor([[1., 2.],
                [2., 0.]])
    """
    batch, shape = triangle.shape[:-2], broadcast_shapes(triangle.shape[:-2], b.shape[:-2])
    shared = all(size == 1 or step == 0 for size, step in zip(batch, triangle.stride()))
    if not (left and shared and 1 < shape.numel() == b.shape[:-2].numel()):
        return torch.linalg.solve_triangular(triangle, b, upper=upper, left=left, unitriangular=unitriangular)
    one, rows = triangle[(0,) * len(batch)], b.mT.reshape(-1, b.shape[-2])
    solved = torch.linalg.solve_triangular(one, rows.mT, upper=upper, unitriangular=unitriangular)
    return solved.mT.reshape(*shape, b.shape[-1], b.shape[-2]).mT


class SharedSolve(torch.autograd.Function):
    """As ``torch.linalg.solve_triangular``, also at once where ``torch.vmap`` has one triangle for all vectors.

    There torch copies it as well: a density of 256 vectors with a covariance matrix of 400 in common took 60 times as
    long. The arguments are the triangle, the right-hand side, ``upper`` and ``unitriangular``.

    Example::

        >>> triangle = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
        >>> vectors = torch.tensor([[2.0, 3.0], [4.0, 2.0]])
        >>> torch.vmap(lambda x: SharedSolve.apply(triangle, x[:, None], False, False)[:, 0])(vectors)
        tensor([[1., 2.],
                [2., 0.]])
    """

    @staticmethod
    def forward(triangle: Tensor, b: Tensor, upper: bool, unitriangular: bool) -> Tensor:
        """The solution."""
        return torch.linalg.solve_triangular(triangle, b, upper=upper, unitriangular=unitriangular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool, bool], output: Tensor) -> None:
        """What the derivatives need."""
        triangle, b, ctx.upper, ctx.unitriangular = inputs
        ctx.shapes = triangle.shape, b.shape
        ctx.save_for_backward(triangle, output)
        ctx.save_for_forward(triangle, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """With a gradient G: of the right-hand side, inv(A).T @ G; of A, minus this times the solution's transpose."""
        triangle, solution = ctx.saved_tensors
        to_b, to_triangle = SharedSolve.apply(triangle.mT, grads[0], not ctx.upper, ctx.unitriangular), None
        if ctx.needs_input_grad[0]:
            to_triangle = -_part(to_b @ solution.mT, ctx.upper, ctx.unitriangular).sum_to_size(ctx.shapes[0])
        return to_triangle, to_b.sum_to_size(ctx.shapes[1]), None, None

    @staticmethod
    def jvp(ctx: Any, triangle_way: Tensor | None, b_way: Tensor | None, *_: None) -> Tensor:
        """Along ways of both: inv(A) @ (dB - dA @ X)."""
        triangle, solution = ctx.saved_tensors
        way = torch.zeros_like(solution) if b_way is None else b_way
        if triangle_way is not None:
            way = way - _part(triangle_way, ctx.upper, ctx.unitriangular) @ solution
        return SharedSolve.apply(triangle, way, ctx.upper, ctx.unitriangular)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, triangle: Tensor, b: Tensor, upper: bool, unitriangular: bool
    ) -> tuple[Tensor, int]:
        """One triangle's vectors as the columns of one matrix; with several triangles, a batch of each."""
        if in_dims[0] is None:
            columns = b.movedim(in_dims[1], -1)
            solved = SharedSolve.apply(triangle, columns.flatten(-2), upper, unitriangular)
            return solved.unflatten(-1, columns.shape[-2:]), -1
        rank = max(triangle.dim() - 1, b.dim() - (in_dims[1] is not None))
        both = (_in_front(part, dim, rank) for part, dim in zip((triangle, b), in_dims))
        return SharedSolve.apply(*both, upper, unitriangular), 0


def _part(matrix: Tensor, upper: bool, unitriangular: bool) -> Tensor:
    """What of a triangle counts."""
    return matrix.triu(int(unitriangular)) if upper else matrix.tril(-int(unitriangular))


def _in_front(tensor: Tensor, dim: int | None, rank: int) -> Tensor:
    """With the dimension of a batch first, and so many behind it; unchanged without one."""
    if dim is None:
        return tensor
    first = tensor.movedim(dim, 0)
    return first.reshape(len(first), *(1,) * (rank + 1 - first.dim()), *first.shape[1:])
