r"""Draws of a flow with their weights: the one place where a guide and a model meet."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.base import Layer, Scored
from ..numerics import LogDensity, finite_rows, in_pairs, quasi_normal, standard_normal_log_prob
from ..system.gradients import pullback


@dataclass(frozen=True)
class Draws:
    r"""Rows :math:`z \sim q` with :math:`\log p(x, z)` and :math:`\log \hat q`.

    ``grad_log_p`` (detached) and ``scored`` are there only when path gradients were asked for; ``log_p`` then does not
    depend on the flow's parameters.
    """

    z: Tensor
    log_p: Tensor
    log_q: Tensor
    grad_log_p: Tensor | None = None
    scored: Scored | None = None

    @property
    def log_weight(self) -> Tensor:
        r""":math:`\log w = \log p(x, z) - \log \hat q`, one a row."""
        return self.log_p - self.log_q

    def path(self) -> tuple[Tensor, Tensor]:
        r"""The two parts of :math:`\log w` as path gradients see it, one a row each.

        The gradient of the first is that of the path, through the draw; of the second, that of the model's
        parameters and of the reverse model :math:`r`, at a fixed draw.
        """
        if self.scored is None or self.grad_log_p is None:
            raise ValueError("Draws.path: these draws carry no path gradients; take them with draw_scored")
        _, _, score, reverse, index_score, index_reverse, log_r = self.scored
        pull = finite_rows(self.grad_log_p - score)
        if not reverse.numel():
            return (pull * self.z).sum(-1) - index_score, self.log_p + log_r
        along = (reverse * self.z).sum(-1) + index_reverse
        return (pull * self.z).sum(-1) - index_score + along, self.log_p + log_r - along

    def log_q_there(self) -> Tensor:
        r"""A number a row whose gradient is the score, :math:`\nabla_\phi \log q_\phi` at a fixed draw."""
        if self.scored is None:
            raise ValueError("Draws.log_q_there: these draws carry no path gradients; take them with draw_scored")
        path = (self.scored.score * self.z).sum(-1) + self.scored.index_score
        return self.log_q + self.scored.log_r - path


def base_noise(layer: Layer, num_particles: int) -> Tensor:
    """Standard normal numbers for ``num_particles`` draws: the base point and the layers' noise side by side."""
    like = next(layer.parameters())
    width = layer.input_dim + layer.noise_dim
    return torch.randn(num_particles, width, dtype=like.dtype, device=like.device)


def paired_noise(layer: Layer, num_particles: int) -> Tensor:
    """The same, but the second half the negatives of the first: for particles that have one minibatch together.

    The minibatch moves the gradient at all draws alike, and in a pair that cancels in what is odd in the noise, such as
    the gradients of scales and correlations (:mod:`pyro_nflows.guides.minibatch`).
    """
    return in_pairs(base_noise(layer, num_particles))


def even_noise(layer: Layer, num_samples: int) -> Tensor:
    """The same, but quasi-random, in random order: for draws whose means are to be close."""
    like, width = next(layer.parameters()), layer.input_dim + layer.noise_dim
    if width > torch.quasirandom.SobolEngine.MAXDIM:
        return base_noise(layer, num_samples)
    points = quasi_normal(num_samples, width, seed=int(torch.randint(2**31, ())))
    return points[torch.randperm(num_samples)].to(like)


def split_noise(layer: Layer, noise: Tensor) -> tuple[Tensor, Tensor | None]:
    """The base point and the layers' share."""
    rest = noise[..., layer.input_dim :] if layer.noise_dim else None
    return noise[..., : layer.input_dim], rest


def draw(log_joint: LogDensity, layer: Layer, noise: Tensor) -> Draws:
    """Draws whose log-weights are differentiable in everything: total gradients.

    :param log_joint: ``z (K, D) -> (K,)``.
    :param layer: the flow.
    :param noise: from :func:`base_noise`.
    """
    x, rest = split_noise(layer, noise)
    z, log_weight = layer(x, rest)
    if z.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(z):
        z.register_hook(finite_rows)
    return Draws(z, log_joint(z), standard_normal_log_prob(x) - log_weight)


def draw_scored(log_joint: LogDensity, layer: Layer, noise: Tensor, reverse: bool = False) -> Draws:
    """Draws with what path gradients need.

    :param log_joint: ``z (K, D) -> (K,)``.
    :param layer: the flow.
    :param noise: from :func:`base_noise`.
    :param reverse: whether to split off the reverse models' share of the path (DReG needs it).
    :raises NotImplementedError: if a layer has no path gradient.
    """
    x, rest = split_noise(layer, noise)
    zero = torch.zeros_like(x if reverse and layer.noise_dim else x[:, :0])
    scored = layer.scored(x, rest, -x.detach(), zero)
    log_p, pull = pullback(log_joint, scored.y.detach())
    grad = pull(torch.ones_like(log_p))[0].detach()
    return Draws(scored.y, log_p, standard_normal_log_prob(x) - scored.log_weight, grad, scored)


def concatenate(parts: Sequence[Draws]) -> Draws:
    """Several batches of draws as one, without what path gradients need."""
    return Draws(
        torch.cat([part.z for part in parts]),
        torch.cat([part.log_p for part in parts]),
        torch.cat([part.log_q for part in parts]),
    )
