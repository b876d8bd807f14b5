r"""Objectives used where plain path gradients are not enough.

Path gradients move each draw. They say little of what is wrong with the *amount* of draws: in a region that the guide
hardly visits, or in a mode that has too much of the mass. Each class here adds what is missing, and vanishes where
the guide is exact.
"""

import torch
from torch import Tensor

from .base import Among, Gradient, Objective
from .draws import Draws


class Covering(Objective):
    r"""The ELBO and the Rényi bound of order one half, mixed: a last touch for a guide that is too thin somewhere.

    The gradient of :math:`E_q \sqrt w` is a quarter of :math:`E_q[\sqrt w\, \nabla^\mathrm{path} \log w]` [1, 2], so
    a draw's path counts

    .. math:: \frac{1 - s}{K} + s\,\frac{\sqrt{w_k}}{\sum_j \sqrt{w_j}} .

    Draws of large weight have more say, and fewer of them remain; the exact posterior is a fixed point of both parts.

    :param share: :math:`s`, between 0 (the ELBO) and 1.

    **References**

    [1] Y. Li, R. E. Turner (2016). Rényi Divergence Variational Inference.

    [2] G. Tucker, D. Lawson, S. Gu, C. Maddison (2018). Doubly Reparameterized Gradient Estimators for Monte Carlo
    Objectives.
    """

    def __init__(self, share: float | Tensor = 0.5):
        self.share = share

    def mixed(self, share: Tensor) -> "Covering":
        return Covering(share)

    def weighs(self, share: Tensor) -> bool:
        return bool((share != 0).any())

    def coefficients(self, log_weight: Tensor, gradient: Gradient) -> tuple[Tensor, Tensor]:
        even = torch.full_like(log_weight, 1 / len(log_weight))
        return (1 - self.share) * even + self.share * (0.5 * log_weight).softmax(0), even


class Balanced(Covering):
    r"""The ELBO by its path gradient and its score gradient added up: for several modes.

    Where the guide has the shape of a mode but not its mass, :math:`\log w` is a constant on it, and the path gradient
    is zero but for the few draws between modes. The score gradient [1, 2] sees the constant:

    .. math:: \frac1K \sum_k (c_k - \bar c)\, \nabla_\phi \log q_\phi(z_k)\big|_{z_k}, \qquad
        c_k = \log w_k - \mathrm{median}, \ \text{clipped to } [-b, b].

    :param num_particles: draws :math:`K` an evaluation.
    :param limit: :math:`b`.
    :param share: as for :class:`Covering`, in the path part.

    **References**

    [1] R. J. Williams (1992). Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
    Learning.

    [2] L. Richter, A. Boustati, N. Nüsken, F. Ruiz, Ö. D. Akyildiz (2020). VarGrad: A Low-Variance Gradient Estimator
    for Variational Inference.
    """

    def __init__(self, num_particles: int = 1, limit: float = 5.0, share: float | Tensor = 0.0):
        super().__init__(share)
        self.num_particles, self.limit = num_particles, limit

    def mixed(self, share: Tensor) -> "Balanced":
        return Balanced(self.num_particles, self.limit, share)

    def weighs(self, share: Tensor) -> bool:
        return True

    def surrogate(self, draws: Draws, gradient: Gradient, among: Among | None = None) -> Tensor:
        log_weight = draws.log_weight.detach() if among is None else among[0]
        cost = (log_weight - log_weight.median()).clamp(-self.limit, self.limit)
        cost, num = cost - cost.mean(), len(cost)
        own = cost if among is None else cost[among[1]]
        return super().surrogate(draws, gradient, among) + own @ draws.log_q_there() / num
