"""Many numbers are regressed on learned features of a few, and not for longer than there is time for."""

import copy

import pytest
import torch

from pyro_nflows.engine import OutOfTime
from pyro_nflows.inference.regressed import regressed
from pyro_nflows.nets.features import Features

X = torch.linspace(-2, 2, 128, dtype=torch.double)[:, None]
MIXED = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.double)
Y = torch.cat([X.sin(), (2 * X).cos(), X.exp()], 1) @ MIXED


def features():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Features(1).double()


def test_numbers_that_share_a_few_functions_are_regressed_on_features_that_learn_these():
    made = features()
    found = regressed(made, X, Y, torch.ones(len(X)))
    with torch.no_grad():
        error = found[0] + made(X) @ found[1:] - Y
    line = torch.cat([torch.ones_like(X), X], 1)
    left = Y - line @ torch.linalg.lstsq(line, Y).solution
    assert error.square().mean() < 1e-3 * left.square().mean()


def test_what_is_linear_is_regressed_exactly():
    made, slopes = features(), MIXED[:1]
    found = regressed(made, X, X @ slopes, torch.ones(len(X)))
    with torch.no_grad():
        torch.testing.assert_close(found[0] + made(X) @ found[1:], X @ slopes, rtol=0, atol=1e-4)


def test_a_regression_ends_when_there_is_no_time_left():
    calls = []

    def check():
        calls.append(1)
        if len(calls) > 5:
            raise OutOfTime

    made = features()
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(OutOfTime):
        regressed(made, X, Y, torch.ones(len(X)), check)
    assert len(calls) < 12
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
