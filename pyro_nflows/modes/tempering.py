r"""Sequential Monte Carlo [1] from a wide Gaussian to the posterior.

.. math:: \pi_\beta(z) \propto g(z)^{1 - \beta}\, p(x, z)^\beta, \qquad \beta: 0 \to 1

Particles drawn from :math:`g` are reweighted to the next temperature, resampled, and moved by Hamiltonian Monte Carlo.
The next temperature is the one at which the effective sample size of the step's weights falls to a set share, and the
mean weights multiply to an estimate of the evidence. It starts wide and knows nothing of any guide: what a guide has
missed shows up here.

**References**

[1] P. Del Moral, A. Doucet, A. Jasra (2006). Sequential Monte Carlo Samplers.
"""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine import DensityGradient
from ..numerics import finite, standard_normal_log_prob
from .gaussians import Gaussian
from .hamiltonian import Points, move

#: Least effective sample size of a step's weights, as a fraction of the particles.
STEP_ESS = 0.6
#: Trajectories at each temperature, and leapfrog steps of each.
NUM_TRAJECTORIES, NUM_LEAPFROGS = 3, 8
#: Acceptance that the step size is adapted to.
ACCEPTANCE = 0.8
#: Temperatures after which it gives up.
MAX_TEMPERATURES = 200


class Tempered(NamedTuple):
    """Equally weighted draws ``(N, D)``, their log joint ``(N,)``, and the estimate of the log evidence."""

    draws: Tensor
    log_p: Tensor
    log_evidence: float


class _Particles:
    """Particles in the coordinates of the start, where it is standard normal."""

    def __init__(self, density: DensityGradient, start: Gaussian, num_particles: int):
        self.density, self.start = density, start
        self.log_det = start.log_det
        x = torch.randn(num_particles, len(start.loc)).to(start.loc)
        self.points = Points(x, *self.evaluate(x))
        self.step_size = 0.5 * len(start.loc) ** -0.25

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log density and gradient; minus infinity and zero where they are not finite."""
        log_p, grad = self.density.values_and_grads(self.start.points(x))
        return finite(log_p + self.log_det, self.start.pulled(grad))

    def log_ratio(self) -> Tensor:
        return self.points.log_p - standard_normal_log_prob(self.points.x)

    def resample(self, log_weight: Tensor) -> None:
        edges = log_weight.softmax(0).cumsum(0)
        ticks = (torch.arange(len(edges)).to(edges) + torch.rand(()).to(edges)) / len(edges)
        index = torch.searchsorted(edges, ticks).clamp(max=len(edges) - 1)
        self.points = Points(*(part[index] for part in self.points))

    def move(self, beta: float) -> None:
        """A Hamiltonian trajectory for every particle, of random step sizes about the adapted one."""
        self.points, accepted = move(self.evaluate, self.points, self.step_size, NUM_LEAPFROGS, beta)
        self.step_size *= math.exp(accepted - ACCEPTANCE)

    def tempered(self, log_evidence: float) -> Tempered:
        """The particles in the model's coordinates."""
        x, log_p, _ = self.points
        return Tempered(self.start.points(x), log_p - self.log_det, log_evidence)


def temper(
    density: DensityGradient,
    start: Gaussian,
    num_particles: int = 2048,
    max_seconds: float = math.inf,
    until: float = math.inf,
) -> Tempered | None:
    """Particles distributed as the posterior; None if that temperature was not reached.

    :param density: the model's log density.
    :param start: wide enough to hold all of the posterior.
    :param num_particles: how many.
    :param max_seconds: of processor time, after which to give up; not of a clock, by which what is found would depend
        on what else the machine does.
    :param until: when to give up, by ``time.perf_counter``.
    """
    began = time.thread_time()
    particles, beta, log_evidence = _Particles(density, start, num_particles), 0.0, 0.0
    for _ in range(MAX_TEMPERATURES):
        ratio = particles.log_ratio()
        step = _next_step(ratio, 1 - beta)
        if not step > 0 or time.thread_time() - began > max_seconds or time.perf_counter() > until:
            return None
        log_evidence += float((step * ratio).logsumexp(0)) - math.log(num_particles)
        beta = min(1.0, beta + step)
        particles.resample(step * ratio)
        for _ in range(NUM_TRAJECTORIES):
            particles.move(beta)
        if beta >= 1:
            return particles.tempered(log_evidence)
    return None


def _next_step(ratio: Tensor, longest: float) -> float:
    """The rise in temperature, by bisection; 0 where no particle has any weight."""

    def fraction(step: float) -> float:
        weights = (step * ratio).softmax(0)
        return float(1 / weights.square().sum()) / len(ratio)

    if not bool((ratio > -torch.inf).any()):
        return 0.0
    if fraction(longest) >= STEP_ESS:
        return longest
    low, high = 0.0, longest
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fraction(middle) >= STEP_ESS else (low, middle)
    return low or high
