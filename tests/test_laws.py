"""Every layer obeys every law that applies to it; and a layer that breaks a law is caught by that law."""

import pytest
import registry

from pyro_nflows.testing import check_identity_at_initialisation, laws_of

CASES = [
    pytest.param(law, make, id=f"{name}-{law.__name__.removeprefix('check_')}")
    for name, make in registry.LAYERS.items()
    for law in laws_of(make)
    if law is not check_identity_at_initialisation or name in registry.AT_IDENTITY
]


@pytest.mark.parametrize(("law", "make"), CASES)
def test_law(law, make):
    law(make)
