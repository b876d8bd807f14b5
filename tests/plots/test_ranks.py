"""Pictures of ranks show what they are given."""

from collections.abc import Iterator

import pytest
import torch

from pyro_nflows.diagnostics.ranks import count_band, ecdf_band
from pyro_nflows.plots.ranks import plot_calibration, plot_ecdf, plot_ranks

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.mark.parametrize(("num_samples", "num_bins", "bars"), [(99, None, 20), (99, 7, 7), (4, None, 5)])
def test_bars_count_all_ranks_where_they_are(num_samples: int, num_bins: int | None, bars: int) -> None:
    ranks = torch.randint(num_samples + 1, (300,))
    ax = plot_ranks(ranks, num_samples, num_bins=num_bins)
    assert len(ax.patches) == bars
    assert sum(bar.get_height() for bar in ax.patches) == 300
    for bar in ax.patches:
        left, right = bar.get_x(), bar.get_x() + bar.get_width()
        assert bar.get_height() == int(((ranks >= left) & (ranks < right)).sum())
    band = ax.collections[0].get_datalim(ax.transData).extents
    narrowest, widest = (f(bar.get_width() for bar in ax.patches) / (num_samples + 1) for f in (min, max))
    assert (band[1], band[3]) == (count_band(300, narrowest)[0], count_band(300, widest)[1])


def test_the_ecdf_is_that_of_the_ranks_less_uniform_beside_its_band() -> None:
    ranks = torch.randint(20, (150,))
    ax = plot_ecdf(ranks, 19, prob=0.8)
    x, y = ax.lines[-1].get_data()
    assert x[0] == y[0] == y[-1] == 0
    assert x[-1] == 1
    for j in range(1, 20):
        assert y[j] == pytest.approx(float((ranks < j).double().mean()) - j / 20)
    lower, upper = ecdf_band(150, 19, 0.8)
    middle = torch.arange(1, 20) / 20
    low, high = (lower - middle).min(), (upper - middle).max()
    assert ax.collections[0].get_datalim(ax.transData).extents[[1, 3]] == pytest.approx([float(low), float(high)])


def test_several_parameters_have_a_row_each_and_one_legend() -> None:
    figure = plot_calibration({name: torch.randint(10, (40,)) for name in "abc"}, 9)
    assert [ax.get_title() for ax in figure.axes] == ["a", "a", "b", "b", "c", "c"]
    assert [ax.get_legend() is not None for ax in figure.axes] == [True, True, False, False, False, False]


def test_what_are_no_ranks_is_refused() -> None:
    for plot in (plot_ranks, plot_ecdf):
        with pytest.raises(ValueError, match="expected integers from 0 to num_samples = 9"):
            plot(torch.tensor([10]), 9)
