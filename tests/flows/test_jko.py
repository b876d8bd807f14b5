"""Flows of blocks that are trained one by one: their order, their start, and mistakes."""

import itertools

import pytest
import torch

from pyro_nflows import flows
from pyro_nflows.flows.jko import Blocks
from pyro_nflows.layers import LocScale, Planar


def test_blocks_are_in_the_order_in_which_they_move_the_mass() -> None:
    x = torch.randn(5, 2)
    for inverted in (False, True):
        flow = flows.jko(2, 3, (4,), build=Planar, inverted=inverted)
        with torch.no_grad():
            for i, block in enumerate(flow.in_order()):
                block.u.fill_(0.1 * (i + 1))  # type: ignore[union-attr, operator]
            expected = x
            for block in flow.in_order():
                expected, _ = block(expected)
            moved, _ = flow.inverse(x) if inverted else flow(x)
        torch.testing.assert_close(moved, expected)


def test_a_flow_is_fresh_until_a_block_moves() -> None:
    flow = flows.jko(2, 2, (4,), inverted=True)
    assert flow.is_fresh()
    with torch.no_grad():
        flow.in_order()[-1].net.bias.fill_(0.1)  # type: ignore[union-attr]
    assert not flow.is_fresh()


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="step_size must be a positive number, got 0"):
        flows.jko(2, step_size=0)
    with pytest.raises(ValueError, match="num_blocks must be a positive integer, got 0"):
        flows.jko(2, 0)
    widths = itertools.count(1)
    with pytest.raises(ValueError, match="parameters of the same shapes"):
        flows.jko(2, 2, build=lambda dim: flows.realnvp(dim, 1, (next(widths),)))
    with pytest.raises(ValueError, match="at least one layer"):
        Blocks([])
    assert type(Blocks([LocScale(1)])[0]) is LocScale
