"""Tests run in double precision; the examples in the package's docstrings in torch's default, as a reader's would."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def double_precision() -> Iterator[None]:
    """For a whole module, so that what its fixtures build is in double precision as well."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
