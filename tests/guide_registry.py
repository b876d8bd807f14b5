"""Every flow guide that ships, one line each, and the models the Pyro-compatibility suite runs them on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_nflows as nf
from pyro_nflows.guides import AutoFlow

Model = Callable[..., Any]


class Training(NamedTuple):
    """How to reach the exact ELBO of a correlated Gaussian, and how far from it to stop."""

    sizes: dict[str, Any]
    num_steps: int
    rate: float
    gap: float = 0.01
    slow: bool = False


@dataclass(frozen=True)
class Case:
    """A guide, with sizes small enough to test everything but accuracy on."""

    guide: type[AutoFlow]
    sizes: dict[str, Any]
    training: Training
    bijective: bool = True
    #: Whether it draws with the model's gradient, so that it is nothing without the whole model.
    needs_model: bool = False

    def __call__(self, model: Model, **kwargs: Any) -> AutoFlow:
        return self.guide(model, **self.sizes, **kwargs)

    @property
    def name(self) -> str:
        return self.guide.__name__


def sizes(num_layers: int, *hidden_dims: int, **more: Any) -> dict[str, Any]:
    return {"num_layers": num_layers, "hidden_dims": hidden_dims, **more}


def inner(num_layers: int, *hidden_dims: int) -> dict[str, Any]:
    return {"inner": partial(nf.flows.realnvp, **sizes(num_layers, *hidden_dims)), "hidden_dims": hidden_dims}


CASES = [
    Case(nf.AutoFlow, {}, Training({}, 150, 1e-2)),
    Case(nf.AutoPlanar, {"num_layers": 2}, Training({"num_layers": 10}, 300, 5e-2)),
    Case(nf.AutoRadial, {"num_layers": 2}, Training({"num_layers": 16}, 3000, 2e-2, slow=True)),
    Case(nf.AutoIAF, sizes(2, 8), Training(sizes(2, 8), 150, 4e-2)),
    Case(nf.AutoMAF, sizes(2, 8), Training(sizes(2, 8), 150, 4e-2)),
    Case(nf.AutoNICE, sizes(2, 8), Training(sizes(4, 4), 200, 4e-2)),
    Case(nf.AutoRealNVP, sizes(2, 8), Training(sizes(4, 4), 200, 3e-2)),
    Case(nf.AutoSpline, sizes(2, 8), Training(sizes(4, 16), 1500, 1e-2, slow=True)),
    Case(nf.AutoGlow, sizes(2, 8), Training(sizes(2, 4), 150, 3e-2)),
    Case(nf.AutoResidual, sizes(2, 8), Training(sizes(3, 8), 200, 3e-2)),
    Case(
        nf.AutoFlowified,
        sizes(1, 8, extra_dims=1),
        Training(sizes(1, 8, extra_dims=1), 150, 3e-2),
        bijective=False,
    ),
    Case(nf.AutoCNF, sizes(1, 8, num_steps=3), Training(sizes(1, 4, num_steps=3), 100, 5e-2)),
    Case(nf.AutoCIF, inner(2, 8), Training(inner(3, 4), 250, 3e-2), bijective=False),
    Case(
        nf.AutoDAIS,
        {"num_steps": 2},
        Training({"num_steps": 2}, 100, 3e-2),
        bijective=False,
        needs_model=True,
    ),
]


def cases(*, bijective: bool | None = None, needs_model: bool | None = None) -> Any:
    """Run a test on every guide: ``@cases()``; or on those with a density in closed form, or that need their model."""
    kinds = [c for c in CASES if bijective in (None, c.bijective)]
    chosen: Sequence[Case] = [c for c in kinds if needs_model in (None, c.needs_model)]
    return pytest.mark.parametrize("case", chosen, ids=lambda c: c.name)


def moved(guide: AutoFlow, size: float = 0.15, seed: int = 1) -> AutoFlow:
    """The guide after a random step in its flow's own units, so that the flow is no longer the identity."""
    assert guide.layer is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in guide.layer.layer.named_parameters():
            width = param.shape[-1] ** 0.5 if param.dim() > 1 else 1.0
            step = torch.randn(param.shape, generator=generator, dtype=param.dtype)
            param += size / (width * guide.layer.factors[name]) * step
    return guide


#: The pairs' log evidence is -6.567, and their posterior N(data / 2, 1 / 2).
PAIRS = torch.tensor([1.0, -1.0, 2.0, 0.14], dtype=torch.float64)
PAIRS_EVIDENCE = -PAIRS.square().sum().item() / 4 - 2 * math.log(4 * math.pi)


def pairs(x: Tensor = PAIRS) -> None:
    with pyro.plate("unit", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def pairs_without_plate(x: Tensor = PAIRS) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def exact_pairs(case: Case, model: Model = pairs, **kwargs: Any) -> AutoFlow:
    """A guide of the pairs that starts at their posterior."""
    return case(model, init_loc_fn=lambda site: PAIRS / 2, init_scale=0.5**0.5, **kwargs)


def one_of_each(y: Tensor | None = None) -> None:
    """Latents of many shapes and supports."""
    pyro.sample("real", dist.Normal(0.0, 1.0))
    pyro.sample("vector", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    tau = pyro.sample("positive", dist.HalfCauchy(1.0))
    pyro.sample("interval", dist.Uniform(-1.0, 3.0))
    weights = pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    pyro.sample("cholesky", dist.LKJCholesky(3, 2.0))
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        z = pyro.sample("nested", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(z + weights[0], 1.0), obs=torch.ones(2, 3) if y is None else y)
