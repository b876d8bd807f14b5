"""Fits that are judged by fewer draws, for tests of what happens to a fit and not of how good it is."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pyro_nflows.inference.schedule import Schedule

FEW = Schedule.of_effort("quick").num_samples


@contextlib.contextmanager
def few_draws() -> Iterator[None]:
    """Within it, fits of a given number of steps have as many draws as quick ones: more are a third of their time."""
    of = Schedule.of

    def of_few(*sizes: Any) -> Schedule:
        found = of(*sizes)
        return found if found.is_default else replace(found, num_samples=FEW)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "of", of_few)
        yield
