"""ELBO and IWAE have the right values: on conjugate models to the digit, elsewhere in the right order."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.func import vmap

from pyro_nflows import ELBO, IWAE, AutoFlow, AutoIAF
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.objectives.base import Objective
from pyro_nflows.objectives.covering import Balanced, Covering
from pyro_nflows.objectives.draws import base_noise, draw
from tests.guide_registry import Case, Model, cases, exact_pairs, moved
from tests.models import PAIRS, PAIRS_EVIDENCE, pairs

pytestmark = pytest.mark.on_devices

OBJECTIVES: dict[str, Callable[[int], ELBO]] = {
    f"{kind.__name__}-{gradient}": partial(kind, gradient=gradient)
    for kind, gradients in ((ELBO, ["total", "path", None]), (IWAE, ["total", "path", "dreg", None]))
    for gradient in gradients
}
objectives = pytest.mark.parametrize("make_objective", OBJECTIVES.values(), ids=OBJECTIVES)


# ---- exact where the guide is -------------------------------------------------------------------------------


@cases()
@objectives
def test_the_evidence_is_exact_at_the_exact_posterior(case: Case, make_objective: Callable[[int], ELBO]) -> None:
    guide = exact_pairs(case)
    for num_particles in (1, 2, 7):
        objective = make_objective(num_particles)
        loss = objective.differentiable_loss(pairs, guide)
        for value in (objective.loss(pairs, guide), objective.loss_and_grads(pairs, guide), loss.item()):
            assert value == pytest.approx(-PAIRS_EVIDENCE, abs=1e-6)
    assert abs(6.567 + PAIRS_EVIDENCE) < 1e-3


@cases(bijective=True)
@pytest.mark.parametrize("make_objective", [partial(ELBO, gradient="path"), partial(IWAE, gradient="dreg")])
def test_path_gradients_vanish_at_the_exact_posterior(case: Case, make_objective: Callable[[int], ELBO]) -> None:
    guide = exact_pairs(case)
    make_objective(5).loss_and_grads(pairs, guide)
    assert max(float(param.grad.abs().max()) for param in guide.parameters() if param.grad is not None) < 1e-12
    ELBO(5, "total").loss_and_grads(pairs, guide)
    assert max(float(param.grad.abs().max()) for param in guide.parameters() if param.grad is not None) > 1e-3


def positive_pairs() -> None:
    """The pairs, exponentiated."""
    with pyro.plate("unit", 4):
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.LogNormal(z.log(), 1.0), obs=PAIRS.exp())


def nested() -> None:
    with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=PAIRS.expand(3, 4))


def outer_only() -> None:
    """One latent a row, seen four times."""
    rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1)
    with rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with columns:
            pyro.sample("x", dist.Normal(z, 1.0), obs=PAIRS.expand(3, 4))


def masked() -> None:
    with pyro.plate("unit", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=torch.tensor([True, True, False, False])):
            pyro.sample("x", dist.Normal(z, 1.0), obs=PAIRS)


def scaled() -> None:
    """A likelihood to the power of three."""
    with pyro.plate("unit", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=3.0):
            pyro.sample("x", dist.Normal(z, 1.0), obs=PAIRS)


def factored() -> None:
    with pyro.plate("unit", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("x", dist.Normal(z, 1.0).log_prob(PAIRS))
    pyro.factor("one more", torch.tensor(-2.5))


def shared() -> None:
    """One latent for all: a precision of five."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in pyro.plate("unit", 4):
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=PAIRS[i])


def normal_evidence(x: Tensor, power: float = 1.0) -> float:
    """Of ``z ~ N(0, 1)`` and ``power`` times as many ``x ~ N(z, 1)`` as there are."""
    num = power * len(x)
    precision, pull = 1 + num, power * x.sum()
    constant = -0.5 * num * math.log(2 * math.pi) - 0.5 * math.log(precision)
    return float(constant - 0.5 * power * x.square().sum() + 0.5 * pull.square() / precision)


def each(x: Tensor, power: float = 1.0) -> float:
    return sum(normal_evidence(row.reshape(1), power) for row in x)


HALF = 0.5**0.5
CONJUGATE: dict[str, tuple[Model, Tensor, Any, float]] = {
    "positive": (positive_pairs, PAIRS / 2, HALF, PAIRS_EVIDENCE - float(PAIRS.sum())),
    "nested plates": (nested, (PAIRS / 2).repeat(3), HALF, 3 * PAIRS_EVIDENCE),
    "one latent a row": (outer_only, PAIRS.sum().expand(3) / 5, 0.2**0.5, 3 * normal_evidence(PAIRS)),
    "mask": (masked, PAIRS * torch.tensor([0.5, 0.5, 0, 0]), torch.tensor([HALF, HALF, 1, 1]), each(PAIRS[:2])),
    "scale": (scaled, 0.75 * PAIRS, 0.5, each(PAIRS, 3.0)),
    "factor": (factored, PAIRS / 2, HALF, PAIRS_EVIDENCE - 2.5),
    "sequential plate": (shared, PAIRS.sum().reshape(1) / 5, 0.2**0.5, normal_evidence(PAIRS)),
}


def exact_guide(model: Model, loc: Tensor, scale: Any) -> AutoFlow:
    guide = AutoIAF(model, 2, (4,))
    guide()
    end = guide.layer.layer[1]  # type: ignore[index]
    with torch.no_grad():
        end.loc.copy_(loc)
        end.log_scale.copy_(torch.as_tensor(scale).expand_as(loc).log())
    return guide


@pytest.mark.parametrize("name", CONJUGATE)
@objectives
def test_conjugate_models(name: str, make_objective: Callable[[int], ELBO]) -> None:
    model, loc, scale, evidence = CONJUGATE[name]
    guide = exact_guide(model, loc, scale)
    assert make_objective(3).loss_and_grads(model, guide) == pytest.approx(-evidence, abs=1e-6)


# ---- bounds -------------------------------------------------------------------------------------------------


@cases()
def test_bounds_are_in_order(case: Case) -> None:
    guide = exact_pairs(case)
    guide()
    moved(guide, 0.1)
    with torch.no_grad():
        layer = guide.get_posterior().layer
        log_weight = draw(LogJoint(BoundModel(pairs), guide.latents), layer, base_noise(layer, 16_000)).log_weight
    bounds = []
    for objective in (ELBO(16), IWAE(2), IWAE(16)):
        values = vmap(objective.bound)(log_weight.reshape(-1, objective.num_particles))
        bounds.append((values.mean(), values.std() / len(values) ** 0.5))
    bounds.append((torch.tensor(PAIRS_EVIDENCE), torch.tensor(0.0)))
    for (low, low_error), (high, high_error) in zip(bounds, bounds[1:]):
        assert low < high + 5 * torch.hypot(low_error, high_error)
    assert bounds[0][0] < bounds[3][0] - 5 * bounds[0][1]
    assert IWAE(1).bound(log_weight[:1]) == ELBO(1).bound(log_weight[:1])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (ELBO(4), ELBO(4), True),
        (ELBO(4), ELBO(8), False),
        (ELBO(4), IWAE(4), False),
        (Covering(0.5), Covering(0.1), True),
        (Balanced(4, 5.0), Balanced(4, 3.0), False),
    ],
)
def test_objectives_of_equal_keys_have_equal_steps(one: Objective, other: Objective, same: bool) -> None:
    assert (one.key == other.key) is same
