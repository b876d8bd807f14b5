"""Guides by the name of their flow take the flow's options, and say which there are."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyro_nflows import AutoCNF, AutoFlow, AutoIAF, AutoPlanar, AutoResidual, AutoSpline, flows, guides
from pyro_nflows.layers import Planar
from pyro_nflows.transformers import RationalQuadratic
from tests.models import PAIRS, pairs

NAMED = [kind for kind in vars(guides).values() if isinstance(kind, type) and "_flow" in vars(kind)]


@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
def test_a_guide_has_its_flows_options_and_defaults(kind: Any) -> None:
    own, flow = (dict(inspect.signature(function).parameters) for function in (kind, kind._flow))
    shared = [name for name in flow if name in own]
    assert {name for name in flow if name not in own} <= {"latent_dim", "context_dim", "inverted"}
    for name in shared:
        assert own[name].default == (4 if (kind, name) == (AutoCNF, "num_steps") else flow[name].default)
    assert next(iter(own)) == "model"
    assert list(own)[-6:] == ["init_loc_fn", "init_scale", "create_plates", "centering", "structure", "amortize"]


@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
def test_every_option_is_documented(kind: Any) -> None:
    for name in inspect.signature(kind).parameters:
        assert f":param {name}:" in kind.__doc__


def test_options_reach_the_flow_by_place_and_by_name() -> None:
    for guide in (AutoPlanar(pairs, 3), AutoPlanar(pairs, num_layers=3)):
        guide(PAIRS)
        assert len([part for part in guide.layer.modules() if isinstance(part, Planar)]) == 3
    guide = AutoIAF(pairs, 1, (4,), transformer=RationalQuadratic(4, 3.0))
    guide(PAIRS)
    assert any(isinstance(part, RationalQuadratic) for layer in guide.layer.modules() for part in vars(layer).values())


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: AutoSpline(pairs, num_bin=4), r"AutoSpline: got an unexpected keyword argument 'num_bin'; it takes"),
        (lambda: AutoPlanar(pairs, 3, (8, 8)), r"AutoPlanar: too many positional arguments; it takes \(model"),
        (lambda: AutoIAF(pairs, context_dim=2), r"AutoIAF: got an unexpected keyword argument 'context_dim'"),
    ],
)
def test_an_option_that_the_flow_does_not_have_is_named(mistake: Callable[[], AutoFlow], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        mistake()


class Mine(AutoResidual):
    """A user's own, with an ``__init__`` of its own."""

    def __init__(self, model: Callable[..., Any], depth: int = 2):
        super().__init__(model, num_layers=depth, hidden_dims=(4,))


class Small(AutoResidual, flow=flows.residual, num_layers=2, hidden_dims=(4,)):
    """And one that only declares."""


def test_guides_of_users_own_can_be_made_from_named_ones() -> None:
    assert list(inspect.signature(Mine).parameters) == ["model", "depth"]
    assert inspect.signature(Small).parameters["num_layers"].default == 2
    torch.manual_seed(0)
    (one, other) = Mine(pairs), Small(pairs)
    one(PAIRS), other(PAIRS)
    assert [p.shape for p in one.layer.parameters()] == [p.shape for p in other.layer.parameters()]
