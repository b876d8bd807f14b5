"""What a layer's numbers mean: the log-weight, the inverse, the path gradient."""

import functools
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..layer import Layer, Scored, Weight
from ..numerics import standard_normal_log_prob
from .law import Make, agree, agree_on_average, agree_pair, law, perturbed, points

_NUM_DRAWS = 10_000


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
        _check_inverse_on_average(layer)
    elif layer.inverse_noise_dim:
        y = 2 * torch.randn(20, layer.output_dim, dtype=torch.float64)
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
    if layer.grade is Weight.UNBIASED:
        agree_on_average("log-weight of inverse less that of forward", layer.inverse(y)[1] - log_weight, 0.0)
        return
    bump = _bumps(y, 1)[0]

    def integrand(point: Tensor) -> Tensor:
        y, noise = point[:, : layer.output_dim], point[:, layer.output_dim :]
        x, log_weight = layer.inverse(y, noise)
        return bump.log_prob(y) + standard_normal_log_prob(x) - log_weight + standard_normal_log_prob(noise)

    start = torch.cat([y, torch.randn(len(y), layer.inverse_noise_dim).to(y)], -1)
    by_forward = bump.log_prob(y).exp()
    difference = (_integral(integrand, start) - by_forward) / by_forward.mean()
    agree_on_average("(E[f] by the density of inverse - E[f] by forward) / E[f]", difference, 0.0)


def _bumps(y: Tensor, number: int) -> list[TorchDistribution]:
    """Normal densities around the first few of ``y``, a quarter as wide as all of them."""
    return [dist.Normal(center, 0.25 * y.std(0)).to_event(1) for center in y[:number]]


def _integral(log_integrand: Callable[[Tensor], Tensor], points: Tensor, num_rounds: int = 5) -> Tensor:
    """Terms, as many as ``points``, whose mean is the integral of a positive function.

    Importance sampling from a Student's t, fitted to ``points`` and then again and again to its own weighted draws.
    """
    log_weight = torch.zeros_like(points[:, 0])
    for i in range(num_rounds):
        weights = (log_weight / (2 if i < num_rounds - 1 else 1)).softmax(0)
        loc = weights @ points
        offset = points - loc
        covariance = 1.3 * offset.T @ (weights[:, None] * offset)
        covariance.diagonal().add_(1e-6)
        proposal = dist.MultivariateStudentT(5.0, loc, torch.linalg.cholesky(covariance))
        points = proposal.sample((len(points),))
        log_weight = log_integrand(points) - proposal.log_prob(points)
    return log_weight.exp()


@law(lambda layer: layer.grade is Weight.EXACT and _is_square(layer) and not layer.noise_dim)
def check_log_weight_is_slogdet(make: Make) -> None:
    """An EXACT log-weight is autograd's log |det dy/dx|."""
    layer = perturbed(make)
    x = points(layer, 20, spread=2.0)[0].requires_grad_()
    y, log_weight = layer(x)
    agree("log-weight, against log |det J|", log_weight, torch.linalg.slogdet(_jacobian(y, x)).logabsdet)


def _jacobian(y: Tensor, x: Tensor) -> Tensor:
    """``dy / dx`` of independent rows, by autograd."""
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in y.unbind(-1)]
    return torch.stack(rows, -2)


@law(lambda layer: layer.grade >= Weight.PROPER)
def check_unit_evidence(make: Make) -> None:
    r""":math:`E_q[f / \hat q] = \int f = 1` for densities :math:`f` (of layers onto all of space)."""
    layer = perturbed(make, 0.2)
    with torch.no_grad():
        x, noise = points(layer, _NUM_DRAWS)
        y, _ = layer(x, noise)
        start = x if noise is None else torch.cat([x, noise], -1)
        for bump in _bumps(y, 2):
            agree_on_average("E[f / q]", _integral(functools.partial(_evidence, layer, bump), start), 1.0)


def _evidence(layer: Layer, density: TorchDistribution, point: Tensor) -> Tensor:
    """Of base point and noise: the logarithm of ``density / q`` under the base and the noise."""
    x, noise = point[:, : layer.input_dim], point[:, layer.input_dim :]
    y, log_weight = layer(x, noise if layer.noise_dim else None)
    return density.log_prob(y) + log_weight + standard_normal_log_prob(noise)


