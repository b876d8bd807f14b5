r"""Objectives used where plain path gradients are not enough.

Path gradients move each draw. They say little of what is wrong with the *amount* of draws: in a region that the guide
hardly visits, or in a mode that has too much of the mass. Each class here adds what is missing, and vanishes where
the guide is exact.
"""

from abc import ABC, abstractmethod

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


class _Scored(Covering, ABC):
    """One to whose path part a score part is added: each draw's gain, less the mean of all, times its score."""

    @abstractmethod
    def gains(self, log_weight: Tensor) -> Tensor:
        """Of each draw, by the log weights of all."""

    def weighs(self, share: Tensor) -> bool:
        return True

    def bound(self, log_weight: Tensor) -> Tensor:
        return bound_inside(log_weight)

    def surrogate(self, draws: Draws, gradient: Gradient, among: Among | None = None) -> Tensor:
        gains = self.gains(draws.log_weight.detach() if among is None else among[0])
        gains, num = gains - gains.mean(), len(gains)
        own = gains if among is None else gains[among[1]]
        return super().surrogate(draws, gradient, among) + own @ draws.log_q_there() / num


class Balanced(_Scored):
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

    def gains(self, log_weight: Tensor) -> Tensor:
        level = log_weight.median()
        level = torch.where(level > -torch.inf, level, log_weight.amax())
        return (log_weight - level).clamp(-self.limit, self.limit)


class Within(_Scored):
    r"""The ELBO of a guide that ends where the model's density does: for supports that no site declares.

    Where :math:`p` is zero in a part of space that the guide reaches, as beyond the largest of observations that are
    uniform up to an unknown end, the ELBO is :math:`-\infty`. But its draws inside, in a region :math:`A`, are draws of
    :math:`q / q(A)`, whose ELBO is a lower bound of the log evidence as any other:

    .. math:: \mathcal L_A = \log q(A) + \mathrm E_q[\log w \mid A] .

    It does not mind how many draws are lost, and the ESS does, which is :math:`q(A)` times that of the draws inside. So
    :math:`\mathcal L_A + \log q(A)` is climbed: the first, where :math:`\log w` is about its mean along the edge, by
    the paths of the draws inside, the second by the score [1]. With :math:`a_k` one inside and zero elsewhere, that is

    .. math:: \frac1K \sum_k \Bigl[ a_k \nabla^\mathrm{path}_\phi \log w_k
        + (a_k - \bar a)\, \nabla_\phi \log q_\phi(z_k)\big|_{z_k} \Bigr] ,

    over :math:`q(A)`.

    :param share: as for :class:`Covering`, in the path part.

    **References**

    [1] R. J. Williams (1992). Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
    Learning.
    """

    def mixed(self, share: Tensor) -> "Within":
        return Within(share)

    def gains(self, log_weight: Tensor) -> Tensor:
        return (log_weight != -torch.inf).to(log_weight)


def bound_inside(log_weight: Tensor) -> Tensor:
    r"""The ELBO of the draws that have a weight, :math:`\mathcal L_A` of :class:`Within`; the ELBO where all have one.

    Example::

        >>> bound_inside(torch.tensor([-1.0, -3.0, -torch.inf]))  # -2 + log(2 / 3)
        tensor(-2.4055)
    """
    inside = log_weight != -torch.inf
    num = inside.to(log_weight).sum()
    return torch.where(inside, log_weight, 0.0).sum() / num + (num / len(log_weight)).log()
