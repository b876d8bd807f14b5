"""How wide what all rows of a block share is given all else, by the curvature of the log density along it."""

from collections.abc import Callable

import torch
from torch import Tensor

from .block_sums import NUM_ERRORS


def shared_along(loc: Tensor) -> tuple[Tensor, Tensor]:
    """Along what rows may share something: the same number for all, and their locations in each coordinate.

    Where locations are the same in all rows, as of one row or of a guide that has not moved, the two would be one.

    :param loc: the rows' locations, ``(rows, d)``.
    :returns: directions of length one, ``(rows, 1 + n)``, and the ``n`` coordinates whose locations are among them.

    Example::

        >>> along, varying = shared_along(torch.tensor([[3.0, 1.0], [4.0, 1.0]]))
        >>> along.T, varying
        (tensor([[0.7071, 0.7071],
                [0.6000, 0.8000]]), tensor([0]))
    """
    varying = (loc != loc[:1]).any(0).nonzero()[:, 0]
    moved = loc[:, varying] / loc[:, varying].abs().amax(0)
    found = torch.cat([torch.ones_like(loc[:, :1]), moved], 1)
    return found / found.norm(dim=0), varying


class SharedCurvature:
    """Second differences along a few directions of a guide's base.

    :param log_p: of the model at base points, with the log-determinant: ``(K, D)`` to ``(K,)``.
    :param directions: of length one, ``(n, D)``.
    :param precisions: of the guide along these, given what is orthogonal to them.

    Example::

        >>> wide = SharedCurvature(lambda x: -0.5 * (x / 3).square().sum(-1), torch.eye(2), torch.ones(2))
        >>> wide.add(torch.randn(5, 2))
        >>> round(wide.ratio, 3)
        3.0
    """

    def __init__(self, log_p: Callable[[Tensor], Tensor], directions: Tensor, precisions: Tensor):
        self.log_p, self.directions, self.precisions = log_p, directions, precisions.double()
        self._bends = list[Tensor]()

    @property
    def num(self) -> int:
        """Draws that were looked at."""
        return sum(len(part) for part in self._bends)

    def add(self, x: Tensor) -> None:
        """Draws, ``(K, D)``."""
        middle = 2 * self.log_p(x)
        found = [middle - self.log_p(x + step) - self.log_p(x - step) for step in self.directions]
        self._bends.append(torch.stack(found, 1).double() if found else x.new_zeros(len(x), 0).double())

    @property
    def ratio(self) -> float:
        """The posterior's standard deviation over the guide's along the worst of them, at least."""
        bends = torch.cat(self._bends)
        if not bends.shape[1]:
            return 1.0
        precision = bends.mean(0) + NUM_ERRORS * bends.std(0) / len(bends) ** 0.5
        return float((self.precisions / precision.clamp(min=1e-6)).sqrt().max())
