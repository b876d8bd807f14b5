"""Pictures show what they are given; how they look was looked at."""

import math
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pyro_nflows.diagnostics.weights import ess, pareto_k
from pyro_nflows.plots.fits import plot_density, plot_elbo, plot_weights

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

NORMAL = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


def labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def run_of(num_steps: int) -> Tensor:
    t = torch.arange(num_steps)
    return -3 - 400 * torch.exp(-t / 60) + torch.randn(num_steps)


def test_elbo_shows_every_step_its_median_and_the_stop() -> None:
    elbos = run_of(3000)
    ax = plot_elbo(elbos, stop=2500)
    assert labels(ax) == ["each step", "running median", "stop, step 2,500"]
    trace, median, stop = ax.lines
    torch.testing.assert_close(torch.tensor(trace.get_ydata()), elbos)
    later = torch.tensor(median.get_ydata())[torch.tensor(median.get_xdata()) > 1000]
    # The median of 60 normals has a standard error of 1.25 / sqrt(60).
    assert ((later + 3).abs() < 5 * 1.25 / 60**0.5).all()
    assert list(stop.get_xdata()) == [2500, 2500]


def test_elbo_axis_shows_the_end_and_not_the_fall_before_it() -> None:
    bottom, top = plot_elbo(run_of(3000)).get_ylim()
    assert -30 < bottom < -6
    assert 0 < top < 10


def test_a_draw_of_no_weight_does_not_stretch_the_axis() -> None:
    torch.manual_seed(0)
    log_weight = 0.1 * torch.randn(5000)
    expected = plot_weights(log_weight).get_xlim()
    log_weight[0] = -90.0
    left, right = plot_weights(log_weight).get_xlim()
    assert left > 1e-3 * expected[0]
    assert right == pytest.approx(expected[1], rel=0.3)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_failed_steps_leave_gaps(bad: float) -> None:
    elbos = run_of(100)
    elbos[40] = bad
    trace, median = plot_elbo(elbos.tolist(), steps=range(0, 1000, 10)).lines
    assert math.isnan(trace.get_ydata()[40])
    assert torch.tensor(median.get_ydata()).isfinite().sum() >= len(median.get_ydata()) - 1
    assert trace.get_xdata()[-1] == 990


@pytest.mark.parametrize("elbos", [[-1.0], [-2.0, -2.0, -2.0]])
def test_short_and_constant_runs_are_drawn(elbos: list[float]) -> None:
    bottom, top = plot_elbo(elbos).get_ylim()
    assert bottom < elbos[0] < top


def test_weights_show_the_tail_and_the_verdict() -> None:
    log_weight = torch.randn(2000) - 40
    ax = plot_weights(log_weight)
    assert f"{pareto_k(log_weight):.2f} (trust below 0.70)" in ax.get_title()
    assert f"ESS = {ess(log_weight):.1%}" in ax.get_title()
    assert labels(ax) == ["draws", "tail of 135", "generalized Pareto fit"]
    body, tail, _ = (torch.tensor(line.get_xdata()) for line in ax.lines)
    relative = (log_weight - log_weight.logsumexp(0)).exp() * 2000
    torch.testing.assert_close(torch.cat([body, tail]), relative.sort().values)


@pytest.mark.parametrize("width", [0.001, 0.03, 0.3, 0.8, 3.0])
def test_the_axis_of_weights_has_numbers_however_narrow_it_is(width: float) -> None:
    ax = plot_weights(width * torch.randn(4000))
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    named = [label.get_text() for at, label in zip(ax.get_xticks(), ax.get_xticklabels()) if low <= at <= high]
    assert 3 <= len(named) == len(set(named)) <= 9


def test_fitted_law_lies_on_the_draws_where_the_law_is_true() -> None:
    p = (torch.arange(10_000) + 0.5) / 10_000
    _, tail, fit = plot_weights(-0.6 * p.log()).lines
    fitted, drawn = (torch.tensor(line.get_xydata().T).log() for line in (fit, tail))
    nearest = fitted[1][(fitted[0][:, None] - drawn[0]).abs().argmin(0)]
    assert (nearest - drawn[1]).abs().median() < 0.05


@pytest.mark.parametrize(
    "log_weight", [torch.zeros(100), torch.tensor([0.0, 1.0]), torch.tensor([0.0, -math.inf] * 200)]
)
def test_weights_without_a_tail_are_drawn(log_weight: Tensor) -> None:
    ax = plot_weights(log_weight)
    assert ax.get_title().startswith("no tail to fit")
    assert labels(ax) == ["draws"]


def test_density_shows_shades_contours_and_draws() -> None:
    ax = plot_density(NORMAL.log_prob, samples=NORMAL.sample((50,)), target=NORMAL.log_prob, limits=(-3, 3, -2, 2))
    assert labels(ax) == ["flow", "draws", "target: 50, 80, 95%"]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-3, 3), (-2, 2))
    assert len(ax.lines[0].get_xdata()) == 50
    assert plot_density(NORMAL.log_prob).get_legend() is None


def test_contours_hold_the_mass_they_name() -> None:
    ax = plot_density(NORMAL.log_prob, target=lambda z: NORMAL.log_prob(z) + 1000)
    contours = next(c for c in ax.collections if hasattr(c, "levels"))
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        radius = torch.tensor(path.vertices).norm(dim=-1)
        # The mass of a standard normal within radius r is 1 - exp(-r^2 / 2).
        torch.testing.assert_close(1 - torch.exp(-(radius**2) / 2), torch.full_like(radius, level), atol=0.01, rtol=0.0)


def test_axes_run_left_to_right_and_bottom_to_top() -> None:
    ax = plot_density(torch.distributions.MultivariateNormal(torch.tensor([2.0, -1.0]), 0.1 * torch.eye(2)).log_prob)
    mesh = ax.collections[0]
    x, y = mesh.get_coordinates().reshape(-1, 2)[mesh.get_array().argmax()]
    assert abs(x - 2) < 0.05
    assert abs(y + 1) < 0.05


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plot_elbo([1.0, 2.0], ax=ax),
        lambda ax: plot_weights(torch.randn(100), ax=ax),
        lambda ax: plot_density(NORMAL.log_prob, ax=ax),
    ],
)
def test_axes_can_be_given_and_figures_saved(draw, tmp_path) -> None:
    figure, ax = pyplot.subplots()
    assert draw(ax) is ax
    assert len(pyplot.get_fignums()) == 1
    figure.savefig(tmp_path / "picture.png")


def test_models_with_gradients_are_drawn() -> None:
    scale = torch.ones((), requires_grad=True)
    plot_density(lambda z: -(z * scale).square().sum(-1), samples=torch.randn(5, 2) * scale)
    plot_weights(torch.randn(100) * scale)
    plot_elbo(torch.randn(100) * scale)


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install pyro_nflows\[plots\]"):
        plot_elbo([1.0, 2.0])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: plot_elbo([math.nan, math.inf]), "elbos: got shape \\(2,\\), 0 finite"),
        (lambda: plot_elbo(torch.zeros(2, 2)), "elbos: got shape \\(2, 2\\)"),
        (lambda: plot_density(NORMAL.log_prob, samples=torch.randn(5, 3)), "samples: got shape \\(5, 3\\)"),
        (lambda: plot_weights(torch.tensor([math.nan, 0.0])), "got 1 NaN"),
    ],
)
def test_mistakes_are_named(mistake, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mistake()
    assert not pyplot.get_fignums()


def test_a_run_without_steps_is_said_to_have_none() -> None:
    assert [text.get_text() for text in plot_elbo([]).texts] == ["no steps of training"]
