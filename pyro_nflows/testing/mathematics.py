"""What a layer's numbers mean: the log-weight, the inverse, the path gradient."""

import functools
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ..layers.base import Exactness, Layer
from ..numerics import standard_normal_log_prob
from .integral import far_from_start, integral
from .law import Make, agree, agree_on_average, agree_pair, law, perturbed, points

_NUM_DRAWS = 5000


def _is_square(layer: Layer) -> bool:
    return layer.input_dim == layer.output_dim


@law(lambda layer: layer.has_inverse)
def check_inverse_undoes_forward(make: Make) -> None:
    r"""``inverse`` gives back ``x``, and the log-weight of ``forward``; so do their gradients.

    With auxiliary variables both ways ``x`` is one of many that lead to ``y``; then a density estimated with
    ``inverse`` gives the expectations of draws by ``forward``.
    """
    layer = perturbed(make)
    if layer.noise_dim and layer.inverse_noise_dim:
        far_from_start(make, _check_inverse_on_average)
    elif layer.inverse_noise_dim:
        y = 2 * torch.randn(20, layer.output_dim).to(points(layer)[0])
        x, log_weight = layer.inverse(y)
        _check_round_trip(layer, (y, log_weight), layer(x))
    else:
        x, noise = points(layer, 20, spread=2.0)
        y, log_weight = layer(x, noise)
        _check_round_trip(layer, (x, log_weight), layer.inverse(y))


def _check_round_trip(layer: Layer, start: tuple[Tensor, Tensor], back: tuple[Tensor, Tensor]) -> None:
    agree_pair("there and back", back, start, 1e-6)
    gap = [(a - b) * torch.randn_like(b) for a, b in zip(back, start)]
    loss = gap[0].sum() + gap[1].sum()
    parameters = [p for p in layer.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else ()
    for grad in grads:
        if grad is not None:
            agree("the gradient of the way there and back", grad, torch.zeros_like(grad), 1e-5)


@torch.no_grad()
def _check_inverse_on_average(layer: Layer) -> None:
    x, noise = points(layer, _NUM_DRAWS)
    y, log_weight = layer(x, noise)
    if layer.exactness is Exactness.UNBIASED:
        again, same = layer.inverse(y)
        if again.allclose(layer.inverse(y)[0]):  # else another point leads to y, with a log-weight of its own
            agree("the point there and back", again, x, 1e-6)
            agree_on_average("log-weight of inverse less that of forward", same - log_weight, 0.0)
        return
    bump = dist.Normal(y[0], 0.5 * y.std(0)).to_event(1)

    def integrand(point: Tensor) -> Tensor:
        y, noise = point[:, : layer.output_dim], point[:, layer.output_dim :]
        x, log_weight = layer.inverse(y, noise)
        return bump.log_prob(y) + standard_normal_log_prob(x) - log_weight + standard_normal_log_prob(noise)

    start = torch.cat([y, torch.randn(len(y), layer.inverse_noise_dim).to(y)], -1)
    by_forward = bump.log_prob(y).exp()
    difference = (integral(integrand, start) - by_forward) / by_forward.mean()
    agree_on_average("(E[f] by the density of inverse - E[f] by forward) / E[f]", difference, 0.0)


@law(lambda layer: layer.exactness is Exactness.EXACT and _is_square(layer) and not layer.noise_dim)
def check_log_weight_is_slogdet(make: Make) -> None:
    r"""An EXACT log-weight is autograd's :math:`\log|\det dy/dx|`."""
    layer = perturbed(make)
    x = points(layer, 20, spread=2.0)[0].requires_grad_()
    y, log_weight = layer(x)
    agree("log-weight, against log |det J|", log_weight, torch.linalg.slogdet(_jacobian(y, x)).logabsdet)


def _jacobian(y: Tensor, x: Tensor) -> Tensor:
    """``dy / dx`` of independent rows, by autograd."""
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in y.unbind(-1)]
    return torch.stack(rows, -2)


