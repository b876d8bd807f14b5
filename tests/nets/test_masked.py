"""The networks inside the layers: zero at the start, and masked ones read only what they may."""

import pytest
import torch

from pyro_nflows.checks import check_sizes
from pyro_nflows.nets.context import bind
from pyro_nflows.nets.masked import MaskedMLP
from pyro_nflows.nets.mlp import MLP


def shaken(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "3", None])
def test_a_size_is_a_positive_integer(size):
    with pytest.raises(ValueError, match="Planar: input_dim must be a positive integer, got"):
        check_sizes("Planar", num_layers=1, input_dim=size)


@pytest.mark.parametrize("hidden_dims", [(), (7,), (7, 5)])
@pytest.mark.parametrize("input_dim", [0, 1, 3])
@pytest.mark.parametrize("skip", [False, True])
def test_a_fresh_network_is_zero(input_dim, hidden_dims, skip):
    y = MLP(input_dim, 4, hidden_dims, skip)(torch.randn(2, 6, input_dim))
    assert y.shape == (2, 6, 4)
    assert not y.any()


def test_a_network_of_nothing_is_a_constant():
    net = shaken(MLP(0, 4, (7,)))
    assert [p.shape for p in net.parameters()] == [(4,)]
    assert torch.equal(net(torch.empty(6, 0)), net.bias.expand(6, 4))


def test_the_skip_holds_a_linear_map_exactly_far_out():
    net, matrix = MLP(3, 2, (7,)), torch.randn(2, 3)
    with torch.no_grad():
        net.skip.copy_(matrix)
    x = 1e6 * torch.randn(5, 3)
    assert torch.allclose(net(x), x @ matrix.T)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("hidden_dims", [(), (9,), (9, 7)])
@pytest.mark.parametrize("input_dim", [1, 2, 4])
def test_a_masked_network_reads_all_earlier_inputs_and_no_others(input_dim, hidden_dims, reverse):
    net = shaken(MaskedMLP(input_dim, 2, hidden_dims, reverse))
    jacobian = torch.func.jacrev(net)(torch.randn(input_dim)).abs().sum(1)
    order = torch.arange(input_dim)
    earlier = order[:, None] < order if reverse else order[:, None] > order
    assert torch.equal(jacobian > 0, earlier)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("hidden_dims", [(), (9,), (3, 9, 7)])
@pytest.mark.parametrize(("input_dim", "context_dim"), [(1, 0), (1, 2), (2, 0), (5, 0), (5, 2)])
def test_solving_coordinate_by_coordinate_is_a_fixed_point_of_whole_passes(
    input_dim, context_dim, hidden_dims, reverse
):
    net = shaken(MaskedMLP(input_dim, 2, hidden_dims, reverse, context_dim))
    net = bind(net, torch.randn(6, context_dim)) if context_dim else net
    y = torch.randn(4, 6, input_dim)

    def invert(y, params):
        return y - params[..., 0], params[..., 1]

    x, others = net.solve(y, invert)
    for got, expected in zip((x, others), invert(y, net(x))):
        assert torch.allclose(got, expected)


def test_a_fresh_masked_network_is_zero():
    assert not MaskedMLP(4, 3, (9,))(torch.randn(5, 4)).any()


def test_a_masked_network_of_one_input_trains_a_constant_only():
    net = MaskedMLP(1, 3, (9, 9))
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["bias"]


def test_masks_follow_the_precision_and_are_not_saved():
    net = MaskedMLP(3, 2, (9,))
    assert net.float()(torch.randn(5, 3).float()).dtype is torch.float32
    assert not any("mask" in name for name in net.state_dict())
