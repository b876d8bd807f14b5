"""A model's latents by its plates: which coordinates are in which rows, and what each row is within."""

import pyro
import pyro.distributions as dist
import torch

from pyro_nflows.model.hierarchy import MAX_CROSSED, Hierarchy, Outline
from pyro_nflows.model.latents import Latents


def nested():
    """Classes of schools, with an intercept and two slopes a class, and a simplex a school."""
    schools, classes = pyro.plate("schools", 3, dim=-1), pyro.plate("classes", 2, dim=-2)
    with schools, classes:
        pyro.sample("slopes", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with schools:
        pyro.sample("mix", dist.Dirichlet(torch.ones(3)))
    pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_rows_hold_what_all_sites_of_a_plate_have_in_one_index():
    latents = Latents.of("test", pyro.poutine.trace(nested).get_trace())
    hierarchy = Hierarchy.of(latents)
    z = torch.arange(float(latents.dim))
    parts = latents.unpack(z)
    assert z[hierarchy.top].tolist() == parts["mu"].tolist()
    schools, classes = hierarchy.blocks
    assert [block.plates for block in hierarchy.blocks] == [("schools",), ("classes", "schools")]
    assert torch.equal(z[schools.columns], parts["mix"])
    for row, (a, b) in zip(classes.columns, torch.cartesian_prod(torch.arange(2), torch.arange(3))):
        assert z[row].tolist() == [*parts["slopes"][a, b].tolist(), parts["intercept"][a, b].item()]
    (above,) = classes.above
    assert (above.block, above.row.tolist()) == (0, [0, 1, 2, 0, 1, 2])


def test_every_coordinate_is_in_one_place():
    latents = Latents.of("test", pyro.poutine.trace(nested).get_trace())
    hierarchy = Hierarchy.of(latents)
    assert sorted(hierarchy.order.tolist()) == list(range(latents.dim))
    assert sum(hierarchy.sizes()) == hierarchy.dim == latents.dim
    x = torch.randn(4, latents.dim)
    assert torch.equal(hierarchy.join(hierarchy.split(x)), x)


def test_it_is_found_again_in_a_state():
    hierarchy = Hierarchy.of(Latents.of("test", pyro.poutine.trace(nested).get_trace()))
    again = Hierarchy.unlisted(hierarchy.listed())
    assert torch.equal(again.order, hierarchy.order)
    assert [block.plates for block in again.blocks] == [block.plates for block in hierarchy.blocks]
    assert torch.equal(again.blocks[1].above[0].row, hierarchy.blocks[1].above[0].row)


def test_the_smaller_of_two_plates_that_cross_is_counted_with_what_is_outside():
    sites = {
        "mu": Outline((), {}),
        "student": Outline((300,), {"students": 0}),
        "item": Outline((40, 1, 2), {"items": 0}),
    }
    hierarchy = Hierarchy.of_outlines(sites)
    assert [block.plates for block in hierarchy.blocks] == [("students",)]
    assert hierarchy.top.tolist() == [0, *range(301, 381)]


def test_rows_in_both_of_two_plates_are_rows_of_the_larger_one():
    sites = {
        "a": Outline((300,), {"students": 0}),
        "b": Outline((4, 1), {"items": 0}),
        "c": Outline((4, 300), {"items": 0, "students": 1}),
    }
    hierarchy = Hierarchy.of_outlines(sites)
    assert hierarchy.top.tolist() == [300, 301, 302, 303]
    students, both = hierarchy.blocks
    assert students.plates == ("students",)
    assert both.above[0].block == 0
    assert (both.num_rows, both.row_dim) == (1200, 1)
    assert torch.equal(students.columns[both.above[0].row][:, 0] % 300, (both.columns[:, 0] - 304) % 300)


def test_large_plates_that_cross_both_stay():
    size = MAX_CROSSED + 1
    sites = {"a": Outline((size,), {"users": 0}), "b": Outline((size, 1), {"films": 0})}
    hierarchy = Hierarchy.of_outlines(sites)
    assert [block.plates for block in hierarchy.blocks] == [("users",), ("films",)]
    assert not any(block.above for block in hierarchy.blocks)
