"""Costs that should grow with the dimension, and not with its square, do."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from pyro_nflows.layers import (
    ActNorm,
    Autoregressive,
    Conditional,
    Coupling,
    Householder,
    LocScale,
    Permutation,
    Planar,
    Radial,
    Residual,
    Split,
    Squeeze,
    Sylvester,
    TriangularAffine,
)
from pyro_nflows.testing import perturbed

LINEAR = {
    "Planar": Planar,
    "Radial": Radial,
    "LocScale": LocScale,
    "ActNorm": ActNorm,
    "Permutation": lambda dim: Permutation(torch.arange(dim).flip(0)),
    "Householder": lambda dim: Householder(dim, 2),
    "Sylvester": lambda dim: Sylvester(dim, 2),
    "Coupling": lambda dim: Coupling(dim, hidden_dims=(8,)),
    "Coupling of images": lambda dim: Coupling((2, dim // 4, 2), hidden_dims=(8,)),
    "Squeeze": lambda dim: Squeeze((1, dim // 2, 2)),
    "Split": lambda dim: Split(Planar(dim // 2), dim),
    "Residual, series": lambda dim: Residual(dim, hidden_dims=(8,), log_det="series"),
}
#: A linear skip reads each half of the coordinates for each of the other half.
SKIPS = {"Coupling"}


class Cost(TorchDispatchMode):
    """Counts the numbers that operations read and write, and the multiplications in matrix products."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.total += sum(t.numel() for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def cost(run, *args):
    with Cost() as count:
        run(*args)
    return count.total


def cost_of(name, method, dim):
    layer = perturbed(lambda: LINEAR[name](dim))
    if name in SKIPS:
        layer.net.skip = None
    x, noise = torch.randn(64, dim), torch.randn(64, layer.noise_dim) if layer.noise_dim else None
    with torch.no_grad():
        y, _ = layer(x, noise)
        return cost(method, layer, x, y, noise)


@pytest.mark.parametrize("name", LINEAR)
def test_a_pass_and_its_log_determinant_are_linear_in_the_dimension(name):
    small, large = (cost_of(name, lambda layer, x, y, noise: layer(x, noise), dim) for dim in (256, 512))
    assert large < 2.1 * small


@pytest.mark.parametrize("name", sorted(set(LINEAR) - {"Residual, series"}))
def test_a_path_gradient_is_linear_in_the_dimension(name):
    small, large = (cost_of(name, lambda layer, x, y, noise: layer.transport(x, y, x), dim) for dim in (256, 512))
    assert large < 2.1 * small


def test_a_bound_layer_costs_what_its_rows_do():
    layer = perturbed(lambda: Conditional(Planar(50), 2))
    few, many = (cost(lambda n=n: layer.at(torch.ones(n, 2))(torch.ones(n, 50))) for n in (100, 200))
    assert many < 2.1 * few


@pytest.mark.parametrize("context_dim", [0, 2])
def test_a_draw_of_a_masked_autoregressive_flow_multiplies_no_more_than_a_density_does(context_dim):
    layer = perturbed(lambda: Autoregressive(20, hidden_dims=(50, 50), context_dim=context_dim))
    layer, x = layer.at(torch.randn(2)) if context_dim else layer, torch.randn(64, 20)
    flops = []
    for run in (layer.forward, layer.inverse):
        with FlopCounterMode(display=False) as count, torch.no_grad():
            run(x)
        flops.append(count.get_total_flops())
    density, draw = flops
    assert 0 < draw <= density


def test_the_count_sees_what_grows_with_the_square():
    small, large = (cost(perturbed(lambda n=dim: TriangularAffine(n)), torch.randn(64, dim)) for dim in (256, 512))
    assert large > 3.5 * small
