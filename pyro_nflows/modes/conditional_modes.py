r"""Where the other latents are given hubs, and how sure that is: their mode and curvature at any values of the hubs.

Given its variances and ranges, a chain or a field is Gaussian, or nearly: then :math:`p(z | g, x)` is about
:math:`N(m(g), \Lambda(g)^{-1})` with its mode and curvature, and the posterior of the hubs is, but for a constant,

.. math:: p(g | x) \approx p(x, g, m(g)) \, \lvert \Lambda(g) \rvert^{-1/2}

(Laplace [1, 2]), exactly so where it is Gaussian. Newton's steps find :math:`m(g)` at many :math:`g` at once; one is
enough where it is Gaussian.

Where it is not, its mean is not its mode. To the third order it is [2, 3]

.. math:: m + \frac{1}{2} \Lambda^{-1} \sum_{jk} (\Lambda^{-1})_{jk} \, \partial_j \partial_k \nabla \log p ,

with the covariances only where the Hessian has numbers, and these as a sum of a few products :math:`v w^\top`, for each
of which differences of four gradients are enough. A Gaussian about there has more even weights: for a chain of 500
volatilities an ESS of 0.86 in place of 0.58.

**References**

[1] L. Tierney, J. Kadane (1986). Accurate Approximations for Posterior Moments and Marginal Densities.

[2] H. Rue, S. Martino, N. Chopin (2009). Approximate Bayesian Inference for Latent Gaussian Models by Using
Integrated Nested Laplace Approximations.

[3] L. Tierney, R. Kass, J. Kadane (1989). Fully Exponential Laplace Approximations to Expectations and Variances of
Nonpositive Functions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.density_gradient import DensityGradient
from ..model.elimination import Elimination
from ..model.pattern import Pattern
from .sparse_curvature import Nodes, SparseCurvature, drawn, log_widths, solved

#: Newton's steps at most, and the standard deviations, of all latents together, from which on there is none.
NUM_STEPS, NEAR = 12, 0.02
#: A step is not halved further than to this share of it.
SHORTEST = 0.01
#: By how many standard deviations of a latent third derivatives are differences.
FAR = 0.5
#: Nats that one draw may count at most where Gaussians are compared.
MOST = 20.0
#: What rounding may take off a log density.
SLACK = 1e-3


class Conditional(NamedTuple):
    """The others given ``N`` values of the hubs.

    :param hubs: ``(N, num_hubs)``.
    :param log_marginal: of the hubs, but for a constant, ``(N,)``; ``-inf`` where no mode was found.
    :param loc: the mode of the others, ``(N, num_rest)``.
    :param nodes: the Gaussians of their curvature.
    """

    hubs: Tensor
    log_marginal: Tensor
    loc: Tensor
    nodes: Nodes

    def of(self, rows: Tensor) -> "Conditional":
        """At some of the values."""
        nodes = [(root[rows], slope[rows]) for root, slope in self.nodes]
        return Conditional(self.hubs[rows], self.log_marginal[rows], self.loc[rows], nodes)

    def and_of(self, other: "Conditional") -> "Conditional":
        """At its own values, then at those of another one."""
        pairs = zip(self.nodes, other.nodes)
        nodes = [(torch.cat([root, its_root]), torch.cat([slope, its])) for (root, slope), (its_root, its) in pairs]
        hubs, marginal, loc = (torch.cat(pair) for pair in zip(self[:3], other[:3]))
        return Conditional(hubs, marginal, loc, nodes)


class ConditionalModes:
    """Finds them.

    :param density: of all latents.
    :param pattern: which ones are hubs.
    :param among: the nodes of the others, numbered as they come.
    :param near: a point to begin from, of all latents, for each value of the hubs.
    """

    def __init__(
        self, density: DensityGradient, pattern: Pattern, among: Elimination, near: Callable[[Tensor], Tensor]
    ):
        self.density, self.among, self.near = density, among, near
        self.hubs, self.rest, self.curvature = pattern.hubs, pattern.others, SparseCurvature(among)
        probes = self.curvature.probes()
        self._rows = probes.new_zeros(len(probes), pattern.dim)
        self._rows[:, self.rest] = probes

    def at(self, hubs: Tensor) -> Conditional:
        """The others at values of the hubs ``(N, num_hubs)``, by steps of Newton, shorter where they are too long."""
        like = self.near(hubs)
        z, length = like.double().cpu().clone(), torch.ones(len(like), dtype=torch.double, device="cpu")
        value, grad, nodes = self._look(z, like)
        for number in range(NUM_STEPS + 1):
            step = solved(self.among, nodes, grad)
            left = (step * grad).sum(-1)
            moving = ((left > NEAR**2) & value.isfinite() & (length > SHORTEST)).nonzero()[:, 0]
            if number == NUM_STEPS or not len(moving):
                break
            there = z[moving]
            there[:, self.rest] += length[moving, None] * step[moving]
            new_value, new_grad, new_nodes = self._look(there, like)
            good = (new_value >= value[moving] - SLACK) & new_grad.isfinite().all(-1)
            length[moving] = torch.where(good, (2 * length[moving]).clamp(max=1.0), 0.25 * length[moving])
            moved = moving[good]
            z[moved], value[moved], grad[moved] = there[good], new_value[good], new_grad[good]
            for (root, slope), (new_root, new_slope) in zip(nodes, new_nodes):
                root[moved], slope[moved] = new_root[good], new_slope[good]
        marginal = value + 0.5 * left + log_widths(self.among, nodes).sum(-1)
        found = (left < 1.0) & marginal.isfinite()
        return Conditional(hubs, torch.where(found, marginal, -torch.inf), z[:, self.rest] + step, nodes)

    def at_means(self, given: Conditional, noise: Tensor, weight: Tensor) -> Conditional:
        """The same Gaussians about the means in place of the modes, unless draws say that they are closer as they are.

        :param given: see :meth:`at`.
        :param noise: standard normal rows ``(N, num_rest)`` by which they are compared.
        :param weight: how much each value of the hubs matters, ``(N,)``.
        """
        like = self.near(given.hubs)
        pairs = self.curvature.summands(self.curvature.covariances(given.nodes))
        third = torch.zeros_like(given.loc)
        for v, w in zip(*((FAR * part).unbind(-2) for part in pairs)):
            for sign, way in ((1.0, v + w), (1.0, -v - w), (-1.0, v - w), (-1.0, w - v)):
                there = self._joined(like, given.loc + way).to(like)
                grads = self.density.values_and_grads(there)[1][:, self.rest]
                third += sign * grads.double().cpu() / (4 * FAR**2)
        loc = given.loc + solved(self.among, given.nodes, 0.5 * third)
        found = (given.log_marginal > -torch.inf) & loc.isfinite().all(-1)
        made = given._replace(loc=torch.where(found[:, None], loc, given.loc))
        gain = (self._bounds(made, noise, like) - self._bounds(given, noise, like)).nan_to_num(0.0).clamp(-MOST, MOST)
        return made if float((weight * gain)[found].sum()) > 0 else given

    def _bounds(self, given: Conditional, noise: Tensor, like: Tensor) -> Tensor:
        """One draw's worth of the ELBO of each, but for a constant; ``-inf`` where the density is zero."""
        z = self._joined(like, self.draws(given, noise)).to(like)
        value = self.density.values_and_grads(z)[0].double().cpu().nan_to_num(-torch.inf, -torch.inf)
        return value + log_widths(self.among, given.nodes).sum(-1)

    def _joined(self, like: Tensor, rest: Tensor) -> Tensor:
        """Points of all latents, with the hubs of ``like`` and these others."""
        z = like.double().cpu().clone()
        z[:, self.rest] = rest
        return z

    def _look(self, z: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Nodes]:
        """Values, gradients, and the Gaussians of the curvature, in double precision."""
        found = self.density.curvatures(z.to(like), self._rows.to(like))
        value, grad, products = (part.double().cpu() for part in found)
        value = torch.where(products.isfinite().all(-1).all(-1), value, -torch.inf)
        nodes = self.curvature.factors(self.curvature.read(-products[..., self.rest].nan_to_num(0.0, 0.0, 0.0)))
        return value, grad[:, self.rest].nan_to_num(0.0, 0.0, 0.0), nodes

    def draws(self, given: Conditional, x: Tensor) -> Tensor:
        """Standard normal rows ``(N, num_rest)`` as a draw of the others for each value of the hubs."""
        return given.loc + drawn(self.among, given.nodes, x)
