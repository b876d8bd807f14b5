r"""Small numerical pieces shared by the layers: stable, pure, and without a branch on a value.

Everything here is elementwise or acts on the last dimension, broadcasts over the rest, and runs under
``torch.func.vmap``, ``make_fx`` and ``torch.compile``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

#: A log density of many points at once, ``(K, D) -> (K,)``.
LogDensity = Callable[[Tensor], Tensor]
_LOG_2PI = math.log(2 * math.pi)
#: ``softplus(_UNIT) == 1``: the offset at which softplus-positive quantities start at one.
_UNIT = math.log(math.e - 1)


def standard_normal_log_prob(x: Tensor) -> Tensor:
    r"""Log density of :math:`N(0, I)`, summed over the last dimension.

    :param x: points, ``(..., D)``.

    Example::

        >>> standard_normal_log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * _LOG_2PI)


def normal_log_prob(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    r"""Log density of :math:`N(\mu, \mathrm{diag}\,\sigma^2)`, summed over the last dimension.

    :param x: points, ``(..., D)``.
    :param loc: :math:`\mu`, broadcastable to ``x``.
    :param log_scale: :math:`\log\sigma`, broadcastable to ``x``.

    Example::

        >>> normal_log_prob(torch.zeros(5, 2), torch.zeros(2), torch.zeros(2)).shape
        torch.Size([5])
    """
    return standard_normal_log_prob((x - loc) * (-log_scale).exp()) - log_scale.sum(-1)


def quasi_normal(num_points: int, dim: int, seed: int) -> Tensor:
    r"""Scrambled Sobol points [1] taken to a standard normal: each is normal, all together more even than chance.

    Means over :math:`N` of them are off by about :math:`1 / N` in few dimensions, and in many hardly more than by the
    :math:`1 / \sqrt N` of independent points.

    :param num_points: how many, ``(num_points, dim)`` in float64.
    :param dim: at most ``torch.quasirandom.SobolEngine.MAXDIM``.
    :param seed: of the scrambling.

    Example::

        >>> points = quasi_normal(1024, 2, seed=0)
        >>> bool((points.mean(0).abs() < 0.01).all())
        True

    **References**

    [1] A. Owen (1998). Scrambling Sobol' and Niederreiter-Xing Points.
    """
    uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(num_points, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-10, 1 - 1e-10))


def in_pairs(x: Tensor) -> Tensor:
    """Points of a symmetric distribution of which the second half are the first half's negatives.

    Each point has the distribution that it had. A last one that has no partner stays as it is.

    :param x: independent points, along the first dimension.

    Example::

        >>> in_pairs(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
        tensor([ 1.,  2., -1., -2.,  5.])
    """
    half = len(x) // 2
    return torch.cat([x[:half], -x[:half], x[2 * half :]])


def soft_bound(x: Tensor, bound: float) -> Tensor:
    r"""Squash to :math:`(-b, b)` by :math:`b \tanh(x / b)`: the identity near zero.

    Example::

        >>> soft_bound(torch.tensor([0.0, 1e6]), 2.0)
        tensor([0.0000, 2.0000])
    """
    return bound * torch.tanh(x / bound)


def soft_unbound(y: float, bound: float) -> float:
    """The number of which :func:`soft_bound` makes ``y``.

    Example::

        >>> soft_bound(torch.tensor(soft_unbound(1.5, 2.0)), 2.0)
        tensor(1.5000)
    """
    return bound * math.atanh(y / bound)


def magnitude(x: Tensor) -> tuple[Tensor, Tensor]:
    """The absolute value and the sign, which is one at zero: so derivatives of even and odd functions are right there.

    Autograd takes the derivative of ``abs`` at zero, and the sign of zero, to be zero.

    Example::

        >>> magnitude(torch.tensor([-2.0, 0.0]))
        (tensor([2., 0.]), tensor([-1.,  1.]))
    """
    sign = torch.where(x < 0, -torch.ones_like(x), torch.ones_like(x))
    return sign * x, sign


def arsinh(x: Tensor) -> Tensor:
    r""":math:`\operatorname{arsinh} x`, to the last digits of small numbers too, in operations that compile.

    Example::

        >>> arsinh(torch.tensor([0.0, 1e-8, -1.0]))
        tensor([ 0.0000e+00,  1.0000e-08, -8.8137e-01])
    """
    size, sign = magnitude(x)
    root = torch.where(size > 1e9, size, (1 + size.clamp(max=1e9).square()).sqrt())  # whose square may be too large
    return sign * torch.log1p(size * (1 + size / (1 + root)))


