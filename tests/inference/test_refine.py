"""Chains that use a trained guide: right even where the guide is not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import VI, AutoCIF, AutoFlow, flows
from pyro_nflows.inference.refine import Refined
from tests.models import PAIRS, pairs


def rough(seed=0, num_steps=3):
    """A guide that has hardly been trained."""
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, 2, (4,)))
    return VI(guide, num_steps=num_steps, seed=seed, progress_bar=False).run(PAIRS)


def within_errors(draws, mean, sd, ess):
    """Moments of ``(S, D)`` draws that are worth ``ess``."""
    error = sd / ess**0.5
    assert ((draws.mean(0) - mean).abs() < 5 * error).all()
    assert ((draws.std(0) - sd).abs() < 5 * error).all()


@pytest.mark.parametrize("method", ["nuts", pytest.param("hmc", marks=pytest.mark.slow), "independence"])
def test_refined_draws_are_posterior_draws(method):
    vi = rough()
    refined = vi.refine(300, 100, 3, method=method)
    z = refined.get_samples()["z"]
    assert z.shape == (900, 4)
    assert 20 < refined.ess < 3000
    within_errors(z, PAIRS / 2, 0.5**0.5, refined.ess)
    assert refined.get_samples(group_by_chain=True)["z"].shape == (3, 300, 4)


def test_chains_of_a_good_guide_are_trusted(capsys):
    refined = rough(num_steps=300).refine(1000, num_chains=4, method="independence")
    assert refined.accepted > 0.9
    assert refined.mixed
    refined.summary()
    shown = capsys.readouterr().out
    assert "z[3]" in shown
    assert "Trust these draws: R-hat is" in shown


def test_chains_that_disagree_are_not_trusted():
    guide = rough().guide
    z = torch.randn(4, 500, 4) + torch.arange(4.0)[:, None, None]
    refined = Refined(guide, z, 0.9)
    assert not refined.mixed
    assert refined.verdict().sentence.startswith("Do not trust these draws yet: R-hat is")
    assert not Refined(guide, torch.randn(2, 3, 4), 0.9).mixed  # too few to tell


def test_the_same_seed_gives_the_same_chains_and_the_global_one_is_left_alone():
    vi = rough(seed=3)
    before = torch.get_rng_state()
    first, second = (vi.refine(50, 20, 2).z for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_done_is_refused():
    vi = rough()
    with pytest.raises(ValueError, match=r"method must be one of \['nuts', 'hmc', 'independence'\], got 'gibbs'"):
        vi.refine(method="gibbs")
    with pytest.raises(ValueError, match="need 40004 draws of the guide, got"):
        vi.refine(10_000, method="independence")
    with pytest.raises(ValueError, match="num_chains"):
        vi.refine(num_chains=0)
    with pytest.raises(RuntimeError, match="call run"):
        VI(AutoFlow(pairs)).refine()
    cif = VI(AutoCIF(pairs), num_steps=2, seed=0, progress_bar=False).run(PAIRS)
    with pytest.raises(ValueError, match="needs a bijective flow with an inverse, got AutoCIF"):
        cif.refine()
    assert cif.refine(100, method="independence").z.shape == (4, 100, 4)


def test_constrained_sites_come_back_constrained():
    def model():
        pyro.sample("scale", dist.Gamma(3.0, 2.0))

    vi = VI(AutoFlow(model), num_steps=20, seed=0, progress_bar=False).run()
    scale = vi.refine(1000, 100, 2, method="independence").get_samples()["scale"]
    assert (scale > 0).all()
    assert scale.mean().item() == pytest.approx(1.5, abs=0.15)


def test_many_chains_of_hmc_agree_on_a_posterior_that_the_guide_has_wrong():
    refined = rough(seed=1).refine(250, 100, 16, method="hmc")
    assert refined.z.shape == (16, 250, 4)
    assert 0.6 < refined.accepted < 0.95
    assert refined.mixed
    within_errors(refined.get_samples()["z"], PAIRS / 2, 0.5**0.5, refined.ess)
