"""Wide masked networks: what is left out is zeros, and nothing else."""

import pytest
import torch

from pyro_nflows.nets.context import bind
from pyro_nflows.nets.masked import MaskedMLP
from pyro_nflows.nets.tiles import Grid, grid, masked_linear


def shaken(*args, **kwargs):
    net = MaskedMLP(*args, **kwargs)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return net


def plain(net):
    """The same network by products with whole masked weights."""
    other = MaskedMLP(*net.shape, [layer.out_features for layer in net.hidden], net.reverse, net.context_dim)
    other.load_state_dict(net.state_dict())
    other.grids = dict.fromkeys(other.grids, "masked")
    return other


def rectangles(cell, size):
    """Sizes of all that is multiplied."""
    if not isinstance(cell, Grid):
        return [] if cell is None else [size]
    cells = [(part, (m, n)) for m, row in zip(cell.rows, cell.cells) for n, part in zip(cell.columns, row)]
    return [found for part, part_size in cells for found in rectangles(part, part_size)]


WIDE = {
    "as wide as its input": {"input_dim": 270, "num_params": 2, "hidden_dims": (270, 270)},
    "reversed": {"input_dim": 257, "num_params": 1, "hidden_dims": (257, 257), "reverse": True},
    "wider": {"input_dim": 260, "num_params": 1, "hidden_dims": (300, 259)},
    "narrower": {"input_dim": 256, "num_params": 1, "hidden_dims": (256, 40)},
    "with a context": {"input_dim": 260, "num_params": 1, "hidden_dims": (261, 270), "reverse": True, "context_dim": 3},
}


@pytest.mark.parametrize("name", WIDE)
def test_a_wide_network_and_its_gradients_are_those_of_masked_weights(name):
    net = shaken(**WIDE[name])
    assert any(isinstance(cell, Grid) for cell in net.grids.values())
    other, x = plain(net), torch.randn(2, 3, net.shape[0])
    pair = [bind(one, torch.linspace(0.0, 1.0, 3)) if net.context_dim else one for one in (net, other)]
    results = [one(x.clone().requires_grad_()) for one in pair]
    assert torch.allclose(*results)
    way = torch.randn_like(results[0])
    for one, same in zip(*(torch.autograd.grad(y, [*n.parameters()], way) for y, n in zip(results, (net, other)))):
        assert torch.allclose(one, same, atol=1e-10)
    for function in (torch.func.jacrev, lambda f: torch.func.vmap(torch.func.grad(lambda z: f(z).sin().sum()))):
        assert torch.allclose(*(function(one)(x[0]) for one in pair), atol=1e-10)


def test_second_derivatives_of_a_wide_network_are_those_of_masked_weights():
    net = shaken(256, 1, (256,))
    x, way = torch.randn(2, 256), torch.randn(2, 256)

    def curvature(one):
        slope = torch.func.grad(lambda z: one(z).sin().sum())
        return torch.func.grad(lambda z: (slope(z) * way).sum())(x)

    assert torch.allclose(curvature(net), curvature(plain(net)), atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_little_more_than_half_of_a_wide_network_is_multiplied(reverse):
    net = MaskedMLP(520, 2, (520, 520), reverse)
    for name, cell in net.grids.items():
        size = getattr(net, name).shape
        found = rectangles(cell, tuple(size))
        assert sum(m * n for m, n in found) < 0.57 * size.numel()
        assert len(found) <= 18


def test_a_narrow_network_is_not_cut():
    assert not any(isinstance(cell, Grid) for cell in MaskedMLP(200, 2, (255, 64)).grids.values())
    assert not any(isinstance(cell, Grid) for cell in MaskedMLP(20, 2, (1000, 1000)).grids.values())


def test_a_mask_of_any_shape_leaves_out_zeros_only():
    """Degrees in no order, too."""
    degrees = torch.randperm(260), torch.arange(300).flip(0) % 150
    mask = degrees[0][:, None] >= degrees[1]
    weight, x = torch.randn(260, 300), torch.randn(4, 300)
    cell = grid(mask, *degrees)
    assert torch.allclose(masked_linear(x, weight, mask.double(), cell), x @ (weight * mask).T)
