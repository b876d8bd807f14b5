"""Gradient estimators agree with the total gradient, in expectation, for every guide and to five standard errors."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import pyro_nflows as nf
from pyro_nflows import ELBO, IWAE, flows
from pyro_nflows.guides import AutoFlow
from pyro_nflows.inference.elbo import Gradient
from pyro_nflows.layers import Chain, TriangularAffine
from pyro_nflows.layers.base import Layer
from pyro_nflows.objectives.covering import Balanced, Covering, Within
from pyro_nflows.objectives.draws import Draws, base_noise, draw
from pyro_nflows.objectives.tempered import tempered
from tests.guide_registry import moved
from tests.models import PAIRS, pairs

pytestmark = pytest.mark.on_devices


def banana(z: Tensor) -> Tensor:
    bent = z[..., 1] - z[..., 0].square()
    return -0.5 * (z[..., 0] - 0.5).square() - bent.square() - 0.1 * z[..., 1].abs()


def plane() -> None:
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def planar_cif(dim: int) -> Layer:
    return flows.cif(dim, partial(flows.planar, num_layers=1), hidden_dims=(3,))


TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(3,))
SIZES: dict[str, Any] = {"num_layers": 2, "hidden_dims": (3,)}
#: Guides of few parameters.
FEW: dict[str, Callable[..., AutoFlow]] = {
    "AutoFlow": partial(nf.AutoFlow, build=TWO),
    "AutoPlanar": partial(nf.AutoPlanar, num_layers=2),
    "AutoRadial": partial(nf.AutoRadial, num_layers=2),
    "AutoIAF": partial(nf.AutoIAF, **SIZES),
    "AutoNICE": partial(nf.AutoNICE, **SIZES),
    "AutoRealNVP": partial(nf.AutoRealNVP, **SIZES),
    "AutoSpline": partial(nf.AutoSpline, **SIZES, num_bins=3),
    "AutoCIF": partial(nf.AutoCIF, inner=TWO, hidden_dims=(3,)),
    "AutoCIF, two indices": partial(nf.AutoCIF, inner=TWO, index_dim=2, hidden_dims=(3,)),
    "AutoCIF of a CIF": partial(nf.AutoCIF, inner=planar_cif, hidden_dims=(3,)),
}


def layer_of(name: str, size: float = 0.3) -> Layer:
    guide = FEW[name](plane, init_scale=1.0)
    guide()
    moved(guide, size)
    return guide.get_posterior().layer


class Surrogate(torch.nn.Module):
    """An objective's surrogate on a layer, as a function of the noise."""

    def __init__(self, layer: Layer, objective: ELBO, gradient: Gradient):
        super().__init__()
        self.layer, self.objective, self.gradient = layer, objective, gradient

    def forward(self, noise: Tensor) -> Tensor:
        draws: Draws = self.objective.draws(banana, self.layer, noise, self.gradient)
        return self.objective.surrogate(draws, self.gradient)


def gradients(layer: Layer, objective: ELBO, gradient: Gradient, noise: Tensor) -> Tensor:
    """The estimator's gradient for each batch of noise, ``(repetitions, num_params)``."""
    module = Surrogate(layer, objective, gradient)
    params = {name: param.detach() for name, param in module.named_parameters()}
    one = grad(lambda params, noise: functional_call(module, params, (noise,)))
    result = vmap(one, in_dims=(None, 0), chunk_size=1000)(params, noise)
    return torch.cat([result[name].reshape(len(noise), -1) for name in params], 1)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(
    ("objective", "gradient"),
    [(ELBO(1), Gradient.PATH), (IWAE(3, temper=False), Gradient.DREG)],
    ids=["ELBO-path", "IWAE-dreg"],
)
def test_gradients_equal_the_total_gradient_in_expectation(name: str, objective: ELBO, gradient: Gradient) -> None:
    layer = layer_of(name)
    noise = torch.stack([base_noise(layer, objective.num_particles) for _ in range(4000)])
    total = gradients(layer, objective, Gradient.TOTAL, noise)
    difference = gradients(layer, objective, gradient, noise) - total
    assert (difference.mean(0).abs() < 5 * difference.std(0) / len(noise) ** 0.5 + 1e-12).all()
    assert (total.mean(0).abs() > 5 * total.std(0) / len(noise) ** 0.5).any()


