import math
from typing import cast

import torch
from torch import Tensor, nn

from ..checks import check_functions, check_sizes, is_number
from ..numerics import LogDensity, standard_normal_log_prob
from ..system.gradients import pullback
from .base import Exactness, Layer, Scored

#: By how much a half step pushes a coordinate of the momentum at most, in its standard deviations.
MOST_PUSHED = 5.0


class Hamiltonian(Layer):
    r"""Leapfrog steps from a standard normal to a target, along densities between them: uncorrected annealing [1, 2].

    With momenta :math:`v_0, \epsilon_k \sim N(0, I)`, in the noise, step :math:`k = 1, \dots, K` is a leapfrog step

    .. math:: v \leftarrow v + \tfrac{\eta_k}2 s\, \nabla\log\pi_k(x), \qquad x \leftarrow x + \eta_k s\, v, \qquad
        v \leftarrow v + \tfrac{\eta_k}2 s\, \nabla\log\pi_k(x), \qquad
        \pi_k \propto N(0, I)^{1 - \beta_k}\, p^{\beta_k},

    and then the momentum is partly renewed, which is a rotation of it and of fresh noise:

    .. math:: v \leftarrow \gamma_k v + \sqrt{1 - \gamma_k^2}\, \epsilon_k, \qquad
        u_k = \sqrt{1 - \gamma_k^2}\, v - \gamma_k \epsilon_k .

    All this is a bijection of :math:`(x, \epsilon)` and :math:`(y, u)` that keeps volume. What it pays for not
    integrating out the momenta is

    .. math:: \log w = \log N(u; 0, I) - \log N(\epsilon; 0, I),

    the ratio of the backward momentum kernels to the forward ones. So the layer needs the target's gradient only, and
    weights are right whatever the target is: a target far from the posterior costs accuracy, not correctness. Betas
    (increasing, the last is 1), step sizes :math:`\eta`, scales :math:`s` (the inverse square root of a diagonal mass)
    and :math:`\gamma` are trained. With more steps the bound comes nearer to the log evidence.

    A push :math:`\tfrac{\eta_k}2 s\, \nabla\log\pi_k` is at most 5 in each coordinate, and 0 where it is not a number:
    where the curvature is too high for the step, a trajectory would end in infinity. Volume is kept, and weights are
    right, whatever the push, as long as it depends on :math:`x` alone.

    It starts at the identity, with :math:`\eta = 0`. The bound is even in :math:`\eta`: noise takes it away from there.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param log_density: :math:`\log p`, up to a constant: ``(N, D) -> (N,)``, differentiable twice.
    :param num_steps: :math:`K`.
    :param num_leapfrog: leapfrog steps at each :math:`\beta_k`.
    :param step_size: where :math:`\eta` starts.
    :param damping: where :math:`\gamma` starts; at 0 it stays there, and each step has a new momentum.
    :raises TypeError: if ``log_density`` is not a function.
    :raises ValueError: if a size is not a positive integer or ``damping`` not in ``[0, 1)``; when called, if
        ``log_density`` does not give a number a row.

    Example::

        >>> layer = Hamiltonian(3, lambda z: -(z - 1).square().sum(-1), num_steps=8, step_size=0.3)
        >>> y, log_weight = layer(torch.randn(10, 3), torch.randn(10, layer.noise_dim))
        >>> layer.noise_dim, layer.exactness.name
        (24, 'PROPER')

    **References**

    [1] G. Zhang, K. Hsu, J. Li, C. Finn, R. Grosse (2021). Differentiable Annealed Importance Sampling and the Perils
    of Gradient Noise.

    [2] T. Geffner, J. Domke (2021). MCMC Variational Inference via Uncorrected Hamiltonian Annealing.
    """

    exactness = Exactness.PROPER

    def __init__(
        self,
        input_dim: int,
        log_density: LogDensity = standard_normal_log_prob,
        num_steps: int = 4,
        *,
        num_leapfrog: int = 1,
        step_size: float = 0.0,
        damping: float = 0.9,
    ):
        super().__init__(input_dim)
        check_sizes("Hamiltonian", num_steps=num_steps, num_leapfrog=num_leapfrog)
        check_functions("Hamiltonian", log_density=log_density)
        if not is_number(step_size) or not math.isfinite(step_size):
            raise ValueError(f"Hamiltonian: expected step_size to be a number, got {step_size!r}")
        if not is_number(damping) or not 0 <= damping < 1:
            raise ValueError(f"Hamiltonian: expected a damping of at least 0 and below 1, got {damping!r}")
        self.log_density, self.num_steps, self.num_leapfrog = log_density, num_steps, num_leapfrog
        self.noise_dim = self.inverse_noise_dim = num_steps * input_dim
        self.step_size = nn.Parameter(torch.tensor(float(step_size)))
        self.log_scale = nn.Parameter(torch.zeros(input_dim))
        several = num_steps > 1
        self.logits = nn.Parameter(torch.zeros(num_steps)) if several else None
        self.log_step = nn.Parameter(torch.zeros(num_steps)) if several else None
        #: Of the rotation: the arccosine of the damping.
        self.angle = nn.Parameter(torch.full((num_steps - 1,), math.acos(damping))) if several and damping else None

    def betas(self) -> Tensor:
        r""":math:`\beta_1 < \dots < \beta_K = 1`."""
        return torch.ones_like(self.log_scale[:1]) if self.logits is None else self.logits.softmax(0).cumsum(0)

    def _steps(self) -> Tensor:
        r""":math:`\eta_k s`, of shape ``(K, D)``."""
        sizes = self.log_scale if self.log_step is None else self.log_step[:, None] + self.log_scale
        return (self.step_size * sizes.exp()).reshape(self.num_steps, -1)

    def _gradient(self, x: Tensor) -> Tensor:
        """The gradient of the target's log density."""
        rows = x.reshape(-1, self.input_dim)
        value, pull, *_ = torch.func.vjp(self.log_density, rows)
        if value.shape != rows.shape[:1]:
            raise ValueError(
                f"{type(self).__name__}: expected log_density to take {tuple(rows.shape)} to {tuple(rows.shape[:1])}, "
                f"got {tuple(value.shape)}; it should give one number for each row"
            )
        return cast(Tensor, pull(torch.ones_like(value))[0]).reshape(x.shape)

    def _leap(self, x: Tensor, v: Tensor, grad: Tensor, step: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A leapfrog trajectory, and the grad at its end; minus the step takes it back."""
        for _ in range(self.num_leapfrog):
            v = v + _push(x, grad, step, beta)
            x = x + step * v
            grad = self._gradient(x)
            v = v + _push(x, grad, step, beta)
        return x, v, grad

    def _turn(self, v: Tensor, eps: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The renewed momentum and what is left of the old. The map is its own inverse."""
        if self.angle is None:
            return eps, v
        cos, sin = self.angle[k].cos(), self.angle[k].sin()
        return cos * v + sin * eps, sin * v - cos * eps

    def _advance(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``(y, u)``."""
        v, *rest = noise.split(self.input_dim, -1)
        steps, betas, grad, left = self._steps(), self.betas(), self._gradient(x), []
        for k in range(self.num_steps):
            x, v, grad = self._leap(x, v, grad, steps[k], betas[k])
            if rest[k:]:
                v, old = self._turn(v, rest[k], k)
                left.append(old)
        return x, torch.cat([*left, v], -1)

    def _retreat(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """``(x, noise)``: the same steps back."""
        *left, v = u.split(self.input_dim, -1)
        steps, betas, grad, rest = self._steps(), self.betas(), self._gradient(y), list[Tensor]()
        for k in reversed(range(self.num_steps)):
            y, v, grad = self._leap(y, v, grad, -steps[k], betas[k])
            if k:
                v, eps = self._turn(v, left[k - 1], k - 1)
                rest.insert(0, eps)
        return y, torch.cat([v, *rest], -1)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        noise = cast(Tensor, noise)
        y, u = self._advance(x, noise)
        return y, 0.5 * (noise.square() - u.square()).sum(-1)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u = cast(Tensor, noise)
        x, noise = self._retreat(y, u)
        return x, 0.5 * (noise.square() - u.square()).sum(-1)

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        """The pass in the extended space: ``(x, noise)`` to ``(y, u)`` keeps volume."""
        noise = cast(Tensor, noise)
        y, u = self._advance(x, noise)
        log_r = standard_normal_log_prob(u)
        index_reverse: Tensor | float = 0.0
        with torch.no_grad():
            _, pull = pullback(self._retreat, y.detach(), u.detach())
            score, index = (t.detach() for t in pull((score, -noise.detach())))
            if reverse.numel():
                reverse, along = (t.detach() for t in pull((reverse, torch.zeros_like(noise))))
        if reverse.numel():
            index_reverse = ((along - u.detach()) * u).sum(-1)
        log_weight = log_r - standard_normal_log_prob(noise)
        return Scored(y, log_weight, score, reverse, (index * u).sum(-1), index_reverse, log_r)

    def extra_repr(self) -> str:
        return f"{self.input_dim}, num_steps={self.num_steps}"


def _push(x: Tensor, grad: Tensor, step: Tensor, beta: Tensor) -> Tensor:
    """What half a step adds to the momentum."""
    push = 0.5 * step * (beta * grad - (1 - beta) * x)
    return torch.where(push.isnan(), 0.0, push).clamp(-MOST_PUSHED, MOST_PUSHED)


class Langevin(Layer):
    r"""Unadjusted Langevin steps from a standard normal to a target, along densities between them [1, 2].

    .. math:: x_{k+1} = x_k + \tfrac{\eta_k^2}2 s^2\, \nabla\log\pi_k(x_k) + \eta_k s\, \epsilon_k, \qquad
        \log w = \sum_k \log r(x_k | x_{k+1}) - \log q(x_{k+1} | x_k)

    Each step is undone by the same kernel: :class:`Hamiltonian` with one leapfrog step and a new momentum each time;
    see there, also for the bound of :math:`\tfrac{\eta_k}2 s\, \nabla\log\pi_k`. Momenta that last, as
    there, usually take fewer steps.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param log_density: :math:`\log p`, up to a constant: ``(N, D) -> (N,)``, differentiable twice.
    :param num_steps: :math:`K`.
    :param step_size: where :math:`\eta` starts; at 0, the layer is the identity.
    :raises TypeError, ValueError: as :class:`Hamiltonian` does.

    Example::

        >>> layer = Langevin(3, lambda z: -(z - 1).square().sum(-1), num_steps=8, step_size=0.3)
        >>> y, log_weight = layer(torch.randn(10, 3), torch.randn(10, layer.noise_dim))

    **References**

    [1] D. Rezende, S. Mohamed (2015). Variational Inference with Normalizing Flows.

    [2] A. Thin, N. Kotelevskii, A. Doucet, A. Durmus, E. Moulines, M. Panov (2021). Monte Carlo Variational
    Auto-Encoders.
    """

    exactness = Exactness.PROPER

    def __init__(
        self,
        input_dim: int,
        log_density: LogDensity = standard_normal_log_prob,
        num_steps: int = 4,
        *,
        step_size: float = 0.0,
    ):
        super().__init__(input_dim)
        check_sizes("Langevin", num_steps=num_steps)
        self.steps = Hamiltonian(input_dim, log_density, num_steps, step_size=step_size, damping=0.0)
        self.noise_dim = self.inverse_noise_dim = self.steps.noise_dim

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_weight = self.steps(x, noise)
        return y, log_weight

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.steps.inverse(y, noise)

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        return self.steps.scored(x, noise, score, reverse)
