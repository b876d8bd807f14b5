"""Which latents are tied together, and the order in which they are drawn."""

import pytest
import torch

from pyro_nflows.model.elimination import Elimination
from pyro_nflows.model.pattern import Pattern, pattern_of


def walk(z):
    """A random walk, the scale of whose steps is the last latent."""
    return -((z[:, 1:-1] - z[:, :-2]).square().sum(-1) * z[:, -1].exp()) - z[:, :-1].pow(4).sum(-1)


def walk_pairs(dim):
    last = dim - 1
    steps = {(i, i + 1) for i in range(last - 1)} | {(i, last) for i in range(last)}
    return steps | {(j, i) for i, j in steps}


@pytest.mark.parametrize("dim", [40, 300, 3000])
def test_a_walk_is_a_chain_with_a_hub(dim):
    pattern = pattern_of(walk, torch.ones(dim))
    assert set(zip(*pattern.pairs.tolist())) == walk_pairs(dim)
    assert pattern.hubs.tolist() == [dim - 1]


def test_order_does_not_matter():
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    pattern = pattern_of(lambda z: walk(z[:, order]), torch.ones(400))
    assert set(zip(*pattern.pairs.tolist())) == {(int(order[i]), int(order[j])) for i, j in walk_pairs(400)}


def test_a_regression_is_not_sparse():
    design = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    for dim in (100, 300):
        assert pattern_of(lambda z: -(z @ design[:, : z.shape[1]].T).square().sum(-1), torch.zeros(dim)) is None


def test_colors_tell_the_columns_of_a_row_apart():
    pattern = pattern_of(walk, torch.ones(60))
    colors, hub = pattern.colors(), int(pattern.hubs[0])
    for row in range(60):
        columns = [row, *pattern.pairs[1, pattern.pairs[0] == row].tolist()]
        assert row == hub or len({int(colors[j]) for j in columns}) == len(columns)
    assert int(colors.max()) <= 4


def grid(size):
    at = torch.arange(size**2).reshape(size, size)
    steps = torch.cat(
        [torch.stack([a.flatten(), b.flatten()]) for a, b in ((at[1:], at[:-1]), (at.T[1:], at.T[:-1]))], 1
    )
    return Pattern(size**2, torch.cat([steps, steps.flip(0)], 1), torch.zeros(0, dtype=torch.long))


def test_each_latent_is_drawn_once_and_after_what_it_depends_on():
    order = Elimination.of(grid(12))
    known = {144}
    for group in order.groups:
        assert set(group.above.flatten().tolist()) <= known
        own = [column for column in group.columns.flatten().tolist() if column < 144]
        assert not known & set(own)
        assert len(own) == len(set(own))
        known |= set(own)
    assert len(known) == 145


def test_numbers_of_a_chain_grow_linearly_and_its_rounds_with_the_logarithm():
    small, large = (Elimination.of(pattern_of(walk, torch.ones(dim))) for dim in (500, 2000))
    assert large.size < 4.5 * small.size
    assert len(large.groups) < len(small.groups) + 10


def test_an_order_is_found_again_from_plain_values():
    order = Elimination.of(grid(5))
    again = Elimination.unlisted(order.listed())
    assert all(
        torch.equal(a.columns, b.columns) and torch.equal(a.above, b.above) for a, b in zip(order.groups, again.groups)
    )
