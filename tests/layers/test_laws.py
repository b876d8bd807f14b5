"""Every layer obeys every law that applies to it."""

import inspect

import pytest
import torch

from pyro_nflows import flows, layers
from pyro_nflows.testing import check_identity_at_initialisation, check_unit_evidence, fresh, laws_of
from tests import registry

pytestmark = pytest.mark.on_devices

CASES = [
    pytest.param(law, make, id=f"{name}-{law.__name__.removeprefix('check_')}")
    for name, make in registry.LAYERS.items()
    for law in laws_of(make)
    if law is not check_identity_at_initialisation or name in registry.AT_IDENTITY
    if law is not check_unit_evidence or name not in registry.LARGE
]


@pytest.mark.parametrize(("law", "make"), CASES)
def test_law(law, make):
    law(make)


def test_every_layer_is_in_the_registry():
    public = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)}
    public -= {"Layer", "LogDet", "Solver", "Trace", "Exactness"}
    tested = {type(part).__name__ for make in registry.LAYERS.values() for part in fresh(make).modules()}
    assert public - tested == set()


def test_every_flow_is_in_the_registry():
    public = {name for name, value in vars(flows).items() if inspect.isfunction(value)}
    public -= {"num_params", "widened"}  # of two flows to be compared
    assert public - {name.partition("(")[0] for name in registry.LAYERS} == set()


@pytest.mark.parametrize("name", ["spline(3)", "cif(3)", "Permutation(3)"])
def test_a_layer_follows_the_device(name):
    """On the device without memory, shapes alone: any tensor made elsewhere is an error."""
    layer = registry.LAYERS[name]().to("meta")
    x = torch.empty(5, layer.input_dim, device="meta")
    y, log_weight = layer(x, torch.empty(5, layer.noise_dim, device="meta"))
    assert (y.shape, log_weight.shape) == (x.shape, x.shape[:1])