@pytest.mark.parametrize("name", [name for name in FEW if "CIF" not in name])
@pytest.mark.parametrize(
    ("objective", "gradient"), [(ELBO(5), Gradient.PATH), (IWAE(5, temper=False), Gradient.PATH)], ids=["ELBO", "IWAE"]
)
def test_path_gradients_hold_the_density_fixed(name: str, objective: ELBO, gradient: Gradient) -> None:
    """The gradient of the bound where ``log q`` is a fixed function of the draws, by way of the inverse."""
    layer = layer_of(name)
    noise = base_noise(layer, 5)
    (found,) = gradients(layer, objective, gradient, noise[None])
    draws, params = draw(banana, layer, noise), list(layer.parameters())
    for param in params:
        param.requires_grad_(False)
    x, log_weight = layer.inverse(draws.z)
    bound = objective.bound(draws.log_p - dist.Normal(0.0, 1.0).log_prob(x).sum(-1) + log_weight)
    for param in params:
        param.requires_grad_()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(bound, params)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FEW)
def test_a_balanced_gradient_is_two_elbo_gradients(name: str) -> None:
    """The path gradient, and K - 1 of K times the score gradient of all but the reverse models' parameters."""
    layer, num = layer_of(name, 0.05), 5  # the score gradient has heavy tails
    noise = torch.stack([base_noise(layer, num) for _ in range(4000)])
    is_reverse = [torch.full((p.numel(),), "reverse" in key) for key, p in layer.named_parameters()]
    times = torch.where(torch.cat(is_reverse), 1.0, 2 - 1 / num).to(noise)
    total = gradients(layer, ELBO(num), Gradient.TOTAL, noise)
    difference = gradients(layer, Balanced(num, limit=math.inf), Gradient.PATH, noise) - times * total
    assert (difference.mean(0).abs() < 5 * difference.std(0) / len(noise) ** 0.5 + 1e-12).all()


@pytest.mark.parametrize("name", [name for name in FEW if "CIF" not in name])
def test_a_covering_gradient_is_that_of_the_mean_root_weight(name: str) -> None:
    """A draw's path times the root of its weight is, on average, four times the gradient of that root."""
    layer = layer_of(name)
    noise = torch.stack([base_noise(layer, 1) for _ in range(4000)])
    with torch.no_grad():
        root = (0.5 * draw(banana, layer, noise[:, 0]).log_weight).exp()[:, None]
    difference = root * (
        gradients(layer, ELBO(1), Gradient.PATH, noise) - 2 * gradients(layer, ELBO(1), Gradient.TOTAL, noise)
    )
    assert (difference.mean(0).abs() < 5 * difference.std(0) / len(noise) ** 0.5 + 1e-12).all()
    log_weight = torch.tensor([0.0, 2.0, -2.0], dtype=noise.dtype)
    along, direct = Covering(0.5).coefficients(log_weight, Gradient.PATH)
    roots = torch.tensor([1.0, math.e, 1 / math.e], dtype=noise.dtype)
    torch.testing.assert_close(along, 1 / 6 + 0.5 * roots / roots.sum())
    torch.testing.assert_close(direct, torch.full_like(direct, 1 / 3))


def test_a_guide_that_reaches_beyond_an_edge_is_drawn_inside() -> None:
    """Where the density is the guide's own up to an edge, what is left of the gradient is that of the share inside."""
    layer = Chain(TriangularAffine(1))
    loc, scale, edge = 0.3, 0.8, -0.2
    with torch.no_grad():
        layer[0].loc.fill_(loc)
        layer[0].log_scale.fill_(math.log(scale))

    def cut(z: Tensor) -> Tensor:
        inside = -0.5 * ((z[:, 0] - loc) / scale).square() - math.log(scale) - 0.5 * math.log(2 * math.pi)
        return torch.where(z[:, 0] > edge, inside, -torch.inf)

    found, objective = [], Within(0.5)
    for _ in range(400):
        draws = objective.draws(cut, layer, base_noise(layer, 50), Gradient.PATH)
        surrogate = objective.surrogate(draws, Gradient.PATH)
        found.append(torch.cat(torch.autograd.grad(surrogate, [layer[0].loc, layer[0].log_scale])))
    u = (edge - loc) / scale  # d/d loc and d/d log scale of the mass above the edge
    height = math.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
    exact = torch.tensor([height / scale, height * u], dtype=found[0].dtype) * 49 / 50
    difference = torch.stack(found) - exact
    assert (difference.mean(0).abs() < 5 * difference.std(0) / len(found) ** 0.5).all()


def test_balanced_steps_see_draws_beyond_an_edge() -> None:
    """They count as of the least weight, also where they are most: what is inside is made more of."""
    layer = layer_of("AutoFlow")

    def most_are_out(z: Tensor) -> Tensor:
        return torch.where(torch.arange(len(z)) == 0, banana(z), -torch.inf)

    objective = Balanced(8)
    draws = objective.draws(most_are_out, layer, base_noise(layer, 8), Gradient.PATH)
    grads = torch.autograd.grad(objective.surrogate(draws, Gradient.PATH), list(layer.parameters()), allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in grads if g is not None)
    log_weight = torch.tensor([-torch.inf, -torch.inf, -torch.inf, 0.5])
    for kind in (objective, Within()):
        assert float(kind.bound(log_weight)) == pytest.approx(0.5 - math.log(4))


