"""What a journal keeps of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pyro_nflows.engine import Journal


class Reached(NamedTuple):
    at: Tensor
    number: int


CONTAINERS: list[Callable[[Tensor], Any]] = [
    lambda weight: weight,
    lambda weight: (weight, 3),
    lambda weight: [weight],
    lambda weight: {"loc": {"of": weight}},
    lambda weight: Reached(weight, 3),
]


@pytest.mark.parametrize("held", CONTAINERS, ids=["tensor", "tuple", "list", "dict", "named tuple"])
def test_what_a_step_gave_is_kept_as_it_was_then(held: Callable[[Tensor], Any]) -> None:
    """A step may give parameters themselves, which the next steps train in place."""
    kept: list[dict[str, Any]] = []
    weight = nn.Parameter(torch.zeros(3))
    journal = Journal(kept.append)
    assert journal.step("start", lambda: held(weight)) is not None
    with torch.no_grad():
        weight += 1.0
    journal.write()
    again = Journal(state=kept[-1], keep=kept.append).step("start", lambda: pytest.fail("is taken again"))
    assert _leaf(again).equal(torch.zeros(3))
    assert not _leaf(again).requires_grad


def _leaf(value: Any) -> Tensor:
    while not isinstance(value, Tensor):
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value
