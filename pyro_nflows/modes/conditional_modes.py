r"""Where the other latents are given hubs, and how sure that is: their mode and curvature at any values of the hubs.

Given its variances and ranges, a chain or a field is Gaussian, or nearly: then :math:`p(z | g, x)` is about
:math:`N(m(g), \Lambda(g)^{-1})` with its mode and curvature, and the posterior of the hubs is, but for a constant,

.. math:: p(g | x) \approx p(x, g, m(g)) \, \lvert \Lambda(g) \rvert^{-1/2}

(Laplace [1, 2]), exactly so where it is Gaussian. Newton's steps find :math:`m(g)` at many :math:`g` at once; one is
enough where it is Gaussian.

Where it is not, the Gaussian :math:`q = N(m, \Lambda^{-1})` that is closest, by :math:`KL(q | p)`, is another one [3]:

.. math:: E_q \nabla \log p = 0, \qquad \Lambda = -E_q \nabla^2 \log p .

Means over :math:`m \pm \sigma`, all latents at once, are exact to the third order for a density whose other terms than
quadratic ones are of a single latent each, such as data seen with a noise that is not normal.

**References**

[1] L. Tierney, J. Kadane (1986). Accurate Approximations for Posterior Moments and Marginal Densities.

[2] H. Rue, S. Martino, N. Chopin (2009). Approximate Bayesian Inference for Latent Gaussian Models by Using
Integrated Nested Laplace Approximations.

[3] M. Opper, C. Archambeau (2009). The Variational Gaussian Approximation Revisited.
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
#: Times that the closest Gaussian is moved to its own means of gradients and curvatures.
NUM_MATCHES = 2
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

    def where(self, mask: Tensor, other: "Conditional") -> "Conditional":
        """Where a mask says so; elsewhere another one, at the same values."""
        pairs = zip(self.nodes, other.nodes)
        nodes = [tuple(torch.where(mask[:, None, None, None], a, b) for a, b in zip(*pair)) for pair in pairs]
        loc = torch.where(mask[:, None], self.loc, other.loc)
        return Conditional(self.hubs, self.log_marginal, loc, nodes)  # type: ignore[arg-type]

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
        z, length = like.double().cpu(), torch.ones(len(like), dtype=torch.double, device="cpu")
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

    def matched(self, given: Conditional, noise: Tensor, weight: Tensor) -> Conditional:
        """The same with the closest Gaussians in place of those at the modes, unless draws say that these are closer.

        :param given: see :meth:`at`.
        :param noise: standard normal rows ``(N, num_rest)`` by which they are compared.
        :param weight: how much each value of the hubs matters, ``(N,)``.
        """
        like, loc, nodes = self.near(given.hubs), given.loc, given.nodes
        found = given.log_marginal > -torch.inf
        for _ in range(NUM_MATCHES):
            width = self.curvature.variances(nodes).sqrt()
            ends = [self._derived(self._joined(like, loc + sign * width), like) for sign in (-1.0, 1.0)]
            grad, numbers = (0.5 * (a + b) for a, b in zip(*(end[1:] for end in ends)))
            found = found & ends[0][0].isfinite() & ends[1][0].isfinite()
            before, nodes = log_widths(self.among, nodes), self.curvature.factors(numbers)
            step = solved(self.among, nodes, grad)
            loc = loc + step
            gap = (step * grad).sum(-1) + 2 * (log_widths(self.among, nodes) - before).square().sum(-1)
            if not bool((gap[found] > NEAR**2).any()):
                break
        found = found & loc.isfinite().all(-1)
        made = Conditional(given.hubs, given.log_marginal, loc, nodes).where(found, given)
        gain = self._bounds(made, noise, like) - self._bounds(given, noise, like)
        return made if float((weight * gain)[found].sum()) > 0 else given

    def _bounds(self, given: Conditional, noise: Tensor, like: Tensor) -> Tensor:
        """One draw's worth of the ELBO of each, but for a constant; ``-inf`` where the density is zero."""
        z = self._joined(like, self.draws(given, noise)).to(like)
        value = self.density.values_and_grads(z)[0].double().cpu().nan_to_num(-torch.inf, -torch.inf)
        return value + log_widths(self.among, given.nodes).sum(-1)

    def _joined(self, like: Tensor, rest: Tensor) -> Tensor:
        """Points of all latents, with the hubs of ``like`` and these others."""
        z = like.double().cpu()
        z[:, self.rest] = rest
        return z

    def _look(self, z: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Nodes]:
        """Values, gradients, and the Gaussians of the curvature, in double precision."""
        value, grad, numbers = self._derived(z, like)
        return value, grad, self.curvature.factors(numbers)

    def _derived(self, z: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, ``-inf`` where the others are not finite; gradients; and the numbers of the curvature."""
        found = self.density.curvatures(z.to(like), self._rows.to(like))
        value, grad, products = (part.double().cpu() for part in found)
        value = torch.where(products.isfinite().all(-1).all(-1), value, -torch.inf)
        numbers = self.curvature.read(-products[..., self.rest].nan_to_num(0.0, 0.0, 0.0))
        return value, grad[:, self.rest].nan_to_num(0.0, 0.0, 0.0), numbers

    def draws(self, given: Conditional, x: Tensor) -> Tensor:
        """Standard normal rows ``(N, num_rest)`` as a draw of the others for each value of the hubs."""
        return given.loc + drawn(self.among, given.nodes, x)