@law(lambda layer: layer.exactness >= Exactness.PROPER)
def check_unit_evidence(make: Make) -> None:
    r""":math:`E_q[f / \hat q] = \int f = 1` for densities :math:`f` (of layers onto all of space)."""
    far_from_start(make, _check_evidence)


@torch.no_grad()
def _check_evidence(layer: Layer) -> None:
    x, noise = points(layer, _NUM_DRAWS)
    y, _ = layer(x, noise)
    start = x if noise is None else torch.cat([x, noise], -1)
    for center in y[:2]:
        density = dist.Normal(center, 0.25 * y.std(0)).to_event(1)
        terms = integral(functools.partial(_evidence, layer, density), start)
        agree_on_average("E[f / q]", terms, 1.0)


def _evidence(layer: Layer, density: TorchDistribution, point: Tensor) -> Tensor:
    """Of base point and noise: the logarithm of ``density / q`` under the base and the noise."""
    x, noise = point[:, : layer.input_dim], point[:, layer.input_dim :]
    y, log_weight = layer(x, noise if layer.noise_dim else None)
    return density.log_prob(y) + log_weight + standard_normal_log_prob(noise)


@law(lambda layer: layer.exactness is Exactness.UNBIASED and _is_square(layer))
def check_mean_log_weight(make: Make) -> None:
    r"""An UNBIASED log-weight is :math:`\log|\det dy/dx|` on average over the noise, if ``y`` does not depend on it."""
    layer = perturbed(make)
    x = points(layer, 4)[0].requires_grad_()
    noise = points(layer, _NUM_DRAWS, 4)[1]
    y, _ = layer(x, None if noise is None else noise[0])
    log_det = torch.linalg.slogdet(_jacobian(y, x)).logabsdet
    with torch.no_grad():
        every, log_weight = layer(x.expand(_NUM_DRAWS, -1, -1), noise)
    if every.allclose(y.expand_as(every)):
        agree_on_average("log-weight, against log |det J|", log_weight, log_det)


@law()
def check_path_gradient(make: Make) -> None:
    r"""``scored`` agrees with ``forward``, and carries the gradients of densities; or it refuses, saying so.

    With parameters held fixed, :math:`\log q` and :math:`\log r` move with the base point and the noise only as the
    draw does: along ``score`` and ``reverse``.
    """
    layer = perturbed(make).requires_grad_(False)
    x, noise = points(layer, 20)
    inputs = [t.requires_grad_() for t in (x, noise) if t is not None]
    try:
        scored = layer.scored(x, noise, -x, torch.zeros_like(x))
    except NotImplementedError:
        if not layer.noise_dim and _is_square(layer):
            raise
        return
    agree_pair("of scored, against forward", scored[:2], layer(x, noise))
    y, log_weight, score, reverse, index_score, index_reverse, log_r = scored
    pairs = {
        "log q": (standard_normal_log_prob(x) - log_weight + log_r, (score * y).sum(-1) + index_score),
        "log r": (log_r + 0 * log_weight, (reverse * y).sum(-1) + index_reverse),
    }
    for name, sides in pairs.items():
        expected, got = (_gradients(side, inputs) for side in sides)
        agree(f"gradient of {name} along the path", got, expected, 1e-6)
    if not layer.noise_dim and _is_square(layer):
        _check_transport(layer, x)


def _gradients(value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The gradients of independent rows, side by side."""
    value = value + sum(0 * t.sum(-1) for t in inputs)
    return torch.cat(torch.autograd.grad(value.sum(), inputs, retain_graph=True), -1)


def _check_transport(layer: Layer, x: Tensor) -> None:
    """Of a gradient: pulled back by autograd, it is what it was."""
    y, log_weight = layer(x)
    score = torch.randn_like(x)
    for weight in (1.0, 0.0):
        moved = layer.transport(x.detach(), y.detach(), score, weight).detach()
        got = _gradients((moved * y).sum(-1) + weight * log_weight, [x])
        agree(f"transport with weight {weight:.0f}, pulled back", got, score, 1e-6)