@pytest.mark.parametrize("objective", [Balanced(50), Covering(), Within()])
@pytest.mark.parametrize("name", ["AutoFlow", "AutoIAF"])
def test_the_exact_guide_is_a_fixed_point(objective: ELBO, name: str) -> None:
    """At a guide that is exact, not only the mean of the gradient is zero."""
    guide = FEW[name](plane, init_scale=1.0, init_loc_fn=lambda site: torch.zeros(2, dtype=torch.float64))
    guide()
    layer = guide.get_posterior().layer
    draws = objective.draws(lambda z: -0.5 * z.square().sum(-1), layer, base_noise(layer, 50), Gradient.PATH)
    grads = torch.autograd.grad(objective.surrogate(draws, Gradient.PATH), list(layer.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in grads if g is not None) < 1e-12


@pytest.mark.parametrize("name", FEW)
def test_path_gradients_are_steadier_near_the_posterior(name: str) -> None:
    """The reason to have them; at a guide's start, which fits ``plane`` exactly but for the last layer's width."""
    guide = FEW[name](plane, init_scale=0.9, init_loc_fn=lambda site: torch.zeros(2))
    guide()
    variance = {}
    for gradient in ("total", "path"):
        grads = []
        for _ in range(30):
            guide.zero_grad()
            ELBO(4, gradient).loss_and_grads(plane, guide)
            grads.append(torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None]))
        variance[gradient] = torch.stack(grads).var(0).sum()
    assert variance["path"] < variance["total"]


@pytest.mark.parametrize("make_objective", [ELBO, IWAE])
@pytest.mark.parametrize("gradient", ["total", "path"])
@pytest.mark.parametrize("name", ["AutoRealNVP", "AutoCIF"])
def test_the_loss_of_a_guide_has_the_estimators_gradient(
    make_objective: Callable[..., ELBO], gradient: str, name: str
) -> None:
    guide, objective = FEW[name](pairs), make_objective(5, gradient)
    guide()
    moved(guide, 0.2)
    layer = guide.get_posterior().layer

    def log_joint(z: Tensor) -> Tensor:
        return dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z, 1.0).log_prob(PAIRS).sum(-1)

    pyro.set_rng_seed(7)
    objective._joint(pairs, guide, (), {})
    state = torch.get_rng_state()
    draws = objective.draws(log_joint, layer, base_noise(layer, 5), Gradient(gradient))
    expected = torch.autograd.grad(-objective.surrogate(draws, Gradient(gradient)), list(guide.parameters()))
    torch.set_rng_state(state)
    loss = objective.loss_and_grads(pairs, guide)
    assert loss == pytest.approx(-objective.bound(draws.log_weight).item())
    for param, value in zip(guide.parameters(), expected):
        torch.testing.assert_close(param.grad, value)


def test_tempered_weights_are_the_weights_near_the_posterior_and_even_far_from_it() -> None:
    near, far = torch.randn(16), 1000 * torch.randn(16)
    assert torch.equal(tempered(near), near.softmax(0))
    assert (tempered(far) - 1 / 16).abs().max() < 1e-3
    between = tempered(3 * torch.arange(16.0))
    assert between[-1] < (3 * torch.arange(16.0)).softmax(0)[-1]
    assert (between.diff() > 0).all()
    assert between.sum() == pytest.approx(1)
    gone = tempered(torch.tensor([-math.inf, 0.0, 0.0, -math.inf, -math.inf]))
    assert torch.allclose(gone, torch.tensor([0.0, 0.5, 0.5, 0.0, 0.0]))
    assert not tempered(torch.full((4,), -math.inf)).any()
    assert tempered(torch.tensor([3.0])) == tempered(torch.tensor([3.0, -math.inf]))[0] == 1


@pytest.mark.parametrize("gradient", list(Gradient))
def test_an_iwae_far_from_the_posterior_has_nearly_the_direction_of_the_elbo(gradient: Gradient) -> None:
    layer = layer_of("AutoFlow", 0.01)
    noise = base_noise(layer, 16)[None]

    def far(z: Tensor) -> Tensor:
        return -500 * (z - 5).square().sum(-1)

    def direction(objective: ELBO, estimator: Gradient) -> Tensor:
        layer.zero_grad()
        draws = objective.draws(far, layer, noise[0], estimator)
        objective.surrogate(draws, estimator).backward()  # type: ignore[no-untyped-call]
        flat = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
        return flat / flat.norm()

    right = direction(ELBO(16), Gradient.TOTAL if gradient is Gradient.TOTAL else Gradient.PATH)
    assert direction(IWAE(16), gradient) @ right > 0.999 > direction(IWAE(16, temper=False), gradient) @ right