@law(lambda layer: layer.grade is Weight.UNBIASED and _is_square(layer))
def check_mean_log_weight(make: Make) -> None:
    """An UNBIASED log-weight is log |det dy/dx| on average over the noise, if ``y`` does not depend on it."""
    layer = perturbed(make)
    x = points(layer, 4)[0].requires_grad_()
    noise = points(layer, _NUM_DRAWS // 4, 4)[1]
    y, _ = layer(x, None if noise is None else noise[0])
    log_det = torch.linalg.slogdet(_jacobian(y, x)).logabsdet
    with torch.no_grad():
        every, log_weight = layer(x.expand(_NUM_DRAWS // 4, -1, -1), noise)
    if every.allclose(y.expand_as(every)):
        agree_on_average("log-weight, against log |det J|", log_weight, log_det)


@law()
def check_path_gradient(make: Make) -> None:
    """``scored`` agrees with ``forward``, and what it carries with autograd; or it refuses, saying so."""
    layer = perturbed(make)
    x, noise = points(layer, 20)
    try:
        scored = layer.scored(x, noise, -x, x[..., :0])
    except NotImplementedError:
        if not layer.noise_dim and _is_square(layer):
            raise
        return
    agree_pair("of scored, against forward", scored[:2], layer(x, noise))
    if layer.noise_dim:
        _check_path_on_average(layer)
    else:
        _check_transport(layer, x.requires_grad_(), scored)


def _check_transport(layer: Layer, x: Tensor, scored: Scored) -> None:
    """Against a solve with autograd's Jacobian, for a log density and for a plain function."""
    y, log_weight = layer(x)
    slope = torch.autograd.grad((log_weight + 0 * x.sum(-1)).sum(), x, retain_graph=True)[0]
    transposed, score = _jacobian(y, x).mT, torch.randn_like(x)
    x, y = x.detach(), y.detach()
    agree("score of scored", scored.score, torch.linalg.solve(transposed, -x - slope), 1e-6)
    agree("transport", layer.transport(x, y, score), torch.linalg.solve(transposed, score - slope), 1e-6)
    agree("transport, weight 0", layer.transport(x, y, score, 0.0), torch.linalg.solve(transposed, score), 1e-6)


class _Scoring(nn.Module):
    """``scored`` as a module's ``forward``, for ``functional_call``."""

    def __init__(self, layer: Layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, noise: Tensor) -> Scored:
        return self.layer.scored(x, noise, -x, torch.zeros_like(x))


def _check_path_on_average(layer: Layer, num_draws: int = 2000) -> None:
    r"""The doubly reparameterised gradient of a two-sample bound is its gradient, on average.

    The bound is :math:`E \log \frac12 \sum_k f(y_k) / \hat q_k` with :math:`f = N(0, 4)`. The estimator weighs the path
    of :math:`\log(f / \hat q)` by squares, so it is right only if both parts that ``scored`` carries are.
    """
    scoring = _Scoring(layer)
    params = {name: p.detach() for name, p in scoring.named_parameters() if p.requires_grad}
    signs = {name: torch.randn_like(p).sign() for name, p in params.items()}

    def weigh(params: dict[str, Tensor], x: Tensor, noise: Tensor) -> tuple[Scored, Tensor]:
        step: Scored = torch.func.functional_call(scoring, params, (x, noise))
        return step, step.log_weight + 0.5 * x.square().sum(-1) - step.y.square().sum(-1) / 8

    def total(params: dict[str, Tensor], x: Tensor, noise: Tensor) -> Tensor:
        return weigh(params, x, noise)[1].logsumexp(-1)

    def surrogate(params: dict[str, Tensor], x: Tensor, noise: Tensor) -> Tensor:
        step, log_weight = weigh(params, x, noise)
        weights = log_weight.detach().softmax(-1)
        reverse = (step.reverse * step.y).sum(-1) + step.index_reverse
        along = ((-step.y.detach() / 4 - step.score) * step.y).sum(-1) - step.index_score + reverse
        return (weights.square() * along + weights * (step.log_r - reverse)).sum()

    def difference(x: Tensor, noise: Tensor) -> Tensor:
        a, b = torch.func.grad(surrogate)(params, x, noise), torch.func.grad(total)(params, x, noise)
        return torch.stack([(signs[name] * (a[name] - b[name])).sum() for name in signs])

    x, noise = points(layer, num_draws, 2)
    agree_on_average("path gradient less total gradient", torch.func.vmap(difference, chunk_size=500)(x, noise), 0.0)
