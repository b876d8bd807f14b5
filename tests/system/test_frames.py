"""A warning names the user's line, however deep in the package it was raised."""

import warnings

import pytest

from pyro_nflows.system.exclusive import exclusive
from pyro_nflows.system.frames import user_level


@exclusive()
def through_a_decorator() -> None:
    warnings.warn("told", UserWarning, stacklevel=user_level())


def test_a_warning_raised_outside_of_the_package_names_its_own_line() -> None:
    with pytest.warns(UserWarning, match="told") as warned:
        through_a_decorator()
    assert warned[0].filename == __file__
    assert warned[0].lineno == through_a_decorator.__wrapped__.__code__.co_firstlineno + 2
