"""Step sizes that know how many numbers a parameter is added up with."""

import pytest
from torch import nn

from pyro_nflows.layers import Elementwise, Householder, Mixture, TriangularAffine
from pyro_nflows.nets.steps import fan_in


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        (nn.Linear(100, 7), "weight", 100),
        (nn.Linear(100, 7), "bias", 1),
        (nn.Conv2d(5, 7, 3), "weight", 45),
        (TriangularAffine(40), "lower", 40),
        (TriangularAffine(40), "loc", 1),
        (Mixture(40, 2), "lower", 40),
        (Mixture(40, 2), "loc", 1),
        (Mixture(40, 2, block_dim=2), "lower", 2),
        (Elementwise(40), "params", 1),
        (Householder(40), "vectors", 1),
    ],
)
def test_fan_in_is_how_many_numbers_are_added_up(module: nn.Module, name: str, expected: int) -> None:
    assert fan_in(module, name) == expected
