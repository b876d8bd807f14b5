r"""What rows of plates that cross share: the directions in which their posterior is widest and narrowest.

In coordinates in which every row has variance one given all else, minus the Hessian of the log joint is the identity,
and what ties the blocks together. Its extreme eigenvalues :math:`\lambda` are those of what all rows share, such as a
constant that may be in the effects of users or of items: the variance along their vectors is :math:`1 / \lambda`. They
are found by Lanczos' method [1], which takes one product with the Hessian for each of its iterations.

**References**

[1] C. Lanczos (1950). An Iteration Method for the Solution of the Eigenvalue Problem of Linear Differential and
Integral Operators.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..flows.whitened import Whitened
from ..layers import SharedAffine
from ..layers.base import Chain

#: Iterations; eigenvectors that are found to this residual.
NUM_ITERATIONS, RESIDUAL = 40, 0.1
#: Widths that count, as logarithms; the largest.
LEAST, MOST_WIDTH = 0.03, 30.0


def split_shared(layer: Whitened) -> tuple[SharedAffine | None, Whitened]:
    """A flow's layer of what rows share, if it has one, and the flow after that."""
    first = layer.flow[0] if isinstance(layer.flow, Chain) and len(layer.flow) else None
    if not isinstance(first, SharedAffine):
        return None, layer
    return first, Whitened(Chain(*list(layer.flow)[1:]), layer.end)  # type: ignore[call-overload]


@torch.no_grad()
def take_shared(layer: Whitened, product: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Have a flow follow what rows share.

    :param layer: over all rows.
    :param product: of the log joint's Hessian at a flat latent ``(D,)`` with a vector.
    """
    shared, rest = split_shared(layer)
    if shared is None or rest.noise_dim:
        return
    # Not zero itself, where an element-wise map may have no slope for autograd.
    origin = torch.full((rest.input_dim,), 1e-3).to(next(rest.parameters()))
    with torch.enable_grad():
        at = origin.requires_grad_()
        z = rest(at)[0]
        cotangent = torch.zeros_like(z).requires_grad_()
        (pulled,) = torch.autograd.grad(z, at, cotangent, create_graph=True)

    def precision(x: Tensor) -> Tensor:
        (ahead,) = torch.autograd.grad(pulled, cotangent, _padded(x, shared.num_top).to(origin), retain_graph=True)
        back = product(z.detach(), ahead)
        return -torch.autograd.grad(z, at, back.to(z), retain_graph=True)[0][shared.num_top :].double()

    values, vectors = extremes(precision, rest.input_dim - shared.num_top)
    widths = values.clamp(min=MOST_WIDTH**-2).rsqrt()
    order = widths.log().abs().argsort(descending=True)
    order = order[widths[order].log().abs() > LEAST][: len(shared.log_widths)]
    shared.put(vectors[order], widths[order])


def _padded(rows: Tensor, num_top: int) -> Tensor:
    return torch.cat([rows.new_zeros(num_top), rows])


def extremes(product: Callable[[Tensor], Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix that Lanczos' method has found, and their vectors as rows.

    :param product: with a vector in double precision.
    :param dim: of the matrix.

    Example::

        >>> matrix = torch.eye(50).double() - 0.9 * torch.full((50, 50), 1 / 50).double()
        >>> values, vectors = extremes(lambda x: matrix @ x, 50)
        >>> values.min(), vectors[values.argmin()].abs()[:2]
        (tensor(0.1000, dtype=torch.float64), tensor([0.1414, 0.1414], dtype=torch.float64))
    """
    basis, diagonal, beside = list[Tensor](), list[Tensor](), list[Tensor]()
    x = torch.randn(dim, dtype=torch.float64)
    x = x / x.norm()
    for _ in range(min(NUM_ITERATIONS, dim)):
        basis.append(x)
        found = product(x)
        diagonal.append(x @ found)
        known = torch.stack(basis)
        for _ in range(2):  # once is not enough, by rounding
            found = found - (known @ found) @ known
        beside.append(found.norm())
        if not float(beside[-1]) > 1e-6:
            break
        x = found / beside[-1]
    off = torch.stack(beside)
    matrix = torch.diag(torch.stack(diagonal)) + torch.diag(off[:-1], 1) + torch.diag(off[:-1], -1)
    values, parts = torch.linalg.eigh(matrix)
    good = (off[-1] * parts[-1].abs() < RESIDUAL * (values - 1).abs().clamp(max=1.0)) & torch.isfinite(values)
    return values[good], (parts.T @ torch.stack(basis))[good]
