"""Draws of weight zero that lie far out: what they do to the ELBO, to the verdict and to the draws that are used."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.outliers import outliers, trimmed_elbo
from pyro_nflows.diagnostics.resampling import chosen, is_resampled
from pyro_nflows.diagnostics.verdict import Evidence, Outcome, judge, starts_disagree
from pyro_nflows.diagnostics.weights import elbo
from pyro_nflows.inference.posterior import Posterior
from pyro_nflows.objectives.draws import Draws


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.fixture(scope="module")
def exact() -> Posterior:
    """The posterior N(1/2, 1/2), exactly, of a y of one."""
    guide = AutoFlow(model, init_scale=0.5**0.5)
    return VI(guide, seed=0, progress_bar=False).run(torch.tensor(1.0)).posterior


def with_far(posterior: Posterior, at: float = 1e8, heavy: float = 0.0) -> Posterior:
    """The same, one of whose draws lies far out, and whose weights have a tail of that size."""
    z, log_p, log_q = posterior.draws.z.clone(), posterior.draws.log_p.clone(), posterior.draws.log_q.clone()
    tail = heavy * ((torch.arange(len(z)) + 0.5) / len(z)) ** -0.9
    log_p += tail.log1p()
    z[7], log_p[7] = at, -(at**2)
    return replace(posterior, draws=Draws(z, log_p, log_q), starts=(), values=None)


def test_the_elbo_of_a_far_draw_is_not_shown_as_the_bound(exact: Posterior) -> None:
    found = with_far(exact).diagnostics()
    assert found["elbo"] < -1e11
    assert found["num_outliers"] == 1
    assert found["elbo_trimmed"] == pytest.approx(exact.diagnostics()["elbo"], abs=1e-3)
    said = repr(with_far(exact))
    assert f"ELBO {found['elbo_trimmed']:.3f} ± 0.000 (without 1 draw far out; with it -" in said
    assert "e+11)" in said


def test_the_guide_by_itself_is_not_trusted_and_the_resampled_draws_are(exact: Posterior) -> None:
    assert exact.verdict().outcome is Outcome.TRUST
    far = with_far(exact)
    assert far.verdict().outcome is Outcome.OUTLIERS
    assert far.verdict().outcome.is_trusted
    assert f"1 of its {len(far.draws.z):,} draws lies far out" in far.verdict().sentence
    assert float(far.get_samples(len(far.draws.z))["z"].abs().max()) < 10
    with pytest.raises(ValueError, match="by itself is not to be trusted"):
        far.as_prior()


def test_a_heavy_tail_beside_a_far_draw_is_resampled_too(exact: Posterior) -> None:
    """Of a heavy tail with an ESS above 90% draws are used as they come, but not with such a one among them."""
    tail, both = with_far(exact, at=0.5, heavy=2.3e-3), with_far(exact, heavy=2.3e-3)
    assert tail.verdict().outcome is both.verdict().outcome is Outcome.TAILS
    assert "lies far out" not in tail.verdict().sentence
    assert "lies far out" in both.verdict().sentence
    assert float(both.get_samples(len(both.draws.z))["z"].abs().max()) < 10
    assert float(both.summarised().loc["z", "std"]) < 1
    with pytest.raises(ValueError, match="by itself is not to be trusted"):
        both.as_prior()


def test_starts_are_compared_without_their_far_draws(exact: Posterior) -> None:
    """A mean that one draw has moved would be another mode, and a deviation that it has widened would hide one."""
    other = Draws(exact.draws.z + 1.0, exact.draws.log_p, exact.draws.log_q)
    far = with_far(exact)
    assert not starts_disagree(replace(far, starts=(far.draws, exact.draws)).evidence)
    assert starts_disagree(replace(far, starts=(exact.draws, other)).evidence)


def test_the_trimmed_bound_is_that_of_the_guide_without_them() -> None:
    """Of weights that are all Z but a share f, the guide without those is the posterior, and its bound is log Z."""
    log_weight = torch.cat([torch.full((750,), 2.0), torch.full((250,), -1e6)])
    value, se = trimmed_elbo(log_weight)
    assert float(value) == pytest.approx(float(log_weight.logsumexp(0)) - torch.tensor(1000.0).log().item())
    assert float(se) == 0


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0, 1e5])
def test_weights_of_one_kind_have_no_outliers(scale: float) -> None:
    """Neither those of a good guide, nor of one that is far from the posterior in each of many dimensions."""
    p = (torch.arange(20_000) + 0.5) / 20_000
    for log_weight in (scale * torch.special.ndtri(p), scale * p.log(), -scale * torch.special.ndtri(p).square()):
        assert not outliers(log_weight).any()
        torch.testing.assert_close(trimmed_elbo(log_weight), elbo(log_weight))


def test_draws_outside_of_the_support_are_outliers() -> None:
    log_weight = torch.zeros(2000)
    log_weight[:40] = -torch.inf
    verdict = judge(Evidence(log_weight, [], [], torch.ones(1)))
    assert verdict.outcome is Outcome.OUTLIERS
    assert "40 of its 2,000 draws lie where the model's density is zero" in verdict.sentence
    assert float(trimmed_elbo(log_weight).value) == pytest.approx(torch.tensor(0.98).log().item())


def test_a_single_far_draw_of_no_consequence_is_none() -> None:
    """At 150 nats below, one of 20,000 moves the bound by less than a hundredth, and its bar says so."""
    log_weight = torch.zeros(20_000)
    log_weight[3] = -150.0
    assert not outliers(log_weight).any()


def test_draws_as_they_come_leave_out_what_the_posterior_rules_out() -> None:
    """With weights too heavy to resample by; asked for as they are, all are there."""
    torch.manual_seed(0)
    log_weight = torch.distributions.StudentT(0.5).sample((2000,)).abs().log() * 5
    log_weight[::2] = -torch.inf
    assert not is_resampled(log_weight)
    assert (log_weight[chosen(log_weight, 500)] > -torch.inf).all()
    assert chosen(log_weight, 1500).unique(return_counts=True)[1].max() == 2  # of the 1,000 that are left
    assert torch.equal(chosen(log_weight, 500, resample=False), torch.arange(500))
