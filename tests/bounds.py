"""Two objectives on the same random numbers: bounds that are equal in mean only take hundreds of draws to compare."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest


def assert_same_bounds(ours: Any, theirs: Any, model: Callable[..., Any], guide: Any, *args: Any) -> None:
    """Draw by draw, each with a seed of its own."""
    guide(*args)
    for seed in range(10):
        pyro.set_rng_seed(seed)
        expected = theirs.loss(model, guide, *args)
        pyro.set_rng_seed(seed)
        assert ours.loss(model, guide, *args) == pytest.approx(expected, rel=1e-9)
