"""Every kind of layer computes the same, gradients included, as compiled code."""

import pytest
import torch
from torch.func import functional_call

from pyro_nflows.engine.native import Scan, build
from pyro_nflows.engine.tape import Tape
from pyro_nflows.testing import perturbed
from tests import registry

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")

#: One of each kind; equal code is compiled once.
NAMES = [
    "Planar(3)",
    "Radial(3)",
    "LocScale(3)",
    "TriangularAffine(3)",
    "Coupling(1)",
    "Coupling(3, flip)",
    "Coupling(3, Shift)",
    "Coupling(3, RationalQuadratic)",
    "Autoregressive(3, reverse)",
    "Autoregressive(3, RationalQuadratic)",
    "Inverse(Planar)",
    "Inverse(Autoregressive)",
    "Chain(Indexed, Inverse(Indexed))",
    "Indexed(Planar, 2)",
    "Indexed(Planar, spline)",
    "Indexed(Coupling, 3)",
    "Indexed(Chain)",
    "ActNorm(image)",
    "LULinear(3, permutation)",
    "LULinear(image)",
    "Householder(3)",
    "Sylvester(4, 2)",
    "glow_image(1, 2, 2)",
    "Residual(3)",
    "Residual(2, roulette)",
    "Split(Indexed)",
    "FlowifiedLinear(3, 2)",
    "Chain(FlowifiedLinear, up and down)",
    "FlowifiedConv(tiles)",
    "FlowifiedConv(overlap)",
    "Coupling(image)",
    "Conditional(Planar)",
    "Conditional(Coupling)",
    "Indexed(Conditional(Coupling))",
    "Autoregressive(3, context)",
    "glow(3)",
    "iaf(3)",
    "spline(3)",
]


@pytest.mark.parametrize("num_rows", [1, 20])
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_compiles(name, num_rows):
    layer = perturbed(registry.LAYERS[name])
    names, params = zip(*layer.named_parameters())

    def function(x, noise, *values):
        with torch.enable_grad():
            leaves = [v.detach().requires_grad_() for v in (x, *values)]
            given = noise if layer.noise_dim else None
            y, log_weight = functional_call(layer, dict(zip(names, leaves[1:])), (leaves[0], given))
            grads = torch.autograd.grad((y.tanh().sum(-1) + log_weight).sum(), leaves, allow_unused=True)
        return [y.detach(), log_weight.detach(), *(torch.zeros(()) if g is None else g for g in grads)]

    inputs = [torch.randn(num_rows, layer.input_dim), torch.randn(num_rows, layer.noise_dim), *params]
    inputs = [x.detach() for x in inputs]
    scan = Scan(Tape(function, inputs), 0)
    fresh = [0.7 * inputs[0].flip(-1), -inputs[1], *inputs[2:]]
    _, results = scan.run([], [x[None] for x in fresh])
    for got, expected in zip(results, function(*fresh), strict=True):
        assert torch.allclose(got[0], expected, rtol=1e-9, atol=1e-9)