def log_cosh(x: Tensor) -> Tensor:
    r""":math:`\log \cosh x`, also where :math:`\cosh x` is beyond the largest number.

    Example::

        >>> log_cosh(torch.tensor([0.0, -1000.0]))
        tensor([  0.0000, 999.3068])
    """
    size, _ = magnitude(x)
    return size + torch.log1p((-2 * size).exp()) - math.log(2)


def positive(x: Tensor) -> Tensor:
    r"""A positive number that is one at zero: :math:`\mathrm{softplus}(x + \log(e - 1))`.

    Example::

        >>> positive(torch.tensor([-100.0, 0.0])).round(decimals=4)
        tensor([0.0000, 1.0000])
    """
    return softplus(x + _UNIT)


def above_minus_one(x: Tensor) -> Tensor:
    r"""A number above -1 that is exactly zero at zero, increasing in ``x``.

    Example::

        >>> above_minus_one(torch.tensor([-100.0, 0.0]))
        tensor([-1.0000,  0.0000])
    """
    return positive(x) - positive(torch.zeros_like(x))


def finite_rows(gradient: Tensor) -> Tensor:
    """A gradient, ``(..., D)``, with zeros in the rows that are not finite: such a draw does not move the flow.

    Example::

        >>> finite_rows(torch.tensor([[1.0, 2.0], [torch.nan, 3.0]]))
        tensor([[1., 2.],
                [0., 0.]])
    """
    return torch.where(gradient.isfinite().all(-1, keepdim=True), gradient, 0.0)


def largest(values: Tensor, most: int) -> int:
    """The largest of some whole numbers, or ``most`` where they cannot be read: under ``vmap`` and while tracing.

    For loops whose further steps change nothing, so that their length is a matter of time only.

    Example::

        >>> largest(torch.tensor([1.0, 3.0]), 10), largest(torch.tensor([1.0, 30.0]), 10)
        (3, 10)
    """
    if torch.compiler.is_compiling() or not values.numel():
        return most
    try:
        return min(most, int(values.max()))
    except RuntimeError:
        return most


def reflect(x: Tensor, vectors: Tensor) -> Tensor:
    r"""Rows times a product of Householder reflections: :math:`H_1 \cdots H_K x`.

    With :math:`H_k = I - 2 v_k v_k^\top / |v_k|^2`, all at once it is :math:`x - V^\top T^{-1} V x`, where
    :math:`T = \mathrm{triu}(V V^\top, 1) + \mathrm{diag}(V V^\top) / 2`.

    :param x: rows, ``(..., D)``.
    :param vectors: :math:`V`, ``(K, D)``; in the opposite order, the product is the inverse. Zeros reflect nothing.

    Example::

        >>> reflect(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 0.0]]))
        tensor([-1.0000,  2.0000])
    """
    gram = vectors @ vectors.T
    squares = gram.diagonal()
    core = gram.triu(1) + torch.diag(torch.where(squares > 0, 0.5 * squares, torch.ones_like(squares)))
    return x - (x @ vectors.T) @ torch.linalg.solve_triangular(core.T, vectors, upper=False)


def monotone_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    low: Tensor,
    high: Tensor,
    num_iterations: int = 60,
) -> Tensor:
    r"""The root of an increasing function, elementwise, differentiable in what the function closes over.

    Newton's method, safeguarded by a bracket that every third step halves: at worst bisection, at best
    quadratic. A last, differentiable Newton step gives the implicit derivative
    :math:`-\partial_\theta f / \partial_\alpha f`.

    :param function: maps :math:`\alpha` to :math:`(f(\alpha), f'(\alpha))`, with :math:`f' \geq 0`.
    :param low: where :math:`f \leq 0`.
    :param high: where :math:`f \geq 0`.
    :param num_iterations: steps, a third of them bisections.

    Example::

        >>> cube = lambda a: (a**3 - 8, 3 * a**2)
        >>> monotone_root(cube, torch.tensor(0.0), torch.tensor(10.0))
        tensor(2.0000)
    """
    low, high = low.detach(), high.detach()
    root = 0.5 * (low + high)
    with torch.no_grad():
        for i in range(num_iterations):
            value, slope = (t.detach() for t in function(root))
            low, high = torch.where(value <= 0, root, low), torch.where(value >= 0, root, high)
            middle = 0.5 * (low + high)
            newton = root - value / slope
            inside = (newton >= low) & (newton <= high)
            root = middle if i % 3 == 2 else torch.where(inside, newton, middle)
    value, slope = function(root)
    return root - value / slope.detach()


def finite(log_p: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Replace a density that is not finite by -inf and its gradient by zero."""
    bad = ~(torch.isfinite(log_p) & torch.isfinite(grad).all(-1))
    return torch.where(bad, -torch.inf, log_p), torch.where(bad[:, None], 0.0, grad)
