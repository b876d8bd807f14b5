r"""Random rules of integration over the base points of rows [1].

A row's integral is over :math:`d` standard normal numbers. With :math:`\rho^2` from a chi-squared distribution of
:math:`d + 2` degrees of freedom and random orthogonal directions :math:`u_j`, the mean of

.. math:: f(0) + \frac{d}{\rho^2} \Big( \frac1d \sum_{j=1}^d \frac{f(\rho u_j) + f(-\rho u_j)}2 - f(0) \Big)

is the integral of any :math:`f`, and the rule is exact for polynomials of degree three. The ratio of a model to a guide
that fits is nearly constant in the base, and what changes with what is outside of the plate is nearly linear and
quadratic: the rule has no noise from these, where independent points have noise that adds up over all rows.

**References**

[1] A. Genz, J. Monahan (1998). Stochastic Integration Rules for Infinite Regions.
"""

import torch
from torch import Tensor

from ..model.hierarchy import Hierarchy

#: Directions in longer rows, some of those that there are.
MAX_DIRECTIONS = 4
#: The least radius, as a share of the mean one: nearer to zero, rounding would count.
NEAREST = 0.1
#: What an integral is at least, as a share of the mean over the rule's outer points: weights may be negative.
LEAST = 0.01


class RowRules:
    """Rules for each row of a plate, its rows side by side as a layer's base has them.

    :param hierarchy: of chosen rows.
    :param plate: the plate.

    Example::

        >>> from pyro_nflows.model.hierarchy import Outline
        >>> hierarchy = Hierarchy.of_outlines({"z": Outline((5, 2), {"groups": 0})})
        >>> points, stretch = RowRules(hierarchy, "groups").draw(3)
        >>> points.shape, stretch.shape  # the middle, then two directions there and back, for each of three rules
        (torch.Size([13, 10]), torch.Size([3, 5]))
        >>> values = points.unflatten(-1, (5, 2)).square().sum(-1)
        >>> RowRules.integrals(values.log(), stretch)[0].exp().allclose(torch.tensor(2.0).double())
        True
    """

    def __init__(self, hierarchy: Hierarchy, plate: str):
        places, start = list[Tensor](), 0
        for block in hierarchy.blocks:
            number = hierarchy.index_in(block, plate)
            at = start + torch.arange(block.columns.numel()).view(block.columns.shape)
            places.append(at[number.argsort(stable=True)].view(int(number.max()) + 1, -1))
            start += block.columns.numel()
        self.places, self.width = torch.cat(places, 1), start
        self.num_directions = min(self.places.shape[1], MAX_DIRECTIONS)

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """Base points of so many rules, ``(1 + 2 num directions, width)``, and each rule's :math:`d / \\rho^2`."""
        rows, dim = self.places.shape
        radius = torch.randn(num, rows, dim + 2).norm(dim=-1).clamp(min=NEAREST * (dim + 2) ** 0.5)
        turned = torch.ones(num, rows, 1, 1)
        if dim > 1:
            turned = torch.linalg.qr(torch.randn(num, rows, dim, self.num_directions))[0]
        ends = (radius[..., None, None] * turned).movedim(-1, 1).flatten(0, 1)
        points = torch.cat([torch.zeros(1, rows, dim), ends, -ends])
        found = torch.zeros(len(points), self.width)
        found[:, self.places.reshape(-1)] = points.flatten(1)
        return found, dim / radius.square()

    @staticmethod
    def integrals(log_values: Tensor, stretch: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of a row's integral by each rule ``(num, ...)``, and by all of them, in double precision.

        :param log_values: of what is integrated, at the points, ``(1 + 2 num directions, ..., rows)``.
        :param stretch: of each rule, ``(num, rows)``.
        """
        top = log_values.amax(0).clamp(min=torch.finfo(log_values.dtype).min)
        middle, *ends = (log_values - top).exp().split([1, (len(log_values) - 1) // 2, (len(log_values) - 1) // 2])
        outer = (0.5 * (ends[0] + ends[1])).unflatten(0, (len(stretch), -1)).mean(1)
        shape = (len(stretch), *(1,) * (outer.dim() - 2), -1)
        values = torch.maximum(middle + stretch.to(outer).view(shape) * (outer - middle), LEAST * outer)
        mean = values.mean(0).double().log() + top
        return values.double().log() + top, mean
