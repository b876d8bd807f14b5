"""A model without data: what counts as some, and what a run says of it."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.model.observed import NothingObservedWarning, has_data, left_out

SAID = "Nothing was observed at these arguments, so the posterior is the prior."
Y = torch.tensor([1.0, 2.0])


def line(x: torch.Tensor, y: Any = None) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    pyro.deterministic("twice", 2 * slope)
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def bent(y: Any = None) -> None:
    z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.factor("bend", -z.square())


def fit(model: Any) -> VI:
    guide = AutoFlow(model, lambda dim: flows.realnvp(dim, 2, (4,)))
    return VI(guide, seed=0, engine="eager", effort="quick", progress_bar=False)


@pytest.mark.parametrize(("y", "some"), [(None, False), (Y, True)])
def test_observed_values_are_data(y: Any, some: bool) -> None:
    assert has_data(poutine.trace(line).get_trace(Y, y), ["slope"]) is some


def test_a_factor_is_data_and_no_rows_are_not() -> None:
    assert has_data(poutine.trace(bent).get_trace(), ["z"])

    def no_rows() -> None:
        pyro.sample("y", dist.Normal(torch.zeros(0), 1.0).to_event(1), obs=Y[:0])

    assert not has_data(poutine.trace(no_rows).get_trace(), [])


def test_a_value_that_was_put_there_is_no_data() -> None:
    placed = poutine.condition(line, {"slope": torch.tensor(0.0)})
    assert not has_data(poutine.trace(placed).get_trace(Y), ["slope", "y"])
    assert has_data(poutine.trace(poutine.condition(line, {"y": Y})).get_trace(Y), ["slope"])


def test_what_was_left_out_is_named() -> None:
    assert left_out(line, (Y,), {}) == ["y"]
    assert left_out(line, (Y,), {"y": Y}) == []
    assert left_out(poutine.condition(line, {}), (Y, None), {}) == ["y"]
    assert left_out(line, (), {}) == []


def test_forgotten_data_are_told_of_once() -> None:
    vi = fit(line)
    with pytest.warns(NothingObservedWarning, match=r"where y is None, .* as in run\(\.\.\., y=y\)") as told:
        vi.run(Y)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert SAID in str(vi.verdict())


@pytest.mark.parametrize(("model", "args"), [(line, (Y, Y)), (bent, ())])
def test_with_data_nothing_is_said(model: Any, args: tuple[Any, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vi = fit(model).run(*args)
    assert SAID not in str(vi.verdict())


def test_a_prior_that_is_meant_is_no_mistake() -> None:
    def prior() -> None:
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vi = fit(prior).run()
    assert SAID in str(vi.verdict())
