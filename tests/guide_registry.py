"""Every flow guide that ships, one line each, with sizes that are quick to test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch

import pyro_nflows as nf
from pyro_nflows.guides import AutoFlow
from tests.models import PAIRS, pairs

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
    Case(nf.AutoWasserstein, {}, Training({}, 150, 5e-2)),
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
    Case(
        nf.AutoJKO,
        {"num_blocks": 2, "hidden_dims": (8,), "num_steps": 2},
        Training({"num_blocks": 1, "hidden_dims": (4,), "num_steps": 3}, 100, 5e-2),
    ),
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


def exact_pairs(case: Case, model: Model = pairs, **kwargs: Any) -> AutoFlow:
    """A guide of the pairs that starts at their posterior."""
    return case(model, init_loc_fn=lambda site: PAIRS / 2, init_scale=0.5**0.5, **kwargs)
