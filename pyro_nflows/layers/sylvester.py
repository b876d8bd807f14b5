import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from ..checks import check_sizes
from ..numerics import above_minus_one, monotone_root, reflect
from .base import Layer


class Sylvester(Layer):
    r"""Several hinges at once, along learned orthogonal directions: planar layers of higher rank [1].

    .. math:: y = x + Q R \tanh(\tilde R\, Q^\top x + b), \qquad
        \log w = \sum_i \log(1 + \tanh'(a_i)\, \tilde r_{ii} r_{ii}), \quad a = \tilde R\, Q^\top x + b

    with :math:`Q` of :math:`D \times M` orthonormal columns (the first of a product of Householder reflections), and
    :math:`R, \tilde R` upper triangular of :math:`\tilde r_{ii} > 0` and :math:`\tilde r_{ii} r_{ii} > -1`, so that the
    map is invertible. It starts at the identity (:math:`R = 0`). Forward costs :math:`O(D M)`. The inverse solves
    :math:`M` increasing equations, each in one unknown, from the last to the first.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param rank: :math:`M`, at most :math:`D`; unless given, :math:`D`, and 16 at most.
    :raises ValueError: if ``input_dim < 1``, or ``rank`` is not from 1 to ``input_dim``.

    Example::

        >>> y, log_weight = Sylvester(5, rank=2)(torch.randn(10, 5))

    **References**

    [1] R. van den Berg, L. Hasenclever, J. Tomczak, M. Welling (2018). Sylvester Normalizing Flows for Variational
    Inference.
    """

    vectors: Tensor

    def __init__(self, input_dim: int, rank: int | None = None):
        super().__init__(input_dim)
        rank = min(input_dim, 16) if rank is None else rank
        check_sizes("Sylvester", rank=rank)
        if rank > input_dim:
            raise ValueError(f"Sylvester: rank must be at most input_dim = {input_dim}, got {rank}")
        self.outer = nn.Parameter(torch.zeros(rank, rank))
        self.inner = nn.Parameter(torch.zeros(rank, rank))
        self.b = nn.Parameter(torch.zeros(rank))
        vectors = torch.randn(rank, input_dim)
        if input_dim > 1:
            self.vectors = nn.Parameter(vectors)
        else:  # there is one direction only, and Pyro warns of parameters that do not train
            self.register_buffer("vectors", vectors)

    def fan_in(self, name: str) -> int:
        """Numbers of a parameter that are added up: none of a vector's, whose length means nothing."""
        return len(self.b) if name in ("outer", "inner") else 1

    def _matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """:math:`Q^\\top`, :math:`R` and :math:`\\tilde R`."""
        rank = len(self.b)
        rows = torch.eye(rank, self.input_dim, dtype=self.b.dtype, device=self.b.device)
        slope, gain = self.inner.diagonal().exp(), above_minus_one(self.outer.diagonal())
        outer = self.outer.triu(1) + torch.diag(gain / slope)
        return reflect(rows, self.vectors), outer, self.inner.triu(1) + torch.diag(slope)

    def _log_weight(self, h: Tensor) -> Tensor:
        return torch.log1p((1 - h.square()) * above_minus_one(self.outer.diagonal())).sum(-1)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, outer, inner = self._matrices()
        h = torch.tanh(x @ q.T @ inner.T + self.b)
        return x + h @ outer.T @ q, self._log_weight(h)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, outer, inner = self._matrices()
        target, z, h = y @ q.T, torch.zeros_like(y @ q.T), torch.zeros_like(y @ q.T)
        for i in reversed(range(len(self.b))):
            offset = z @ inner[i] + self.b[i]
            root = _root(target[..., i] - h @ outer[i], outer[i, i], inner[i, i], offset)
            here = torch.arange(len(self.b), device=y.device) == i
            z = torch.where(here, root[..., None], z)
            h = torch.where(here, torch.tanh(inner[i, i] * root + offset)[..., None], h)
        return y - h @ outer.T @ q, self._log_weight(h)

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        """By Woodbury's formula: a triangular solve of size :math:`M`."""
        q, outer, inner = self._matrices()
        h = torch.tanh(x @ q.T @ inner.T + self.b)
        slope, gain = 1 - h.square(), above_minus_one(self.outer.diagonal())
        curve = -2 * h * slope * gain / (1 + slope * gain)
        score = score - weight * (curve @ inner @ q)
        core = (inner.T * slope[..., None, :]) @ outer.T
        core = core + torch.eye(len(self.b), dtype=core.dtype, device=core.device)
        along = score @ q.T
        return score + (solve_triangular(core, along[..., None], upper=False)[..., 0] - along) @ q

    def extra_repr(self) -> str:
        return f"{self.input_dim}, rank={len(self.b)}"


def _root(target: Tensor, outer: Tensor, inner: Tensor, offset: Tensor) -> Tensor:
    """The ``z`` at which ``z + outer * tanh(inner * z + offset)`` is ``target``."""

    def equation(z: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(inner * z + offset)
        return z + outer * h - target, 1 + outer * inner * (1 - h.square())

    return monotone_root(equation, target - outer.abs(), target + outer.abs())
