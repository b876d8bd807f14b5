"""Modes of rows that a guide misses, found along lines."""

import math

import torch
from torch import Tensor

from pyro_nflows.model.hierarchy import Hierarchy, Outline
from pyro_nflows.modes.row_lines import line_points, missed_along, missed_row

LIKE = torch.zeros(0, dtype=torch.float64)


def slope_of(density):
    def slope(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(density(x).sum(), x)[0]

    return slope


def density_with_mode(place: Tensor, row: int, share: float):
    """Standard normal, but for a row that has a second mode."""

    def density(x: Tensor) -> Tensor:
        z = x[..., 1:].unflatten(-1, (4, -1))
        log_p = -0.5 * z.square().sum(-1)
        other = -0.5 * (z[..., row, :] - place).square().sum(-1) + math.log(share / (1 - share))
        own = log_p[..., row]
        return -0.5 * x[..., 0].square() + log_p.sum(-1) - own + torch.logaddexp(own, other)

    return density


def test_the_share_along_a_line_is_that_of_the_mode():
    t = line_points(LIKE)
    curves = [torch.logaddexp(-0.5 * t**2, -0.5 * (t - 9) ** 2 + math.log(p / (1 - p))) for p in (1e-9, 0.02, 0.5)]
    line = missed_along(t, torch.stack(curves, 1))
    torch.testing.assert_close(line.share, torch.tensor([0.0, 0.02, 0.5], dtype=torch.float64), atol=2e-3, rtol=0)
    assert abs(float(t[line.place[2]]) - 9) < 0.2


def test_a_guide_that_is_too_narrow_misses_no_mode():
    t = line_points(LIKE)
    assert float(missed_along(t, -0.5 * (t / 3.0)[:, None] ** 2).share) == 0.0


def test_the_row_with_another_mode_is_found_from_slopes_alone():
    density = density_with_mode(torch.tensor([8.0], dtype=torch.float64), 2, 0.3)
    base = torch.randn(3, 5, dtype=torch.float64)
    hierarchy = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((4,), {"rows": 0})})
    found = missed_row(density, slope_of(density), hierarchy, base)
    assert found is not None
    assert abs(found.share - 0.3) < 0.01
    assert found.column == 3
    assert abs(float(found.point[3]) - 8) < 0.3


def test_rows_of_two_coordinates_are_searched_in_several_directions():
    torch.manual_seed(0)
    density = density_with_mode(torch.tensor([3.0, -3.0], dtype=torch.float64), 1, 0.5)
    hierarchy = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((4, 2), {"rows": 0})})
    found = missed_row(density, slope_of(density), hierarchy, torch.randn(3, 9, dtype=torch.float64))
    assert found is not None
    assert found.column in (3, 4)


def test_nothing_is_found_where_nothing_is_missed():
    def density(x: Tensor) -> Tensor:
        return -0.5 * x.square().sum(-1)

    hierarchy = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((4, 2), {"rows": 0})})
    assert missed_row(density, slope_of(density), hierarchy, torch.randn(3, 9, dtype=torch.float64)) is None
