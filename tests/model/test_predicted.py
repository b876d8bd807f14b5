"""Whose rows predictions are: those of the arguments, or none at all."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows.model.predicted import predicted

X = torch.linspace(-100.0, 100.0, 6, dtype=torch.float64)
DRAWS = {"slope": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}


def line(x: Tensor, size: int | None = None, rows: Tensor | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("row", len(x), size, rows) as index:
        pyro.sample("y", dist.Normal(slope * pyro.deterministic("x", x[index]), 0.01))


def by_subsample(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("row", len(x), 3):
        pyro.sample("y", dist.Normal(slope * pyro.subsample(x, event_dim=0), 0.01))


def of_a_batch(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("row", 50, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.01))


def alike(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("row", len(x), 3):
        pyro.sample("y", dist.Normal(slope, 0.01))


def one_by_one(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 1.0))
    for i in pyro.plate("row", len(x), 3):
        pyro.sample(f"y_{i}", dist.Normal(slope * x[i], 0.01))


def rows_of_their_own(x: Tensor) -> None:
    with pyro.plate("row", len(x), 3):
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(slope, 0.01))


def ask(model: Any, *args: Any, draws: dict[str, Tensor] = DRAWS, fresh: Sequence[str] = ()) -> dict[str, Tensor]:
    answers = predicted("predict", model, draws, fresh, args, {}).answers
    return {name: values for (_, name), values in answers.items()}


@pytest.mark.parametrize(
    ("model", "args"),
    [(line, (X, 3)), (by_subsample, (X,)), (alike, (X,)), (one_by_one, (X,))],
    ids=["index", "pyro.subsample", "not read", "sequential"],
)
def test_random_rows_are_refused(model: Any, args: Any) -> None:
    with pytest.raises(ValueError, match=r"^predict: plate 'row' shows a random 3 of its 6 rows in each run"):
        ask(model, *args)


def test_latents_of_random_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^predict: plate 'row' shows a random 3 of its 6 rows .* rows of 'slope'"):
        ask(rows_of_their_own, X, draws={"slope": torch.zeros(3, 6, dtype=torch.float64)})


@pytest.mark.parametrize("size", [None, 6])
def test_all_rows_are_in_their_order(size: int | None) -> None:
    torch.testing.assert_close(ask(line, X, size)["y"], DRAWS["slope"][:, None] * X, atol=0.1, rtol=0)


def test_rows_that_are_given_are_known() -> None:
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(ask(line, X, None, rows)["y"], DRAWS["slope"][:, None] * X[rows], atol=0.1, rtol=0)


def test_a_minibatch_has_the_rows_of_its_data() -> None:
    torch.testing.assert_close(ask(of_a_batch, X[:2])["y"], DRAWS["slope"][:, None] * X[:2], atol=0.1, rtol=0)


@pytest.mark.parametrize("size", [None, 3])
def test_no_rows_are_told_in_words(size: int | None) -> None:
    with pytest.raises(
        ValueError, match=r"^predict: plate 'row' has no rows at these arguments, expected at least one"
    ):
        ask(line, X[:0], size)


def test_too_few_rows_are_told_in_words() -> None:
    with pytest.raises(
        ValueError, match=r"^predict: plate 'row' shows 3 of its rows \(subsample_size=3\), but has 2 at"
    ):
        ask(line, X[:2], 3)


def test_rows_of_plates_that_cross_are_taken_by_their_numbers():
    """Of both, in any order; a plate that is not numbered keeps its rows' places."""

    def model(i, j):
        rows = pyro.plate("rows", 4, subsample=i, dim=-2)
        columns = pyro.plate("columns", 3, subsample=j, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Normal(torch.zeros(len(i), 1), 1.0))
        with columns:
            b = pyro.sample("b", dist.Normal(torch.zeros(len(j)), 1.0))
        with rows, columns:
            pyro.deterministic("sum", a + b)

    a, b = torch.arange(8.0).view(2, 4, 1), 10.0 * torch.arange(6.0).view(2, 3)
    i, j = torch.tensor([3, 1]), torch.tensor([2, 0, 1])
    found = predicted("predict", model, {"a": a, "b": b}, (), (i, j), {}, ("rows", "columns")).answers
    assert torch.equal(found["predictions", "sum"], a[:, i] + b[:, None, j])
    some = predicted("predict", model, {"a": a, "b": b}, (), (i, j), {}, ("rows",)).answers
    assert torch.equal(some["predictions", "sum"], a[:, i] + b[:, None])
