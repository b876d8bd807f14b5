"""A printed guide is half a page at most: what it is over, its layers, and how many numbers it trains."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import ELBO, IWAE, VI, AutoFlow, flows
from pyro_nflows.guides.printed import MOST_SITES
from pyro_nflows.layers import LocScale, Planar
from pyro_nflows.layers.base import Chain
from tests.guide_registry import CASES
from tests.models import schools


def called(guide: AutoFlow, *args: Tensor) -> str:
    guide(*args)
    return repr(guide)


def test_the_default_guide_of_eight_schools() -> None:
    assert called(AutoFlow(schools), torch.zeros(8)).splitlines() == [
        "AutoFlow: joint over 10 latents; theta non-centered",
        "  sites    mu (), tau (), theta (8,)",
        "  flow     4 x",
        "             Coupling(10, Affine(bound=10.0), flip=False, MLP 5-32-32)",
        "             Coupling(10, Affine(bound=10.0), flip=True, MLP 5-32-32)",
        "             Permutation(10)",
        "  end      TriangularAffine(10)",
        "  13,144 parameters: 13,024 of the flow, 120 of the end; print(guide.layer) has all modules",
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_guide_is_half_a_page(case) -> None:  # type: ignore[no-untyped-def]
    guide = case(schools)
    assert "after its first call" in repr(guide)
    lines = called(guide, torch.zeros(8)).splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 130
    assert lines[0].startswith(f"{type(guide).__name__}: joint over 10 latents")
    num = sum(parameter.numel() for parameter in guide.layer.parameters())
    assert lines[-1].strip().startswith(f"{num:,} parameters")


def test_a_guide_of_rows_and_a_flow_of_a_hundred_different_layers_are_cut() -> None:
    lines = called(AutoFlow(schools, structure="plates"), torch.zeros(300)).splitlines()
    assert "school: 300 rows of 1" in lines[0]
    assert len(lines) < 20
    pyro.clear_param_store()
    layers = [layer for i in range(50) for layer in [LocScale(10), *[Planar(10)] * (i % 3 + 1 + (i == 7))]]
    guide = AutoFlow(schools, lambda dim: Chain(*layers))
    lines = called(guide, torch.zeros(8)).splitlines()
    assert len(lines) < 30


def test_of_many_sites_the_first_are_named() -> None:
    def model() -> None:
        for i in range(40):
            pyro.sample(f"z{i}", dist.Dirichlet(torch.ones(3)))

    said = called(AutoFlow(model, flows.planar))
    assert f"z{MOST_SITES - 1} (3,), and {40 - MOST_SITES} more sites" in " ".join(said.split())
    assert f"z{MOST_SITES} " not in said


def test_objectives_and_vi_say_what_they_are() -> None:
    assert repr(ELBO(3, "path", compile=True)) == "ELBO(num_particles=3, gradient='path', compile=True)"
    assert repr(IWAE(8)) == "IWAE(num_particles=8)"
    guide = AutoFlow(schools)
    assert repr(VI(guide)) == "VI(AutoFlow), not run yet"
    guide(torch.zeros(8))
    assert repr(VI(guide)) == "VI(AutoFlow, joint over 10 latents; theta non-centered), not run yet"
