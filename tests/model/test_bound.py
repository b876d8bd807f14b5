"""A model with its arguments as one value."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_nflows.model.bound import BoundModel

A, B = torch.tensor([1.0, 2.0]), torch.tensor(3.0)


def called(x: Any, *, parts: Any, scale: float = 1.0) -> Any:
    return x, parts, scale


BOUND = BoundModel(called, (A,), {"parts": {"b": [B, "name"], "n": 4}, "scale": 2.0})


def test_it_runs_the_model_at_its_arguments() -> None:
    x, parts, scale = BOUND()
    assert x is A
    assert parts["b"] == [B, "name"]
    assert scale == 2.0


def test_the_data_are_all_tensors_wherever_they_lie() -> None:
    assert [tensor is right for tensor, right in zip(BOUND.tensors, (A, B))] == [True, True]


def test_other_data_take_their_places_and_nothing_else_changes() -> None:
    other = BOUND.with_data([A + 1, B + 1])
    x, parts, scale = other()
    assert torch.equal(x, A + 1)
    assert torch.equal(parts["b"][0], B + 1)
    assert (parts["b"][1], parts["n"], scale) == ("name", 4, 2.0)
    assert other.form == BOUND.form
    assert BOUND()[0] is A


@pytest.mark.parametrize("num", [1, 3])
def test_data_of_another_number_are_refused(num: int) -> None:
    with pytest.raises(ValueError, match=rf"expected 2 tensors, as many as the model.s arguments hold, got {num}"):
        BOUND.with_data([A] * num)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.zeros(3),), BOUND.kwargs),
        ((A.double(),), BOUND.kwargs),
        ((A,), {**BOUND.kwargs, "scale": 3.0}),
        ((A,), {"parts": {"b": [B, "name"], "n": None}, "scale": 2.0}),
        ((A, A), BOUND.kwargs),
    ],
)
def test_what_a_recording_depends_on_tells_calls_apart(args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
    assert BOUND.with_call(args, kwargs).form != BOUND.form


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BOUND.args = ()  # type: ignore[misc]
