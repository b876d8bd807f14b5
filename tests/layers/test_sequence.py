"""Layers over positions: what a position reads, and draws by what is kept of the past."""

import functools

import pytest
import torch

from pyro_nflows import flows
from pyro_nflows.flows import up_to
from pyro_nflows.layers import SequenceAutoregressive
from pyro_nflows.layers.base import Inverse
from pyro_nflows.nets import CausalConvNet, CausalTransformer
from pyro_nflows.testing import perturbed
from pyro_nflows.transformers import Affine, Shift

CONV = functools.partial(CausalConvNet, width=6, dilations=(1, 2))
ATTENTION = functools.partial(CausalTransformer, width=8, num_blocks=2, num_heads=2)
NETS = pytest.mark.parametrize("net", [CONV, ATTENTION], ids=["conv", "attention"])


@NETS
@pytest.mark.parametrize("reverse", [False, True])
def test_each_output_reads_what_is_before_it(net, reverse):
    layer = perturbed(lambda: SequenceAutoregressive((7, 2), net=net, reverse=reverse))
    jacobian, _ = layer.jacobian(torch.randn(14, dtype=torch.float64))
    jacobian = jacobian.flip((0, 1)) if reverse else jacobian
    assert (jacobian.triu(1) == 0).all()
    distance = torch.arange(14)[:, None] // 2 - torch.arange(14) // 2
    reach = layer.net.reach or 7
    assert (jacobian[(distance > 0) & (distance <= reach)] != 0).all()
    assert (jacobian[distance > reach] == 0).all()


@NETS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_draws_by_what_is_kept_equal_draws_without(net, dtype, tolerance):
    """Without: a fixed point, each round of which is a pass of the whole network and fixes one more position."""
    make = functools.partial(SequenceAutoregressive, (9, 1), Affine(1.0), net=net, reverse=True)
    layer = perturbed(lambda: make(context_dim=2)).to(dtype).at(torch.randn(9 * 2, dtype=dtype))
    base = torch.randn(20, 9, dtype=dtype)
    cached, _ = Inverse(layer)(base)
    context = layer.context.unflatten(-1, (-1, 2)).flip((-2, -1))
    rows = base.flip(-1)[..., None]
    x = torch.zeros_like(rows)
    for _ in range(9):
        x, _ = layer.transformer.inverse(rows, layer.net(x, context))
    torch.testing.assert_close(cached, x[..., 0].flip(-1), rtol=tolerance, atol=tolerance)


@NETS
def test_a_position_costs_one_step(net, monkeypatch):
    layer = SequenceAutoregressive((12, 1), net=net)
    shapes = []
    advance = type(layer.net).advance

    def counted(self, h, past):
        shapes.append(h.shape)
        return advance(self, h, past)

    monkeypatch.setattr(type(layer.net), "advance", counted)
    monkeypatch.setattr(type(layer.net), "body", None)
    layer.inverse(torch.randn(3, 12))
    assert shapes == [(3, layer.net.width)] * 12


@NETS
@pytest.mark.parametrize("reverse", [False, True])
def test_a_padded_sequence_is_one_of_its_length(net, reverse):
    long = perturbed(lambda: SequenceAutoregressive((6, 2), net=net, reverse=reverse, context_dim=1))
    lengths = torch.tensor([3, 6, 4])
    x, context = torch.randn(3, 12, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    y, log_weight = up_to(long.at(context), lengths)(x)
    for i, length in enumerate(lengths.tolist()):
        short = SequenceAutoregressive((length, 2), net=net, reverse=reverse, context_dim=1).double()
        short.load_state_dict(long.state_dict())
        expected, weight = short.at(context[i, :length])(x[i, : 2 * length])
        torch.testing.assert_close(y[i, : 2 * length], expected)
        torch.testing.assert_close(log_weight[i], weight)
        torch.testing.assert_close(y[i, 2 * length :], x[i, 2 * length :])
    back, again = up_to(long.at(context), lengths).inverse(y)
    torch.testing.assert_close((back, again), (x, log_weight))


@NETS
def test_a_position_reads_the_context_up_to_its_own(net):
    layer = perturbed(lambda: SequenceAutoregressive((6, 1), net=net, context_dim=1))
    x, context = torch.randn(2, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda c: layer.at(c)(x)[0], context)
    assert (jacobian.triu(1) == 0).all()
    assert (jacobian.diagonal() != 0).all()


def test_a_linear_dependence_is_exact():
    """An autoregressive process of order two, by the skip alone."""
    layer = SequenceAutoregressive((50, 1), Shift())
    with torch.no_grad():
        layer.net.skip.copy_(torch.tensor([[-0.5, 0.3]]))
    series, _ = layer.inverse(noise := torch.randn(50))
    past = torch.cat([torch.zeros(2), series])
    torch.testing.assert_close(series - 0.5 * past[1:-1] + 0.3 * past[:-2], noise)


def test_patches_of_an_image_are_read_one_after_the_other():
    flow = perturbed(lambda: flows.tarflow((2, 4, 4), 1, 8, 1, patch=2))
    jacobian, _ = flow.jacobian(torch.randn(32, dtype=torch.float64))
    rows, columns = (torch.arange(32) % 16) // 8, (torch.arange(32) % 4) // 2
    patch = 2 * rows + columns
    assert (jacobian[patch[:, None] < patch] == 0).all()
    assert (jacobian[patch[:, None] > patch] != 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequenceAutoregressive((1, 2)), "expected at least two positions"),
        (lambda: SequenceAutoregressive((0, 2)), "num_positions must be a positive integer, got 0"),
        (lambda: CausalTransformer((3, 1), 2, width=6, num_heads=2), "multiple of 2 \\* num_heads = 4, got 6"),
        (lambda: CausalConvNet((3, 1), 2, dilations=(0,)), "sequence of positive integers"),
        (
            lambda: SequenceAutoregressive((3, 1), net=lambda *_, **__: lambda x, context: x)(torch.ones(5, 3)),
            r"expected net to give 2 numbers a coordinate, \(5, 3, 1, 2\) of \(5, 3, 1\), got \(5, 3, 1\)",
        ),
        (lambda: flows.wavenet((3, 2, 1)), "expected a number of positions, or positions and coordinates"),
        (lambda: flows.tarflow((1, 4, 3), patch=2), "4 x 3 is no whole number of patches of 2 x 2"),
        (lambda: flows.tarflow((5, 1), patch=2), "divides the 5 positions, got 2"),
        (lambda: up_to(flows.wavenet(3), torch.tensor([4])), "expected lengths from 1 to 3, got 4 to 4"),
        (lambda: up_to(flows.wavenet(3), torch.tensor([2.0])), "whole numbers"),
        (lambda: up_to(flows.realnvp(3), torch.tensor([2])), "no part that is over positions"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
