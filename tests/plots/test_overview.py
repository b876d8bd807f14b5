"""The figure of a fit, where parts of it are not there too."""

import matplotlib.pyplot as plt
import pytest
import torch

from pyro_nflows.plots import plot_overview

SAMPLES = {"mu": torch.randn(200), "long": torch.randn(200, 50), "pair": torch.randn(200, 2)}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_marginals_are_of_all_sites_in_turn_and_in_order():
    figure = plot_overview(torch.randn(60), [20, 60], torch.randn(200) / 9, SAMPLES)
    titles = [ax.get_title() for ax in figure.axes[2:]]
    assert titles == ["mu", *(f"long[{i}]" for i in range(5)), "pair[0]", "pair[1]"]


@pytest.mark.parametrize(
    ("elbos", "log_weight", "words"),
    [
        (torch.zeros(0), torch.randn(200), ["no steps of training"]),
        (torch.full((9,), torch.nan), torch.randn(200), ["the bound was not finite at any step"]),
        (torch.zeros(0), torch.full((200,), -torch.inf), ["no steps of training", "no draw has any weight"]),
    ],
)
def test_what_is_not_there_is_told(elbos, log_weight, words):
    figure = plot_overview(elbos, [], log_weight, {"mu": torch.randn(200)})
    assert [text.get_text() for ax in figure.axes[:2] for text in ax.texts] == words


def test_draws_without_weight_are_left_out_of_the_picture():
    log_weight = torch.cat([torch.randn(200), torch.full((3,), -torch.inf)])
    figure = plot_overview(torch.randn(60), [60], log_weight, {})
    assert "ESS" in figure.axes[1].get_title()
    assert len(figure.axes) == 2
