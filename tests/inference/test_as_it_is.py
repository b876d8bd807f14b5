"""Guides judged as they are: good ones, and ones that are bad on purpose."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.inference import judged_rows

MU, TAU, SD = 1.0, 2.0, 0.5


def one(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def hierarchy(y: Tensor, unsigned: Tensor, size: int | None) -> None:
    """Rows around a mean that is known well; of those that have no sign, the posterior has two modes."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(MU), 0.01))
    with pyro.plate("rows", len(y), subsample_size=size) as i:
        z = pyro.sample("z", dist.Normal(mu, TAU))
        signs = dist.Normal(torch.stack([z, torch.where(unsigned[i], -z, z)], -1), SD)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(y.new_ones(2) / 2), signs), obs=y[i])


def data(*unsigned: int) -> tuple[Tensor, Tensor]:
    y = MU + TAU * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    no_sign = torch.zeros(60, dtype=torch.bool)
    y[list(unsigned)], no_sign[list(unsigned)] = 2.5, True
    return y, no_sign


def exact_guide(size: int | None, *args: Tensor) -> AutoFlow:
    """The posterior of rows with the sign that was seen; mu is known so well that nothing depends on it."""
    guide = AutoFlow(hierarchy, centering=None, structure="plates")
    guide.set_up((*args, size), {})
    layer = guide.plain_layer().double()
    precision = TAU**-2 + SD**-2
    with torch.no_grad():
        layer.end.loc.copy_(torch.cat([args[0].new_tensor([MU]), (MU / TAU**2 + args[0] / SD**2) / precision]))
        layer.end.log_scale.fill_(-0.5 * math.log(precision))
        layer.end.log_scale[0] = math.log(0.01)
    guide.adopt(layer)
    return guide


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged_rows, "MOST", 500)


def judge(guide: AutoFlow, *args: Tensor | int | None) -> VI:
    return VI(guide, seed=0, progress_bar=False).judge(*args)


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, Outcome.TRUST), (1.5, Outcome.TRUST), (0.3, Outcome.DISTRUST)])
def test_widths_are_judged(factor, outcome):
    y, guide = torch.tensor(0.6, dtype=torch.float64), AutoFlow(one)
    guide.set_up((y,), {})
    layer = guide.plain_layer()
    with torch.no_grad():
        layer.end.loc.fill_(0.3)
        layer.end.log_scale.fill_(math.log(factor * 0.5**0.5))
    guide.adopt(layer)
    before = guide.layer
    vi = judge(guide, y)
    assert vi.diagnostics()["outcome"] is outcome
    assert guide.layer is before
    assert vi.posterior.layer is not before
    assert vi.diagnostics()["num_steps"] == 0
    if outcome is Outcome.TRUST:
        draws = vi.get_samples(4000)["z"]
        assert abs(draws.mean() - 0.3) < 5 * 0.5**0.5 / 4000**0.5
        assert abs(draws.std() / 0.5**0.5 - 1) < 5 / 8000**0.5


@pytest.mark.parametrize("size", [None, 20])
def test_the_exact_posterior_of_rows_is_trusted(size):
    args = data()
    assert judge(exact_guide(size, *args), *args, size).diagnostics()["outcome"] is Outcome.TRUST


@pytest.mark.parametrize("size", [None, 20])
def test_a_mode_that_is_missed_in_one_row_is_told(size):
    args = data(17)
    vi = judge(exact_guide(size, *args), *args, size)
    assert vi.diagnostics()["outcome"] is Outcome.MODE_MISSED
    assert "near z[17] = -2." in str(vi.verdict())
    odds = math.exp(-0.5 * ((-2.5 - MU) ** 2 - (2.5 - MU) ** 2) / (TAU**2 + SD**2))
    assert abs(vi.posterior.missed.share - odds / (1 + odds)) < 0.03


@pytest.mark.parametrize("rows", [slice(None), slice(17, 18)])
def test_rows_that_are_too_wide_are_chosen_among_candidates(rows):
    args = data()
    guide = exact_guide(20, *args)
    layer = guide.plain_layer()
    with torch.no_grad():
        layer.end.log_scale[1:][rows] += math.log(2.0)
    guide.adopt(layer)
    vi = judge(guide, *args, 20)
    draws, sd = vi.get_samples(500), (TAU**-2 + SD**-2) ** -0.5
    assert vi.diagnostics()["outcome"] is Outcome.TRUST
    assert (draws["z"].std(0) / sd - 1).abs().max() < 0.06 + 5 / 1000**0.5
    assert abs(draws["mu"].mean() - MU) < (0.1 + 5 / 500**0.5) * 0.01


def test_rows_that_cannot_be_integrated_out_are_told():
    args = data()
    guide = exact_guide(20, *args)
    layer = guide.plain_layer()
    with torch.no_grad():
        layer.end.log_scale[1:] -= 1.0
    guide.adopt(layer)
    assert judge(guide, *args, 20).diagnostics()["outcome"] is Outcome.ROWS


def test_rows_by_an_encoder_are_judged():
    args = data()
    guide = AutoFlow(hierarchy, centering=None, amortize=True)
    guide.set_up((*args, 20), {})
    vi = judge(guide, *args, 20)
    assert vi.diagnostics()["outcome"] is not Outcome.TRUST
    assert vi.get_samples(10)["z"].shape == (10, 60)
