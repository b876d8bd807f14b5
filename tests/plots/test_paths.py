"""The picture of a flow of Gaussians: what is where it should be, and mistakes are told."""

import math

import pytest
import torch

from pyro_nflows.plots import plot_path

START = (torch.tensor([0.5, 0.5]), torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.eye(3).repeat(2, 1, 1))
END = (torch.tensor([0.2, 0.8]), torch.tensor([[2.0, 1, 0], [-2, 0, 0]]), 0.5 * torch.eye(3).repeat(2, 1, 1))


def test_ellipses_hold_half_of_the_mass_and_lines_join_the_means() -> None:
    ax = plot_path([START, END], target=lambda z: -0.5 * z.square().sum(-1))
    *ellipses, first, second, _ = ax.lines
    assert len(ellipses) == 4
    x, y = (torch.as_tensor(part) for part in ellipses[2].get_data())  # of the first component at the end
    radius = ((x - 2).square() + (y - 1).square()).sqrt()
    torch.testing.assert_close(radius, torch.full_like(radius, 0.5 * math.sqrt(2 * math.log(2))))
    assert [list(part) for part in first.get_data()] == [[0, 2], [0, 1]]
    assert [list(part) for part in second.get_data()] == [[1, -2], [0, 0]]
    assert ellipses[0].get_alpha() < ellipses[2].get_alpha() == 1


def test_points_are_drawn_where_they_were_and_where_they_are() -> None:
    path = [(torch.zeros(150, 3),), (torch.ones(150, 3),), (torch.tensor([2.0, 3, 4]).expand(150, 3),)]
    *ways, first, last = plot_path(path, (0, 2)).lines
    assert len(ways) == 100
    assert [list(part) for part in ways[0].get_data()] == [[0, 1, 2], [0, 1, 4]]
    assert (len(first.get_xdata()), set(last.get_ydata())) == (150, {4.0})
    assert first.get_alpha() < 1


def test_another_pair_of_coordinates_is_named() -> None:
    ax = plot_path([START, END], (2, 0))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_{3}$", "$z_{1}$")


def test_a_way_that_is_none_and_coordinates_that_are_not_there_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"path: got none, expected vi\.history\.path of a fitted AutoWasserstein or AutoJKO"
    ):
        plot_path([])
    for pair in ((0, 3), (1, 1), (-1, 0)):
        with pytest.raises(ValueError, match="expected two different coordinates from 0 to 2"):
            plot_path([START], pair)
