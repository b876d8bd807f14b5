"""L-BFGS as SciPy has it: how far it goes, and what ends it."""

import numpy as np
import pytest

from pyro_nflows.engine.budget import OutOfTime
from pyro_nflows.modes.lbfgs import climbed

SCALES = np.logspace(0, 4, 40)


def loss(x):
    return float((SCALES * (x - 1) ** 2).sum()), 2 * SCALES * (x - 1)


def test_a_climb_ends_at_a_gain_that_is_none_and_remembers_as_many_steps_as_asked_for():
    start = np.zeros(40)
    fine, coarse = (climbed(loss, start, 500, level=level) for level in (1e-12, 1e-2))
    assert len(coarse) < len(fine)
    np.testing.assert_allclose(fine[-1], 1.0, atol=1e-3)
    many, few = (climbed(loss, start, 500, memory=memory, level=1e-12) for memory in (40, 2))
    assert len(many) < len(few)
    assert len(climbed(loss, start, 3)) == 3


def test_a_climb_without_time_ends_where_it_is():
    calls = []

    def late(x):
        calls.append(1)
        if len(calls) > 4:
            raise OutOfTime
        return loss(x)

    assert 0 < len(climbed(late, np.zeros(40), 500)) <= 4
    assert len(calls) == 5


def test_other_errors_are_the_callers():
    def broken(x):
        raise TypeError("no number")

    with pytest.raises(TypeError, match="no number"):
        climbed(broken, np.zeros(2), 5)
